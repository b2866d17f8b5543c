"""A file of weights, whatever it is called: what its bytes are, what its names say, and the model that it makes.

Owns telling file types apart by content, undoing what training programs wrap around a state dict, and what is known of
a network from the shapes of its tensors. A configuration beside the file is preferred to shapes: ``config.json`` for
Hugging Face's names, ``open_clip_config.json`` for open_clip's. The readers of the types are in their own files.
"""

import dataclasses
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.convert.hf import ReadModel, read_hf_settings, with_end_of_text
from plip_jax.convert.hf_config import read_json
from plip_jax.convert.hub import SourceError
from plip_jax.convert.inferred_config import config_from_tensors
from plip_jax.convert.msgpack_file import read_msgpack_file
from plip_jax.convert.names import LOSS_PARAMS, TABLE, Column, WeightsError, to_params
from plip_jax.convert.open_clip_config import (
    CONFIG_FILE,
    OpenClipConfigError,
    config_from_open_clip,
    preprocessing_from_open_clip,
)
from plip_jax.convert.safetensors_file import read_safetensors_file, read_safetensors_shards
from plip_jax.convert.torch_file import OPENAI_SIZES, read_torch_file
from plip_jax.data.image import Preprocessing
from plip_jax.data.openai_vocabulary import CONTEXT_LENGTH, VOCAB_SIZE, find_installed
from plip_jax.data.tokenizer import Tokenizer, TokenizerError, has_tokenizer, load_tokenizer
from plip_jax.model.presets import Activation, CLIPConfig

Tensors = dict[str, np.ndarray]

READERS: dict[str, Callable[[Path], Tensors]] = {
    "safetensors": read_safetensors_file,
    "safetensors index": read_safetensors_shards,
    "torch": read_torch_file,
    "msgpack": read_msgpack_file,
}
"""Type of file, as `detect` tells it -> its reader: path -> tensors by the file's own names."""

# Where CLIP's own tokenizer is fetched from when nothing nearer has it.
_TOKENIZER_HUB_ID = "openai/clip-vit-base-patch32"

# Of every archive that OpenAI published, and of all that say `OPENAI_SIZES`.
_OPENAIS_ACTIVATION: Activation = "quick_gelu"

# Constants that some versions of the libraries saved beside the weights.
_BUFFER_SUFFIXES = ("position_ids", "attn_mask")

# A list of a few hundred names.
_MAX_INDEX_BYTES = 1 << 20

_WHICH_ACTIVATION = (
    "the file does not say the activation, and a wrong one gives wrong features without an error: pass "
    "activation='quick_gelu' or 'gelu' (--activation). quick_gelu: OpenAI's CLIPs, PLIP, and what was fine-tuned from "
    "them with it. gelu: models of open_clip that are not called -quickgelu: LAION's, PathGen-CLIP (ViT-B-16). Where "
    f"the model has a config.json or an {CONFIG_FILE}, put it beside the file instead"
)


def detect(path: Path) -> str | None:
    """The type of a file of weights, a key of `READERS`; None for any other file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    if head[:1] == b"{":
        return "safetensors index" if size < _MAX_INDEX_BYTES and b'"weight_map"' in path.read_bytes() else None
    if head[:2] == b"PK":
        return "torch" if _holds_pickle(path) else None
    if head[:2] == b"\x80\x02":  # a pickle, as torch wrote before 1.6; its reader says what to do
        return "torch"
    return "msgpack" if _begins_as_msgpack(head) else None


def read_weights_file(
    path: Path, *, tokenizer: str | Path | None = None, activation: Activation | None = None
) -> ReadModel:
    """Read a model from a file of weights and what lies beside it.

    Args:
        path: the file; its type and its names are told from its content.
        tokenizer: a folder or hub id; wins over the files beside the weights. Where neither is, CLIP's own tokenizer
            is taken for a vocabulary of 49,408 tokens and a context of 77.
        activation: needed where neither the file nor a configuration beside it says; wins where one does.

    Raises:
        SourceError: not a file of weights, or it does not say enough; the message says what to pass.
        WeightsError: damaged, or not the weights of a CLIP of two Transformers.
        ValueError: the files beside it are damaged, or contradict it.
    """
    kind = detect(path)
    if kind is None:
        with path.open("rb") as file:
            head = file.read(8)
        raise SourceError(
            f"{path}: expected a model folder, a training workdir, a hub id or a file of weights (torch, safetensors "
            f"or Flax's msgpack), got a file that begins {head!r}"
        )
    tensors = unwrap(READERS[kind](path), path)
    column = recognise(tensors, path)
    # OpenAI's own archives say their sizes, and what is written in their format; nothing else does.
    sizes = {name: tensors.pop(name) for name in OPENAI_SIZES if name in tensors}
    tensors = {name: value for name, value in tensors.items() if not name.endswith(_BUFFER_SUFFIXES)}
    loss_params = _take_scalars(tensors)
    config, preprocessing, named_tokenizer = _configured(tensors, column, sizes, activation, path)
    found_tokenizer = _find_tokenizer(path, config, tokenizer, named_tokenizer)
    config = with_end_of_text(config, found_tokenizer, where=str(path))
    params = to_params(tensors, config, column, where=str(path))
    return ReadModel(config, {**params, **loss_params}, found_tokenizer, preprocessing, path.name)


def with_activation(config: CLIPConfig, activation: Activation | None, *, where: str) -> CLIPConfig:
    """The configuration with an activation that was asked for; a warning where the model's files say another."""
    if activation in (None, config.activation):
        return config
    warnings.warn(f"{where}: the model says {config.activation}, {activation} was asked for and is used", stacklevel=3)
    return dataclasses.replace(config, activation=activation)


def unwrap(tensors: Tensors, path: Path) -> Tensors:
    """Names as the model has them, without what a trainer (``module.``) or ``CustomTextCLIP`` (``text.``) put before.

    Raises:
        WeightsError: no ``logit_scale``, or several: not one CLIP.
    """
    scales = [name for name in tensors if name == "logit_scale" or name.endswith((".logit_scale", "/logit_scale"))]
    if len(scales) != 1:
        found = ", ".join(sorted(tensors)[:6])
        raise WeightsError(
            f"{path}: expected the weights of one CLIP, with one logit_scale, got {len(scales)} of it among "
            f"{len(tensors)} tensors ({found}, …)"
        )
    prefix = scales[0].removesuffix("logit_scale")
    # A tensor outside keeps its name, and is reported as one too many.
    names = {name: name.removeprefix(prefix) for name in tensors}
    if "text.token_embedding.weight" in names.values():
        names = {name: inner.removeprefix("text.") for name, inner in names.items()}
    if len(set(names.values())) != len(names):
        raise WeightsError(f"{path}: two tensors of one name, with and without {prefix!r} or 'text.' before it")
    return {names[name]: value for name, value in tensors.items()}


def recognise(tensors: Mapping[str, Any], path: Path) -> Column:
    """Whose names these are, a column of `names.TABLE`.

    Raises:
        WeightsError: nobody's; what was found is named.
    """
    mark = next(row for row in TABLE if row.path == "vision/class_embedding")
    for column in ("openai", "hf", "hf_flax"):
        if getattr(mark, column).name in tensors:
            return column
    kinds = {
        "visual.layer1.": "a ResNet image tower",
        "visual.trunk.": "an image tower of timm",
        "text.transformer.": "a text tower of transformers",
    }
    found = [kind for start, kind in kinds.items() if any(name.startswith(start) for name in tensors)]
    raise WeightsError(
        f"{path}: expected a CLIP of two Transformers with the names of Hugging Face, OpenAI or open_clip, got "
        f"{' and '.join(found) or 'tensors such as ' + ', '.join(sorted(tensors)[:6])}"
    )


def _check_sizes(sizes: Mapping[str, np.ndarray], config: CLIPConfig, path: Path, *, by: str) -> None:
    shapes = (config.vision.image_size, config.text.context_length, config.text.vocab_size)
    for name, size in zip(OPENAI_SIZES, shapes, strict=True):
        if name in sizes and sizes[name].tolist() not in (size, [size]):
            raise WeightsError(f"{path}: {name}: {by} {size}, the file says {sizes[name]!s:.80}")


def _take_scalars(tensors: Tensors) -> dict[str, np.ndarray]:
    """Make open_clip's one-element vectors scalars, and take the weights of a loss out.

    What is no scalar stays, and is reported with the tensors that do not fit.
    """
    for name in ("logit_scale", *LOSS_PARAMS):
        if name in tensors and tensors[name].shape == (1,):
            tensors[name] = tensors[name].reshape(())
    found = [name for name in LOSS_PARAMS if name in tensors and tensors[name].shape == ()]
    return {name: np.asarray(tensors.pop(name), np.float32) for name in found}


# The network, its preprocessing, and the hub id of the tokenizer that the configuration names.
_Configured = tuple[CLIPConfig, Preprocessing, str | None]


def _configured(
    tensors: Tensors, column: Column, sizes: Mapping[str, np.ndarray], activation: Activation | None, path: Path
) -> _Configured:
    """What the configuration beside a file says, or else the shapes, with the activation that is asked for."""
    is_openais = len(sizes) == len(OPENAI_SIZES)
    if (found := _config_beside(path.parent, column)) is None:
        if activation is None and not is_openais:
            raise SourceError(f"{path}: {_WHICH_ACTIVATION}")
        said = _OPENAIS_ACTIVATION if is_openais or activation is None else activation
        config = config_from_tensors(tensors, column, activation=said, where=str(path))
        _check_sizes(sizes, config, path, by="the shapes say")
        config = with_activation(config, activation, where=str(path))
        return config, Preprocessing(image_size=config.vision.image_size), None
    config, preprocessing, named_tokenizer = found
    _check_sizes(sizes, config, path, by="the configuration beside it says")
    if is_openais and activation is None and config.activation != _OPENAIS_ACTIVATION:
        warnings.warn(
            f"{path}: as an archive in OpenAI's format it says {_OPENAIS_ACTIVATION}, the configuration beside it says "
            f"{config.activation} and is used",
            stacklevel=3,
        )
    return with_activation(config, activation, where=str(path.parent)), preprocessing, named_tokenizer


def _config_beside(folder: Path, column: Column) -> _Configured | None:
    if column == "openai":
        return _open_clip_config(folder) if (folder / CONFIG_FILE).is_file() else None
    return (*read_hf_settings(folder), None) if (folder / "config.json").is_file() else None


def _open_clip_config(folder: Path) -> _Configured:
    values = read_json(folder / CONFIG_FILE)
    try:
        model = _object(values, "model_cfg")
        config = config_from_open_clip(model)
        preprocess = _object(values, "preprocess_cfg") if "preprocess_cfg" in values else {}
        preprocessing = preprocessing_from_open_clip(preprocess, config.vision.image_size)
    except OpenClipConfigError as error:
        raise OpenClipConfigError(f"{folder / CONFIG_FILE}: {error}") from None
    tokenizer = model["text_cfg"].get("hf_tokenizer_name")
    return config, preprocessing, tokenizer if isinstance(tokenizer, str) and tokenizer else None


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not isinstance(values.get(name), Mapping):
        raise OpenClipConfigError(f"expected an object {name}, got {values.get(name)!r:.80}")
    return values[name]


def _find_tokenizer(path: Path, config: CLIPConfig, given: str | Path | None, named: str | None) -> Tokenizer:
    length = config.text.context_length
    if given is not None:
        return load_tokenizer(given, context_length=length)
    if has_tokenizer(path.parent):
        return load_tokenizer(path.parent, context_length=length)
    if named is not None:
        return load_tokenizer(named, context_length=length)
    advice = "pass tokenizer= (--tokenizer): a folder or hub id of the model's tokenizer, or put its files beside"
    if (config.text.vocab_size, length) != (VOCAB_SIZE, CONTEXT_LENGTH):
        raise SourceError(
            f"{path}: no tokenizer beside it, and a vocabulary of {config.text.vocab_size} with a context of {length} "
            f"is not CLIP's own ({VOCAB_SIZE}, {CONTEXT_LENGTH}); {advice}"
        )
    try:
        return load_tokenizer(find_installed() or _TOKENIZER_HUB_ID, context_length=length)
    except TokenizerError as error:
        raise SourceError(
            f"{path}: no tokenizer beside it, and CLIP's own was found neither in an installed open_clip or clip nor "
            f"on the hub ({error}); {advice}"
        ) from error


def _begins_as_msgpack(head: bytes) -> bool:
    """Whether these are a map, of one to fifteen names or of more, and its first name; PNG and HDF5 begin like half."""
    if head[:1] in (b"\xde", b"\xdf"):
        head = head[:1] + head[3 if head[:1] == b"\xde" else 5 :]
    elif not b"\x81" <= head[:1] <= b"\x8f":
        return False
    return b"\xa1" <= head[1:2] <= b"\xbf" or head[1:2] == b"\xd9"


def _holds_pickle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return True  # damaged: the reader says how
