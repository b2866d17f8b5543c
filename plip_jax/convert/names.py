"""The one table of tensor names: our path, and for each foreign format its name and layout.

Owns ``TABLE``, ``LAYOUTS`` and the two walks over them (`to_params`, `from_params`). Knows nothing of files.
A further format is one more column: a `Foreign` field of `Row`. Shapes are never written here; they follow from
the model's own abstract parameters, so that table and model cannot disagree silently.

Sources: Hugging Face ``modeling_clip.py`` (column ``hf``) and ``modeling_flax_clip.py`` (column ``hf_flax``).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from plip_jax.model import clip
from plip_jax.model.presets import CLIPConfig

Params = dict[str, Any]
Column = Literal["hf", "hf_flax"]

# Layout -> the permutation of axes that takes a foreign tensor to ours.
LAYOUTS: dict[str, tuple[int, ...] | None] = {
    "same": None,
    "linear": (1, 0),  # torch.nn.Linear keeps [out, in]
    "conv": (2, 3, 1, 0),  # torch.nn.Conv2d keeps OIHW, we HWIO
}

# Weights of a loss that CLIP has no place for, at the top of our parameters: SigLIP's bias.
LOSS_PARAMS = ("logit_bias",)

# What a weights file may hold: each is represented exactly in float32, the type of our parameters.
_FLOAT_DTYPES = ("float32", "float16", "bfloat16")


class WeightsError(ValueError):
    """Weights that do not fit the configuration, or a weights file that cannot be trusted."""


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A tensor in a foreign format.

    Attributes:
        name: full name; ``{layer}`` stands for the block number of a tensor that we keep stacked on axis 0.
        layout: a key of `LAYOUTS`, for one layer's tensor.
    """

    name: str
    layout: str = "same"


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter of ours (its path, joined by ``/``) and where each format keeps it."""

    path: str
    hf: Foreign
    hf_flax: Foreign


def _norm(path: str, hf: str) -> tuple[Row, ...]:
    flax = hf.replace(".", "/")
    return (
        Row(f"{path}/scale", Foreign(f"{hf}.weight"), Foreign(f"{flax}/scale")),
        Row(f"{path}/bias", Foreign(f"{hf}.bias"), Foreign(f"{flax}/bias")),
    )


def _linear(path: str, hf: str, *, bias: bool = True) -> tuple[Row, ...]:
    flax = hf.replace(".", "/")
    rows = (Row(f"{path}/kernel", Foreign(f"{hf}.weight", "linear"), Foreign(f"{flax}/kernel")),)
    if bias:
        rows += (Row(f"{path}/bias", Foreign(f"{hf}.bias"), Foreign(f"{flax}/bias")),)
    return rows


def _blocks(path: str, hf: str) -> tuple[Row, ...]:
    return (
        *_norm(f"{path}/norm1", f"{hf}.layer_norm1"),
        *_linear(f"{path}/attention/query", f"{hf}.self_attn.q_proj"),
        *_linear(f"{path}/attention/key", f"{hf}.self_attn.k_proj"),
        *_linear(f"{path}/attention/value", f"{hf}.self_attn.v_proj"),
        *_linear(f"{path}/attention/out", f"{hf}.self_attn.out_proj"),
        *_norm(f"{path}/norm2", f"{hf}.layer_norm2"),
        *_linear(f"{path}/mlp/fc1", f"{hf}.mlp.fc1"),
        *_linear(f"{path}/mlp/fc2", f"{hf}.mlp.fc2"),
    )


TABLE: tuple[Row, ...] = (
    Row("logit_scale", Foreign("logit_scale"), Foreign("logit_scale")),
    Row(
        "vision/patch_embedding/kernel",
        Foreign("vision_model.embeddings.patch_embedding.weight", "conv"),
        Foreign("vision_model/embeddings/patch_embedding/kernel"),
    ),
    Row(
        "vision/class_embedding",
        Foreign("vision_model.embeddings.class_embedding"),
        Foreign("vision_model/embeddings/class_embedding"),
    ),
    Row(
        "vision/position_embedding",
        Foreign("vision_model.embeddings.position_embedding.weight"),
        Foreign("vision_model/embeddings/position_embedding/embedding"),
    ),
    *_norm("vision/pre_norm", "vision_model.pre_layrnorm"),  # HF's own spelling
    *_blocks("vision/blocks", "vision_model.encoder.layers.{layer}"),
    *_norm("vision/post_norm", "vision_model.post_layernorm"),
    *_linear("vision/projection", "visual_projection", bias=False),
    Row(
        "text/token_embedding",
        Foreign("text_model.embeddings.token_embedding.weight"),
        Foreign("text_model/embeddings/token_embedding/embedding"),
    ),
    Row(
        "text/position_embedding",
        Foreign("text_model.embeddings.position_embedding.weight"),
        Foreign("text_model/embeddings/position_embedding/embedding"),
    ),
    *_blocks("text/blocks", "text_model.encoder.layers.{layer}"),
    *_norm("text/final_norm", "text_model.final_layer_norm"),
    *_linear("text/projection", "text_projection", bias=False),
)


def expected_shapes(config: CLIPConfig, column: Column) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a foreign file of this configuration holds."""
    return {name: shape for _, _, name, _, shape in _tensors(config, column)}


def to_params(tensors: Mapping[str, np.ndarray], config: CLIPConfig, column: Column, *, where: str) -> Params:
    """Make our parameters (float32, a nested dict) from a foreign file's tensors.

    float16 and bfloat16 become float32, which holds each of their values exactly.

    Args:
        tensors: name -> array, everything the file holds but known buffers.
        config: the network that the parameters are for.
        column: the format of the names.
        where: the file, for the error message.

    Raises:
        WeightsError: a tensor is missing, extra, mis-shaped or not a float; all of them are listed.
    """
    _check(tensors, config, column, where)
    flat: dict[str, np.ndarray] = {}
    for path, layer, name, layout, _ in _tensors(config, column):
        tensor = tensors[name]
        axes = LAYOUTS[layout]
        if axes is not None:
            tensor = tensor.transpose(axes)
        if layer is None:
            flat[path] = np.array(tensor, dtype=np.float32, order="C")
            continue
        if layer == 0:
            depth = _depth(config, path)
            flat[path] = np.empty((depth, *tensor.shape), np.float32)
        flat[path][layer] = tensor
    return _nest(flat)


def from_params(params: Params, config: CLIPConfig, column: Column) -> dict[str, np.ndarray]:
    """Make the tensors of a foreign file (float32, contiguous) from our parameters; inverse of `to_params`.

    Raises:
        WeightsError: the parameters are not those of the configuration, or not float32.
    """
    flat = flatten(params)
    expected = {row.path for row in TABLE}
    if flat.keys() != expected:
        raise WeightsError(
            f"parameters: missing {sorted(expected - flat.keys())}, not of CLIP {sorted(flat.keys() - expected)}"
        )
    tensors: dict[str, np.ndarray] = {}
    for path, layer, name, layout, shape in _tensors(config, column):
        tensor = np.asarray(flat[path])
        if tensor.dtype != np.float32:
            raise WeightsError(f"parameters: expected float32, got {tensor.dtype} at {path}")
        if layer is not None:
            tensor = tensor[layer]
        axes = LAYOUTS[layout]
        if axes is not None:
            tensor = tensor.transpose(np.argsort(axes))
        if tensor.shape != shape:
            raise WeightsError(f"parameters: expected {shape} for {name}, got {tensor.shape} at {path}")
        tensors[name] = np.array(tensor, order="C")
    return tensors


def without_loss_params(params: Params) -> Params:
    """The parameters of CLIP alone, without `LOSS_PARAMS`."""
    return {name: value for name, value in params.items() if name not in LOSS_PARAMS}


def flatten(params: Params) -> dict[str, Any]:
    """Nested dict -> one level, paths joined by ``/``, in sorted order."""
    flat: dict[str, Any] = {}
    for key in sorted(params):
        value = params[key]
        if isinstance(value, dict):
            flat.update({f"{key}/{path}": leaf for path, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def _nest(flat: Mapping[str, np.ndarray]) -> Params:
    params: Params = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return params


def _depth(config: CLIPConfig, path: str) -> int:
    return (config.vision if path.startswith("vision/") else config.text).depth


def _tensors(config: CLIPConfig, column: Column) -> Iterator[tuple[str, int | None, str, str, tuple[int, ...]]]:
    """Every foreign tensor: (our path, layer or None, foreign name, layout, foreign shape)."""
    ours = flatten(clip.build(config).abstract_params())
    for row in TABLE:
        foreign: Foreign = getattr(row, column)
        shape = tuple(ours[row.path].shape)
        layers: tuple[int | None, ...] = (None,)
        if "{layer}" in foreign.name:
            layers, shape = tuple(range(shape[0])), shape[1:]
        axes = LAYOUTS[foreign.layout]
        if axes is not None:
            shape = tuple(shape[i] for i in np.argsort(axes))
        for layer in layers:
            yield row.path, layer, foreign.name.format(layer=layer), foreign.layout, shape


def _check(tensors: Mapping[str, np.ndarray], config: CLIPConfig, column: Column, where: str) -> None:
    """Report everything wrong with a file's tensors in one error."""
    expected = expected_shapes(config, column)
    faults = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in tensors]
    faults += [f"extra: {name} {tensors[name].shape}" for name in sorted(tensors.keys() - expected.keys())]
    for name, shape in expected.items():
        if name not in tensors:
            continue
        tensor = tensors[name]
        if tensor.shape != shape:
            faults.append(f"shape: {name} expected {shape}, got {tensor.shape}")
        if tensor.dtype.name not in _FLOAT_DTYPES:
            faults.append(f"dtype: {name} expected one of {', '.join(_FLOAT_DTYPES)}, got {tensor.dtype.name}")
    if faults:
        listing = "\n  ".join(faults)
        raise WeightsError(
            f"{where}: {len(faults)} tensors do not fit the configuration beside it "
            f"(config.json: is it of this model?):\n  {listing}"
        )
