"""A Hugging Face ViT folder (``google/vit-base-patch32-224-in21k`` and its like) without torch and transformers.

Owns the fields of its ``config.json`` and the names of its tensors. The heads that are not part of the features, the
pooler and the classifier, are left out.

Source: ``configuration_vit.py``, ``modeling_vit.py`` and ``image_processing_vit.py`` of transformers; 5.x still writes
the files with the names of 4.x.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.convert.hf_config import PREPROCESSING_FILES, HFConfigError, read_json
from plip_jax.convert.image_processor import read_image_settings
from plip_jax.convert.names import WeightsError, flatten
from plip_jax.convert.safetensors_file import read_safetensors_file
from plip_jax.convert.torch_file import read_torch_file
from plip_jax.data.image_settings import ImageSettings
from plip_jax.model import vit
from plip_jax.model.presets import VisionConfig
from plip_jax.model.vit_config import ViTConfig

Params = dict[str, Any]

VIT_FILES = ("config.json", *PREPROCESSING_FILES)
VIT_WEIGHTS_FILES = {"model.safetensors": read_safetensors_file, "pytorch_model.bin": read_torch_file}

# What ViTImageProcessor takes for absent fields; 2 is bilinear.
_IMAGE_DEFAULTS = {"size": 224, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
# What ViTConfig takes for absent fields.
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}
_HEADS = ("pooler.", "classifier.")

# Our path -> its name there, {layer} for those we keep stacked, and the axes that take it to ours.
_LINEAR, _CONV = (1, 0), (2, 3, 1, 0)
_LAYER = "encoder.layer.{layer}"


def _pair(path: str, name: str, *, linear: bool) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    weight = f"{path}/kernel" if linear else f"{path}/scale"
    return {weight: (f"{name}.weight", _LINEAR if linear else None), f"{path}/bias": (f"{name}.bias", None)}


_TABLE: dict[str, tuple[str, tuple[int, ...] | None]] = {
    "class_embedding": ("embeddings.cls_token", None),
    "position_embedding": ("embeddings.position_embeddings", None),
    "patch_embedding/kernel": ("embeddings.patch_embeddings.projection.weight", _CONV),
    "patch_bias": ("embeddings.patch_embeddings.projection.bias", None),
    **_pair("blocks/norm1", f"{_LAYER}.layernorm_before", linear=False),
    **_pair("blocks/attention/query", f"{_LAYER}.attention.attention.query", linear=True),
    **_pair("blocks/attention/key", f"{_LAYER}.attention.attention.key", linear=True),
    **_pair("blocks/attention/value", f"{_LAYER}.attention.attention.value", linear=True),
    **_pair("blocks/attention/out", f"{_LAYER}.attention.output.dense", linear=True),
    **_pair("blocks/norm2", f"{_LAYER}.layernorm_after", linear=False),
    **_pair("blocks/mlp/fc1", f"{_LAYER}.intermediate.dense", linear=True),
    **_pair("blocks/mlp/fc2", f"{_LAYER}.output.dense", linear=True),
    **_pair("post_norm", "layernorm", linear=False),
}


@dataclasses.dataclass(frozen=True)
class ViTModel:
    """What a folder holds.

    Attributes:
        config: the network.
        params: nested dict of float32 numpy arrays.
        settings: for its images.
        weights_file: name of the file that the parameters came from.
    """

    config: ViTConfig
    params: Params
    settings: ImageSettings
    weights_file: str


def read_vit(folder: str | Path) -> ViTModel:
    """Read a folder: config.json, preprocessor_config.json and the weights (as float32 numpy arrays).

    Raises:
        HFConfigError: a JSON file is absent, damaged or asks for what our network does not have.
        WeightsError: no weights file, a damaged one, or tensors that do not fit; all of them are listed.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise HFConfigError(f"{folder}: expected a Hugging Face ViT folder with {', '.join(VIT_FILES)}, no config.json")
    config = vit_config_from_hf(read_json(folder / "config.json"), where=str(folder))
    settings = read_image_settings(folder, _IMAGE_DEFAULTS, image_size=config.vision.image_size)
    for name, reader in VIT_WEIGHTS_FILES.items():
        if (folder / name).is_file():
            params = vit_params(reader(folder / name), config, where=str(folder / name))
            return ViTModel(config, params, settings, name)
    raise WeightsError(f"{folder}: expected one of {', '.join(VIT_WEIGHTS_FILES)}, got neither")


def vit_config_from_hf(values: Mapping[str, Any], *, where: str) -> ViTConfig:
    """Make our configuration from ``config.json``.

    Raises:
        HFConfigError: not a ViT, a field of the wrong type, or a setting that our network does not have.
    """
    if values.get("model_type") != "vit":
        raise HFConfigError(f"{where}/config.json: expected model_type 'vit', got {values.get('model_type')!r}")
    given = {field: values.get(field, default) for field, default in _DEFAULTS.items()}
    for field in ("num_channels", "qkv_bias"):
        if given[field] != _DEFAULTS[field]:
            raise HFConfigError(f"{where}/config.json: expected {field} {_DEFAULTS[field]}, got {given[field]!r}")
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size")
    for field in sizes:
        if type(given[field]) is not int or not 1 <= given[field] <= 1 << 16:
            raise HFConfigError(f"{where}/config.json: {field}: expected a positive integer, got {given[field]!r}")
    if not isinstance(given["layer_norm_eps"], float):
        raise HFConfigError(f"{where}/config.json: layer_norm_eps: expected a number, got {given['layer_norm_eps']!r}")
    width, depth, num_heads, mlp_dim, image_size, patch_size = (given[field] for field in sizes)
    try:
        vision = VisionConfig(image_size, patch_size, width, depth, num_heads, mlp_dim)
        return ViTConfig(vision, given["hidden_act"], given["layer_norm_eps"])
    except ValueError as error:
        raise HFConfigError(f"{where}/config.json: {error}") from None


def vit_params(tensors: Mapping[str, np.ndarray], config: ViTConfig, *, where: str) -> Params:
    """Make our parameters (float32, a nested dict) from a file's tensors.

    Args:
        tensors: name -> array, with or without the prefix ``vit.`` of a model with a head.
        config: the network.
        where: the file, for the error.

    Raises:
        WeightsError: a tensor is missing, extra, mis-shaped or not a float; all of them are listed.
    """
    bare = {name.removeprefix("vit."): tensor for name, tensor in tensors.items()}
    bare = {name: tensor for name, tensor in bare.items() if not name.startswith(_HEADS)}
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(vit.ViT(config).abstract_params()).items()}
    faults: list[str] = []
    used: set[str] = set()

    def read(name: str, axes: tuple[int, ...] | None, shape: tuple[int, ...]) -> np.ndarray:
        used.add(name)
        if name not in bare:
            faults.append(f"missing: {name}")
            return np.zeros(shape, np.float32)
        tensor = bare[name]
        if name in ("embeddings.cls_token", "embeddings.position_embeddings") and tensor.shape[:1] == (1,):
            tensor = tensor.reshape(tensor.shape[1:] if len(shape) == 2 else tensor.shape[2:])
        if axes is not None and tensor.ndim == len(axes):
            tensor = tensor.transpose(axes)
        if tensor.shape != shape or tensor.dtype.name not in ("float32", "float16", "bfloat16"):
            faults.append(f"{name}: expected float {shape} (in our layout), got {tensor.dtype.name} {tensor.shape}")
            return np.zeros(shape, np.float32)
        return np.array(tensor, np.float32, order="C")

    params: Params = {}
    for path, (name, axes) in _TABLE.items():
        *parents, last = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        shape = shapes[path]
        if "{layer}" in name:
            layers = range(config.vision.depth)
            node[last] = np.stack([read(name.format(layer=layer), axes, shape[1:]) for layer in layers])
        else:
            node[last] = read(name, axes, shape)
    faults += [f"extra: {name} {bare[name].shape}" for name in sorted(bare.keys() - used)]
    if faults:
        listing = "\n  ".join(faults)
        raise WeightsError(f"{where}: {len(faults)} tensors are not those of its config.json:\n  {listing}")
    return params
