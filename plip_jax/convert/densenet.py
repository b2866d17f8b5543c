"""A DenseNet's state dict with torchvision's names (MuDiPath's too) without torch, torchvision or unpickling.

Owns the names. The sizes are read off the tensors, so a file needs no configuration beside it. The classifier is left
out. A file of before PyTorch 1.6, as MuDiPath's may be, is converted once where torch is installed: the error says how.

Source: ``torchvision/models/densenet.py``, the older names with a dot (``norm.1``) included.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.convert.names import WeightsError
from plip_jax.convert.safetensors_file import read_safetensors_file
from plip_jax.convert.torch_file import read_torch_file
from plip_jax.model import densenet
from plip_jax.model.densenet import DenseNetConfig

Params = dict[str, Any]

# What wrappers put before a network's own names, once or in layers.
_PREFIXES = ("module.", "model.", "backbone.", "encoder.", "densenet.", "features.")
_OLD_NAME = re.compile(r"(\.denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
_DROPPED = re.compile(r"classifier\..*|.*\.num_batches_tracked")
_MOST_LAYERS = 512  # DenseNet-264 has 132; a lying file must not make us count for long

# Torchvision numbers the last norm 5, however many blocks there are.
_MODULES = {"stem": "conv0", "stem_norm": "norm0", "final_norm": "norm5"}
_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


@dataclasses.dataclass(frozen=True)
class DenseNetModel:
    """What a file holds.

    Attributes:
        config: the network.
        params: nested dict of float32 numpy arrays.
    """

    config: DenseNetConfig
    params: Params


def read_densenet(path: str | Path) -> DenseNetModel:
    """Read ``.safetensors``, or what ``torch.save`` wrote of a state dict (nothing in it is executed).

    Raises:
        WeightsError: no such file, a damaged one, or tensors that are no DenseNet's; all that do not fit are listed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"{path}: expected a file with the state dict of a DenseNet (.pth or .safetensors)")
    tensors = read_safetensors_file(path) if path.suffix == ".safetensors" else read_torch_file(path)
    return densenet_model(tensors, where=str(path))


def densenet_model(tensors: Mapping[str, np.ndarray], *, where: str) -> DenseNetModel:
    """Make sizes and parameters (float32, a nested dict) of a file's tensors.

    Args:
        tensors: name -> array.
        where: the file, for the error.

    Raises:
        WeightsError: not a DenseNet's names, or tensors that are missing, extra, mis-shaped or not floats.
    """
    bare = {_bare(name): tensor for name, tensor in tensors.items()}
    bare = {name: tensor for name, tensor in bare.items() if not _DROPPED.fullmatch(name)}
    config = _sizes(bare, where)
    faults: list[str] = []
    params: Params = {}
    names: set[str] = set()
    for path, shape in densenet.shapes(config).items():
        name = _foreign_name(path)
        names.add(name)
        if name not in bare:
            faults.append(f"missing: {name}")
            continue
        tensor = bare[name]
        if path.endswith("/kernel") and tensor.ndim == 4:
            tensor = tensor.transpose(2, 3, 1, 0)  # OIHW to HWIO
        if tensor.shape != shape or tensor.dtype.name not in ("float32", "float16", "bfloat16"):
            faults.append(f"{name}: expected float {shape} (in our layout), got {tensor.dtype.name} {tensor.shape}")
            continue
        *parents, last = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.array(tensor, np.float32, order="C")
    faults += [f"extra: {name} {bare[name].shape}" for name in sorted(bare.keys() - names)]
    if faults:
        shown = "\n  ".join(faults[:40])
        raise WeightsError(f"{where}: {len(faults)} tensors are not those of a DenseNet of {config}:\n  {shown}")
    return DenseNetModel(config, params)


def _bare(name: str) -> str:
    """A name without what stands before the network's own, in the newer spelling."""
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return _OLD_NAME.sub(r"\1\2.", f".{name}")[1:]


def _sizes(tensors: Mapping[str, np.ndarray], where: str) -> DenseNetConfig:
    def features(name: str) -> int:
        if name not in tensors or tensors[name].ndim != 4:
            found = ", ".join(sorted(tensors)[:6])
            raise WeightsError(
                f"{where}: expected the state dict of torchvision's DenseNet, with features.{name} of 4 axes, "
                f"found {found or 'no tensors'}"
            )
        return tensors[name].shape[0]

    counts: list[int] = []
    while len(counts) < 16 and (layers := _count(tensors, f"denseblock{len(counts) + 1}.denselayer{{}}.conv1.weight")):
        counts.append(layers)
    first = "denseblock1.denselayer1"
    return DenseNetConfig(
        stem=features("conv0.weight"),
        growth=features(f"{first}.conv2.weight"),
        layers=tuple(counts),
        bottleneck=features(f"{first}.conv1.weight"),
    )


def _count(tensors: Mapping[str, np.ndarray], pattern: str) -> int:
    return next((i for i in range(_MOST_LAYERS) if pattern.format(i + 1) not in tensors), _MOST_LAYERS)


def _foreign_name(path: str) -> str:
    """Our path to torchvision's name without ``features.``; blocks and layers are numbered from 1 there."""
    *parents, last = path.split("/")
    return f"{'.'.join(map(_module, parents))}.{'weight' if last == 'kernel' else _NORM[last]}"


def _module(name: str) -> str:
    for ours, theirs in (("block", "denseblock"), ("layer", "denselayer"), ("transition", "transition")):
        if name.startswith(ours):
            return f"{theirs}{int(name.removeprefix(ours)) + 1}"
    return _MODULES.get(name, name)
