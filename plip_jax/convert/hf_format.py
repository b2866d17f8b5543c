"""The export format ``hf``: a Hugging Face CLIP folder, and what transformers computes from it.

Owns the check against transformers and torch, imported only for it; the layout of the folder is in `hf`.
"""

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plip_jax.convert.export_format import (
    ConsumerFeatures,
    ConsumerUnusable,
    ExportError,
    ExportFormat,
    ParityInputs,
    round_params,
)
from plip_jax.convert.hf import read_hf, read_preprocessing, write_hf
from plip_jax.convert.load import LoadedModel


def consumer_inputs(
    folder: Path, texts: Sequence[str], images: Sequence[Image.Image]
) -> tuple[np.ndarray, np.ndarray] | None:
    """What the folder's tokenizer and image processor make of texts and images in transformers.

    Args:
        folder: written by `write_hf`.
        texts: captions.
        images: RGB.

    Returns:
        Ids [texts, context_length] and float32 [images, side, side, 3]; None where torch is not installed.

    Raises:
        ConsumerUnusable: transformers cannot be imported.
    """
    libraries = _import()
    if libraries is None:
        return None
    _, transformers, image_processor = libraries
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="np")["input_ids"]
    processor: Any = image_processor.from_pretrained(folder, local_files_only=True)
    pixels = processor(images=list(images), return_tensors="np")["pixel_values"]
    return np.asarray(tokens), np.ascontiguousarray(np.asarray(pixels, np.float32).transpose(0, 2, 3, 1))


def _write(folder: Path, model: LoadedModel, dtype: str) -> None:
    write_hf(folder, model.config, model.params, model.tokenizer, model.preprocessing, dtype=dtype)


def _consumer_features(folder: Path, inputs: ParityInputs) -> ConsumerFeatures | None:
    libraries = _import()
    if libraries is None:
        return None
    torch, transformers, _ = libraries
    with _no_progress(transformers):
        model, loading = transformers.CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    wrong = {name: sorted(map(str, loading[name])) for name in ("missing_keys", "unexpected_keys") if loading[name]}
    if wrong:
        raise ExportError(f"{folder}: transformers does not find the tensors that it expects: {wrong}")
    model = model.eval().float()  # exact: every value of the smaller types is one of float32
    pixel_values = np.ascontiguousarray(inputs.pixel_values.transpose(0, 3, 1, 2))
    with torch.inference_mode():
        image = model.get_image_features(pixel_values=torch.from_numpy(pixel_values))
        text = model.get_text_features(input_ids=torch.from_numpy(inputs.tokens.astype(np.int64)))
    # transformers 5 returns output objects, 4 the features.
    image, text = (getattr(output, "pooler_output", output).numpy() for output in (image, text))
    library = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return ConsumerFeatures(library, image, text)


@contextlib.contextmanager
def _no_progress(transformers: Any) -> Iterator[None]:
    """Without the bar that transformers shows for a second of loading."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _import() -> tuple[Any, Any, Any] | None:
    """Import torch, transformers and its PIL image processor; None where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs, of their own dependencies
            import torch
            import transformers

            # Version 5's default resizes with torchvision, a level off Pillow's; its Pillow one has a name of its own.
            name = "CLIPImageProcessorPil" if int(transformers.__version__.split(".")[0]) >= 5 else "CLIPImageProcessor"
            processor = getattr(transformers, name)
            _ = transformers.CLIPModel, transformers.AutoTokenizer
    except Exception as error:  # a broken torchvision raises whatever its C++ operators raise
        cause = error
        while cause.__cause__ is not None:  # transformers wraps what went wrong in "could not import module"
            cause = cause.__cause__
        raise ConsumerUnusable(f"transformers cannot be imported ({type(cause).__name__}: {cause})") from cause
    return torch, transformers, processor


HF = ExportFormat(
    write=_write,
    read_back=lambda folder: read_hf(folder).params,
    read_preprocessing=read_preprocessing,
    consumer_features=_consumer_features,
    consumer_inputs=consumer_inputs,
    rounded=round_params,
    consumer="transformers torch",
    # Both sides compute in float32, whose rounding in the sums of a tower is below 1e-6 of the largest value.
    tolerance=1e-5,
    dtypes=("float32", "float16", "bfloat16"),
    how_to_load='transformers.CLIPModel.from_pretrained("{folder}")  # or plip_jax.PLIP.from_pretrained("{folder}")',
)
