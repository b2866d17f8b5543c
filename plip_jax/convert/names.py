"""The one table of tensor names: our path, and for each foreign format its name and layout.

Owns ``TABLE``, ``LAYOUTS`` and the two walks over them (`to_params`, `from_params`). Knows nothing of files.
A further format is one more column: a `Foreign` field of `Row`. Shapes are never written here; they follow from
the model's own abstract parameters, so that table and model cannot disagree silently.

Sources: Hugging Face ``modeling_clip.py`` (column ``hf``) and ``modeling_flax_clip.py`` (column ``hf_flax``); OpenAI's
``clip/model.py``, whose names open_clip kept (column ``openai``).
"""

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from plip_jax.model import clip
from plip_jax.model.presets import CLIPConfig

Params = dict[str, Any]
Column = Literal["hf", "hf_flax", "openai"]
"""A foreign set of names: Hugging Face's in PyTorch, Hugging Face's in Flax, OpenAI's (open_clip's too)."""

LAYOUTS: dict[str, tuple[int, ...] | None] = {
    "same": None,
    "linear": (1, 0),  # torch.nn.Linear keeps [out, in]
    "conv": (2, 3, 1, 0),  # torch.nn.Conv2d keeps OIHW, we HWIO
}
"""Layout -> the permutation of axes that takes a foreign tensor to ours."""

LOSS_PARAMS = ("logit_bias",)
"""Weights of a loss that CLIP has no place for, at the top of our parameters: SigLIP's bias."""

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
        part: which of the equal parts that a fused tensor has along its first axis, and how many there are.
    """

    name: str
    layout: str = "same"
    part: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter of ours and where each format keeps it.

    Attributes:
        path: of the parameter, joined by ``/``.
        hf: its place in Hugging Face's files for PyTorch.
        hf_flax: in Hugging Face's files for Flax.
        openai: in OpenAI's and open_clip's files.
    """

    path: str
    hf: Foreign
    hf_flax: Foreign
    openai: Foreign


def _norm(path: str, hf: str, openai: str) -> tuple[Row, ...]:
    flax = hf.replace(".", "/")
    return (
        Row(f"{path}/scale", Foreign(f"{hf}.weight"), Foreign(f"{flax}/scale"), Foreign(f"{openai}.weight")),
        Row(f"{path}/bias", Foreign(f"{hf}.bias"), Foreign(f"{flax}/bias"), Foreign(f"{openai}.bias")),
    )


def _linear(path: str, hf: str, openai: str) -> tuple[Row, ...]:
    """A layer of a kernel and a bias."""
    flax = hf.replace(".", "/")
    return (
        Row(
            f"{path}/kernel",
            Foreign(f"{hf}.weight", "linear"),
            Foreign(f"{flax}/kernel"),
            Foreign(f"{openai}.weight", "linear"),
        ),
        Row(f"{path}/bias", Foreign(f"{hf}.bias"), Foreign(f"{flax}/bias"), Foreign(f"{openai}.bias")),
    )


def _fused(path: str, hf: str, openai: str, part: tuple[int, int]) -> tuple[Row, ...]:
    """A layer that OpenAI keeps as one part of a larger tensor (torch.nn.MultiheadAttention's in_proj)."""
    flax = hf.replace(".", "/")
    return (
        Row(
            f"{path}/kernel",
            Foreign(f"{hf}.weight", "linear"),
            Foreign(f"{flax}/kernel"),
            Foreign(f"{openai}_weight", "linear", part),
        ),
        Row(f"{path}/bias", Foreign(f"{hf}.bias"), Foreign(f"{flax}/bias"), Foreign(f"{openai}_bias", part=part)),
    )


def _projection(path: str, hf: str, openai: str) -> tuple[Row, ...]:
    """A kernel alone; OpenAI multiplies from the right by a plain [width, embed_dim] matrix."""
    return (Row(f"{path}/kernel", Foreign(f"{hf}.weight", "linear"), Foreign(f"{hf}/kernel"), Foreign(openai)),)


def _blocks(path: str, hf: str, openai: str) -> tuple[Row, ...]:
    return (
        *_norm(f"{path}/norm1", f"{hf}.layer_norm1", f"{openai}.ln_1"),
        *_fused(f"{path}/attention/query", f"{hf}.self_attn.q_proj", f"{openai}.attn.in_proj", (0, 3)),
        *_fused(f"{path}/attention/key", f"{hf}.self_attn.k_proj", f"{openai}.attn.in_proj", (1, 3)),
        *_fused(f"{path}/attention/value", f"{hf}.self_attn.v_proj", f"{openai}.attn.in_proj", (2, 3)),
        *_linear(f"{path}/attention/out", f"{hf}.self_attn.out_proj", f"{openai}.attn.out_proj"),
        *_norm(f"{path}/norm2", f"{hf}.layer_norm2", f"{openai}.ln_2"),
        *_linear(f"{path}/mlp/fc1", f"{hf}.mlp.fc1", f"{openai}.mlp.c_fc"),
        *_linear(f"{path}/mlp/fc2", f"{hf}.mlp.fc2", f"{openai}.mlp.c_proj"),
    )


TABLE: tuple[Row, ...] = (
    Row("logit_scale", Foreign("logit_scale"), Foreign("logit_scale"), Foreign("logit_scale")),
    Row(
        "vision/patch_embedding/kernel",
        Foreign("vision_model.embeddings.patch_embedding.weight", "conv"),
        Foreign("vision_model/embeddings/patch_embedding/kernel"),
        Foreign("visual.conv1.weight", "conv"),
    ),
    Row(
        "vision/class_embedding",
        Foreign("vision_model.embeddings.class_embedding"),
        Foreign("vision_model/embeddings/class_embedding"),
        Foreign("visual.class_embedding"),
    ),
    Row(
        "vision/position_embedding",
        Foreign("vision_model.embeddings.position_embedding.weight"),
        Foreign("vision_model/embeddings/position_embedding/embedding"),
        Foreign("visual.positional_embedding"),
    ),
    *_norm("vision/pre_norm", "vision_model.pre_layrnorm", "visual.ln_pre"),  # HF's own spelling
    *_blocks("vision/blocks", "vision_model.encoder.layers.{layer}", "visual.transformer.resblocks.{layer}"),
    *_norm("vision/post_norm", "vision_model.post_layernorm", "visual.ln_post"),
    *_projection("vision/projection", "visual_projection", "visual.proj"),
    Row(
        "text/token_embedding",
        Foreign("text_model.embeddings.token_embedding.weight"),
        Foreign("text_model/embeddings/token_embedding/embedding"),
        Foreign("token_embedding.weight"),
    ),
    Row(
        "text/position_embedding",
        Foreign("text_model.embeddings.position_embedding.weight"),
        Foreign("text_model/embeddings/position_embedding/embedding"),
        Foreign("positional_embedding"),
    ),
    *_blocks("text/blocks", "text_model.encoder.layers.{layer}", "transformer.resblocks.{layer}"),
    *_norm("text/final_norm", "text_model.final_layer_norm", "ln_final"),
    *_projection("text/projection", "text_projection", "text_projection"),
)
"""A row a parameter; a tower's blocks have one, in which ``{layer}`` stands for the block's number."""


def expected_shapes(config: CLIPConfig, column: Column) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a foreign file of this configuration holds."""
    return {item.name: item.whole_shape for item in _tensors(config, column)}


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
    for item in _tensors(config, column):
        tensor = tensors[item.name][item.rows]
        if item.axes is not None:
            tensor = tensor.transpose(item.axes)
        if item.layer is None:
            flat[item.path] = np.array(tensor, dtype=np.float32, order="C")
            continue
        if item.layer == 0:
            depth = _depth(config, item.path)
            flat[item.path] = np.empty((depth, *tensor.shape), np.float32)
        flat[item.path][item.layer] = tensor
    return nest(flat)


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
    for item in _tensors(config, column):
        tensor = np.asarray(flat[item.path])
        if tensor.dtype != np.float32:
            raise WeightsError(f"parameters: expected float32, got {tensor.dtype} at {item.path}")
        if item.layer is not None:
            tensor = tensor[item.layer]
        if item.axes is not None:
            tensor = tensor.transpose(np.argsort(item.axes))
        if tensor.shape != item.shape:
            raise WeightsError(f"parameters: expected {item.shape} for {item.name}, got {tensor.shape} at {item.path}")
        if item.name not in tensors:
            tensors[item.name] = np.empty(item.whole_shape, np.float32)
        tensors[item.name][item.rows] = tensor
    return tensors


def without_loss_params(params: Params) -> Params:
    """The parameters of CLIP alone, without `LOSS_PARAMS`."""
    return {name: value for name, value in params.items() if name not in LOSS_PARAMS}


def warn_of_loss_params(params: Params, format_name: str) -> None:
    """Warn of each of `LOSS_PARAMS` that a format has no place for and leaves out."""
    for name in sorted(params.keys() & LOSS_PARAMS):
        warnings.warn(
            f"{format_name} has no place for SigLIP's {name} ({float(params[name]):.4g}): it is left out. "
            "Features, cosines, rankings and softmax probabilities stay; a pair's sigmoid probability needs it.",
            stacklevel=3,
        )


def beyond_range(values: Mapping[str, Any], rounded: Mapping[str, Any]) -> list[str]:
    """Names of the arrays in which a finite value became none by rounding to a smaller type."""
    return [
        name
        for name, value in values.items()
        if np.any(np.isfinite(value) & ~np.isfinite(np.asarray(rounded[name], np.float32)))
    ]


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


def nest(flat: Mapping[str, np.ndarray]) -> Params:
    """Inverse of `flatten`."""
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


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """One of our tensors, of one layer, and where a foreign file keeps it.

    Attributes:
        path: ours.
        layer: of a stacked tensor of ours; None where it is not stacked.
        name: the foreign tensor's.
        axes: the permutation that takes the foreign one to ours.
        shape: of our part, in the foreign layout.
        rows: of the foreign tensor that are ours.
        whole_shape: of the foreign tensor.
    """

    path: str
    layer: int | None
    name: str
    axes: tuple[int, ...] | None
    shape: tuple[int, ...]
    rows: Any
    whole_shape: tuple[int, ...]


@functools.lru_cache(maxsize=32)
def _our_shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    """Kept, because tracing the network for its shapes takes a quarter of a second."""
    return {path: tuple(leaf.shape) for path, leaf in flatten(clip.build(config).abstract_params()).items()}


def _tensors(config: CLIPConfig, column: Column) -> Iterator[_Tensor]:
    """Every tensor of ours and its place in a foreign file."""
    ours = _our_shapes(config)
    for row in TABLE:
        foreign: Foreign = getattr(row, column)
        shape = ours[row.path]
        layers: tuple[int | None, ...] = (None,)
        if "{layer}" in foreign.name:
            layers, shape = tuple(range(shape[0])), shape[1:]
        axes = LAYOUTS[foreign.layout]
        if axes is not None:
            shape = tuple(shape[i] for i in np.argsort(axes))
        part, parts = foreign.part
        rows, whole = ..., shape
        if parts > 1:
            rows, whole = slice(part * shape[0], (part + 1) * shape[0]), (parts * shape[0], *shape[1:])
        for layer in layers:
            yield _Tensor(row.path, layer, foreign.name.format(layer=layer), axes, shape, rows, whole)


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
            f"{where}: {len(faults)} tensors do not fit the configuration "
            f"(is the configuration beside the file of this model?):\n  {listing}"
        )
