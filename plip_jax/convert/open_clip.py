"""An open_clip folder out: ``open_clip_config.json``, ``open_clip_model.safetensors`` and the tokenizer's files.

Owns the layout of the folder, and loading it with open_clip itself. The configuration's fields are in
`open_clip_config`, the tensors' names in `names`; reading is `weights_file`'s.
"""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.convert.export_format import ConsumerFeatures, ConsumerUnusable, ExportFormat, ParityInputs, round_params
from plip_jax.convert.hf_config import read_json, write_json
from plip_jax.convert.load import LoadedModel
from plip_jax.convert.names import LOSS_PARAMS, Params, from_params, without_loss_params
from plip_jax.convert.open_clip_config import (
    CONFIG_FILE,
    config_to_open_clip,
    preprocessing_from_open_clip,
    preprocessing_to_open_clip,
)
from plip_jax.convert.safetensors_file import cast_tensors, write_safetensors_file
from plip_jax.convert.weights_file import read_weights_file
from plip_jax.data.image import Preprocessing

WEIGHTS_FILE = "open_clip_model.safetensors"
# From a folder here open_clip takes the tokenizer's files beside the configuration, whatever the name is; from the hub
# it asks for this id.
_TOKENIZER_NAME = "put-the-hub-id-of-this-folder-here"


def write_open_clip(folder: Path, model: LoadedModel, dtype: str = "float32", repo_id: str | None = None) -> None:
    """Write a folder that ``open_clip.create_model_from_pretrained("local-dir:FOLDER")`` loads.

    A model with another vocabulary than CLIP's own gets a ``hf_tokenizer_name``, without `repo_id` a placeholder and a
    warning: open_clip then reads the tokenizer's files of the folder through transformers. SigLIP's ``logit_bias`` is
    kept. Of an image whose longer side leaves an odd rest, open_clip's centre crop can lie one pixel further
    (torchvision rounds half to even).

    Args:
        folder: exists and is empty.
        model: what is written.
        dtype: of the tensors, ``float32``, ``float16`` or ``bfloat16``; open_clip computes in float32 unless told
            otherwise.
        repo_id: hub id that the folder is pushed to; open_clip asks it for a vocabulary that is not CLIP's own.

    Raises:
        OpenClipConfigError: open_clip cannot express this model.
        WeightsError: the parameters are not those of the configuration, or one is too large for `dtype`.
    """
    tokenizer = model.tokenizer
    values = config_to_open_clip(model.config, last_token_id=tokenizer.vocab_size - 1)
    if not tokenizer.is_clips_own:
        values["text_cfg"]["hf_tokenizer_name"] = repo_id or _TOKENIZER_NAME
    if not tokenizer.is_clips_own and repo_id is None:
        warnings.warn(
            f"{model.source} has a vocabulary of its own ({tokenizer.vocab_size} tokens): open_clip reads it from the "
            f"folder by local-dir:. Before the folder goes to the hub, put its hub id into hf_tokenizer_name of "
            f"{CONFIG_FILE}",
            stacklevel=2,
        )
    tensors = from_params(without_loss_params(model.params), model.config, "openai")
    for name in LOSS_PARAMS:
        if name in model.params:
            tensors[name] = np.asarray(model.params[name], np.float32)
            values[f"init_{name}"] = float(model.params[name])  # without it open_clip makes no place for the tensor
    tokenizer.save(folder)
    config = {"model_cfg": values, "preprocess_cfg": preprocessing_to_open_clip(model.preprocessing)}
    write_json(folder / CONFIG_FILE, config)
    write_safetensors_file(folder / WEIGHTS_FILE, cast_tensors(tensors, dtype))


def read_open_clip_params(folder: Path) -> Params:
    """The parameters (ours, float32) of a written folder."""
    return read_weights_file(folder / WEIGHTS_FILE).params


def open_clip_features(folder: Path, inputs: ParityInputs) -> ConsumerFeatures | None:
    """Load a written folder with open_clip and compute the features of `inputs`; None where it is not installed.

    Raises:
        ConsumerUnusable: open_clip is installed and cannot be imported.
    """
    if (libraries := import_open_clip()) is None:
        return None
    open_clip, torch = libraries
    model: Any = open_clip.create_model(f"local-dir:{folder}", precision="fp32", device="cpu").eval()
    pixels = np.ascontiguousarray(inputs.pixel_values.transpose(0, 3, 1, 2))
    with torch.inference_mode():
        image_features = model.encode_image(torch.from_numpy(pixels))
        text_features = model.encode_text(torch.from_numpy(inputs.tokens.astype(np.int64)))
    return ConsumerFeatures(
        library=f"open_clip {open_clip.__version__}, torch {torch.__version__}",
        image_features=image_features.numpy(),
        text_features=text_features.numpy(),
    )


def import_open_clip() -> tuple[Any, Any] | None:
    """open_clip and torch; None where open_clip is not installed.

    Raises:
        ConsumerUnusable: it is installed and cannot be imported.
    """
    if importlib.util.find_spec("open_clip") is None:
        return None
    try:
        import open_clip
        import torch
    except Exception as error:  # a torchvision that does not fit torch raises RuntimeError, and others what they like
        raise ConsumerUnusable(f"open_clip cannot be imported ({type(error).__name__}: {error})") from error
    return open_clip, torch


def _read_preprocessing(folder: Path) -> Preprocessing:
    values = read_json(folder / CONFIG_FILE)
    return preprocessing_from_open_clip(values["preprocess_cfg"], values["model_cfg"]["vision_cfg"]["image_size"])


OPEN_CLIP = ExportFormat(
    write=write_open_clip,
    read_back=read_open_clip_params,
    read_preprocessing=_read_preprocessing,
    keeps_loss_params=True,
    write_for_hub=write_open_clip,
    consumer_features=open_clip_features,
    rounded=round_params,
    consumer="open_clip_torch",
    # Both sides compute in float32, whose rounding in the sums of a tower is below 1e-6 of the largest value.
    tolerance=1e-5,
    dtypes=("float32", "float16", "bfloat16"),
    how_to_load='open_clip.create_model_from_pretrained("local-dir:{folder}")',
)
