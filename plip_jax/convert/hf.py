"""A Hugging Face CLIP folder, in and out, without torch and without transformers.

Owns the layout of the folder and the order in which weights files are tried; the tensors' names are in `names`,
the JSON files in `hf_config`, each file type in its own reader. The layout written is the one that transformers
4.40, 4.57 and 5.x all load (tests/compat checks it).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.convert.hf_config import (
    PREPROCESSING_FILES,
    HFConfigError,
    config_from_hf,
    config_to_hf,
    find_processor_settings,
    preprocessing_from_hf,
    preprocessing_to_hf,
    read_json,
    write_json,
)
from plip_jax.convert.hub import SourceError
from plip_jax.convert.msgpack_file import read_msgpack_file
from plip_jax.convert.names import (
    Column,
    WeightsError,
    flatten,
    from_params,
    to_params,
    warn_of_loss_params,
    without_loss_params,
)
from plip_jax.convert.safetensors_file import (
    cast_tensors,
    read_safetensors_file,
    read_safetensors_shards,
    write_safetensors_file,
)
from plip_jax.convert.torch_file import read_torch_file
from plip_jax.data.image import Preprocessing
from plip_jax.data.tokenizer import TOKENIZER_FILES, Tokenizer, load_tokenizer
from plip_jax.model.presets import CLIPConfig

Params = dict[str, Any]

# Weights files in the order of preference, with their reader and the names they use. The first that exists is read.
WEIGHTS_FILES: dict[str, tuple[Callable[[Path], dict[str, np.ndarray]], Column]] = {
    "model.safetensors": (read_safetensors_file, "hf"),
    "model.safetensors.index.json": (read_safetensors_shards, "hf"),
    "flax_model.msgpack": (read_msgpack_file, "hf_flax"),
    "pytorch_model.bin": (read_torch_file, "hf"),
}
# transformers 5.x saves the image processor's settings inside processor_config.json.
SMALL_FILES = ("config.json", *PREPROCESSING_FILES, *TOKENIZER_FILES)

# What `write_hf` writes.
HF_EXPORT_FILES = frozenset(("config.json", "preprocessor_config.json", "model.safetensors", *TOKENIZER_FILES))

# Constants that old versions of transformers saved beside the weights (0, 1, 2, …).
_BUFFER_SUFFIX = ".position_ids"


@dataclasses.dataclass(frozen=True)
class ReadModel:
    """What a folder, or a file and what lies beside it, holds.

    Attributes:
        config: the network.
        params: nested dict of float32 numpy arrays.
        tokenizer: for its captions.
        preprocessing: for its images.
        weights_file: the file that the parameters came from.
    """

    config: CLIPConfig
    params: Params
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    weights_file: str


def is_hf_folder(folder: Path) -> bool:
    """Whether the folder has a configuration and weights in one of the known files."""
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in WEIGHTS_FILES)


def read_hf(folder: str | Path) -> ReadModel:
    """Read a folder: config.json, the tokenizer, the preprocessing and the weights (as float32 numpy arrays).

    Raises:
        HFConfigError: a JSON file is absent or damaged, asks for what plip_jax does not have, or contradicts another.
        SourceError: the tokenizer is another model's.
        WeightsError: no weights file, a damaged one, or tensors that do not fit; all of them are listed.
        TokenizerError: the tokenizer's files are absent or damaged.
    """
    folder = Path(folder)
    config, preprocessing = read_hf_settings(folder)
    tokenizer = load_tokenizer(folder, context_length=config.text.context_length)
    config = with_end_of_text(config, tokenizer, where=str(folder))
    params, weights_file = _read_weights(folder, config)
    return ReadModel(config, params, tokenizer, preprocessing, weights_file)


def read_hf_settings(folder: Path) -> tuple[CLIPConfig, Preprocessing]:
    """Read config.json and the image settings beside it, and check that they agree.

    The end-of-text token of a configuration with the legacy id, which is no token's, is known only with the tokenizer:
    `with_end_of_text`.

    Raises:
        HFConfigError: a file is absent or damaged, asks for what plip_jax does not have, or contradicts the other.
    """
    values = read_json(folder / "config.json")
    preprocessing = read_preprocessing(folder)
    try:
        config = config_from_hf(values, eot_token_id=0)
        _check_image_size(config, preprocessing)
    except HFConfigError as error:
        raise HFConfigError(f"{folder}: {error}") from None
    return config, preprocessing


def with_end_of_text(config: CLIPConfig, tokenizer: Tokenizer, *, where: str) -> CLIPConfig:
    """Check that tokenizer and text tower fit; the end-of-text token of an argmax pooling is the tokenizer's.

    Raises:
        SourceError: the tokenizer is another model's.
    """
    text = config.text
    if tokenizer.vocab_size > text.vocab_size:
        raise SourceError(
            f"{where}: expected a tokenizer of at most {text.vocab_size} tokens, got {tokenizer.vocab_size}: it "
            "belongs to another model"
        )
    if text.eot_pooling == "argmax":
        if tokenizer.eot_token_id != tokenizer.vocab_size - 1:
            raise SourceError(
                f"{where}: the model pools at the largest token id; expected end-of-text to be it "
                f"({tokenizer.vocab_size - 1}), got {tokenizer.eot_token_id}: the tokenizer belongs to another model"
            )
        return dataclasses.replace(config, text=dataclasses.replace(text, eot_token_id=tokenizer.eot_token_id))
    if tokenizer.eot_token_id != text.eot_token_id:
        raise SourceError(
            f"{where}: expected the tokenizer's end-of-text id to be {text.eot_token_id}, got "
            f"{tokenizer.eot_token_id}: features would be pooled at the wrong token"
        )
    return config


def write_hf(
    folder: str | Path,
    config: CLIPConfig,
    params: Params,
    tokenizer: Tokenizer,
    preprocessing: Preprocessing,
    *,
    dtype: str = "float32",
) -> None:
    """Write a folder that transformers 4.40 to 5.x load as CLIPModel and CLIPProcessor.

    The caller chooses a fresh folder and renames it when this has returned; see `plip_jax.export`. HF's CLIP has no
    place for SigLIP's ``logit_bias``: it is left out with a warning.

    Args:
        folder: made if missing; files of the same names are replaced.
        config: the network.
        params: float32 arrays, numpy or jax.
        tokenizer: saved beside the weights.
        preprocessing: written as ``preprocessor_config.json``.
        dtype: of the tensors, ``float32``, ``float16`` or ``bfloat16``; ``config.json`` says it too.

    Raises:
        HFConfigError: HF cannot express this model.
        SourceError: the tokenizer is another model's.
        WeightsError: the parameters are not those of `config`, or one is too large for `dtype`.
    """
    folder = Path(folder)
    with_end_of_text(config, tokenizer, where=str(folder))
    _check_image_size(config, preprocessing)
    values = config_to_hf(
        config,
        last_token_id=tokenizer.vocab_size - 1,
        bos_token_id=tokenizer.bot_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=dtype,
    )
    tensors = cast_tensors(from_params(without_loss_params(params), config, "hf"), dtype)
    warn_of_loss_params(params, "Hugging Face's CLIP")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    write_json(folder / "config.json", values)
    write_json(folder / "preprocessor_config.json", preprocessing_to_hf(preprocessing))
    write_safetensors_file(folder / "model.safetensors", tensors)


def differing_params(ours: Params, theirs: Params) -> list[str]:
    """Paths at which two parameter trees are not equal to the last bit (so NaN equals the same NaN)."""
    a, b = flatten(ours), flatten(theirs)
    return sorted(
        path
        for path in a.keys() | b.keys()
        if path not in a
        or path not in b
        or np.shape(a[path]) != np.shape(b[path])
        or np.asarray(a[path]).tobytes() != np.asarray(b[path]).tobytes()
    )


def _read_weights(folder: Path, config: CLIPConfig) -> tuple[Params, str]:
    for name, (reader, column) in WEIGHTS_FILES.items():
        if not (folder / name).is_file():
            continue
        tensors = {key: value for key, value in reader(folder / name).items() if not key.endswith(_BUFFER_SUFFIX)}
        return to_params(tensors, config, column, where=str(folder / name)), name
    found = sorted(path.name for path in folder.iterdir())
    raise WeightsError(f"{folder}: expected one of {', '.join(WEIGHTS_FILES)}, got {', '.join(found)}")


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read the image settings of a folder.

    Raises:
        HFConfigError: there are none, or they ask for what plip_jax does not have.
    """
    if found := find_processor_settings(folder):
        try:
            return preprocessing_from_hf(found[1])
        except HFConfigError as error:
            raise HFConfigError(f"{folder}: {error}") from None
    # Not CLIP's own instead: a wrong mean and deviation give wrong features without an error.
    raise HFConfigError(
        f"{folder}: expected the image settings in {' or '.join(PREPROCESSING_FILES)}, got neither; fetch "
        "preprocessor_config.json of the model (if it was trained with CLIP's own mean and deviation: write "
        '{"size": N, "crop_size": N} into it, with N the image_size of config.json)'
    )


def _check_image_size(config: CLIPConfig, preprocessing: Preprocessing) -> None:
    if preprocessing.image_size != config.vision.image_size:
        raise HFConfigError(
            f"expected images of vision_config.image_size = {config.vision.image_size} pixels, got a preprocessing "
            f"that makes {preprocessing.image_size}"
        )
