"""What a format of an export is made of: `ExportFormat`, and the fixed inputs on which its consumer is compared.

Owns the interface between ``plip_jax.export`` and the files of the formats; each format's layout is in its own file.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plip_jax.convert.load import LoadedModel
from plip_jax.data.image import Preprocessing

Params = dict[str, Any]
ReadInputs = Callable[[Path, Sequence[str], Sequence[Image.Image]], tuple[np.ndarray, np.ndarray] | None]
"""A written folder, texts and RGB images -> the consumer's ids and pixel values [images, side, side, 3].

None where the consumer is not installed.
"""


class ExportError(ValueError):
    """An export that was not made. The message says what is in the way."""


class ConsumerUnusable(ValueError):  # it says what is so, and stops nothing
    """The consumer's library is installed and cannot be imported. The message says why; the export goes on.

    The message may name this machine's paths and is not published; the type of what caused it is.
    """


@dataclasses.dataclass(frozen=True)
class ParityInputs:
    """The fixed inputs of a comparison.

    Attributes:
        pixel_values: float32 [images, side, side, 3], scaled and normalised; a consumer that wants channels
            first transposes them.
        tokens: int32 [texts, context_length], padded as the model's tokenizer pads.
    """

    pixel_values: np.ndarray
    tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class ConsumerFeatures:
    """What the consumer's own library computes from an export.

    Attributes:
        library: names and versions, such as ``transformers 5.23.0, torch 2.13.0``.
        image_features: float32 [images, embed_dim], not normalised.
        text_features: float32 [texts, embed_dim], not normalised.
    """

    library: str
    image_features: np.ndarray
    text_features: np.ndarray


@dataclasses.dataclass(frozen=True)
class ExportFormat:
    """One format.

    Attributes:
        write: writes a model into an empty folder, with its tensors in one of `dtypes`; raises ValueError where the
            format cannot express the model.
        read_back: the parameters (ours, float32) that a written folder holds; None where a format's file is a program.
        consumer_features: loads a written folder with the consumer's own library, in float32 on the CPU; None where
            the library is not installed; raises `ConsumerUnusable` where it is, and cannot be imported.
        rounded: the parameters (float32) with which the consumer computes, when the tensors are of a dtype.
        consumer: the library to install for the check, as pip calls it.
        tolerance: of the features, relative to the largest value of ours.
        dtypes: of the tensors, the default first.
        how_to_load: a line of Python, with ``{folder}``.
        read_preprocessing: the image settings that a written folder holds; None where the format takes CLIP's own for
            granted and refuses others. Its tokenizer every format writes in the same files.
        consumer_inputs: the consumer's ids and pixels, where its library makes them from the folder's files.
        keeps_loss_params: a loss's own parameters (SigLIP's ``logit_bias``) are written too, and read back.
        write_for_hub: `write`, with the hub id that the folder is pushed to; None where no file names it.
    """

    write: Callable[[Path, LoadedModel, str], None]
    read_back: Callable[[Path], Params] | None
    consumer_features: Callable[[Path, ParityInputs], ConsumerFeatures | None]
    rounded: Callable[[Params, str], Params]
    consumer: str
    tolerance: float
    dtypes: tuple[str, ...]
    how_to_load: str
    read_preprocessing: Callable[[Path], Preprocessing] | None = None
    consumer_inputs: ReadInputs | None = None
    keeps_loss_params: bool = False
    write_for_hub: Callable[[Path, LoadedModel, str, str], None] | None = None


def round_params(params: Params, dtype: str) -> Params:
    """Every parameter rounded to a dtype and back to float32."""
    import ml_dtypes

    kind = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: rounded(leaf) for name, leaf in value.items()}
        return np.asarray(value, np.float32).astype(kind).astype(np.float32)

    return rounded(params)
