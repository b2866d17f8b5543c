"""Read ``model.safetensors``, one file or many; write one.

Owns a reader of the format's header (https://huggingface.co/docs/safetensors): safetensors' own numpy reader knows
no bfloat16. Tensors are views of the mapped file, so reading costs no memory until a tensor is used. Writing is
the library's.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from plip_jax.convert.names import WeightsError, beyond_range

_DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


def read_safetensors_file(path: str | Path) -> dict[str, np.ndarray]:
    """Read one file.

    Returns:
        name -> read-only array over the mapped file.

    Raises:
        WeightsError: the header lies about the file, or a tensor is of a type that no CLIP weights have.
    """
    path = Path(path)
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if num_bytes < 8 or not 2 <= header_bytes <= min(num_bytes - 8, _MAX_HEADER_BYTES):
            raise WeightsError(
                f"{path}: not a safetensors file, or cut short: a header of {header_bytes} bytes is announced "
                f"in a file of {num_bytes}; fetch it again"
            )
        try:
            header = json.loads(file.read(header_bytes))
        except (ValueError, RecursionError) as error:
            raise WeightsError(
                f"{path}: the safetensors header is not JSON ({type(error).__name__}: {error}); fetch it again"
            ) from None
    if not isinstance(header, dict):
        raise WeightsError(f"{path}: the safetensors header is no JSON object")
    header.pop("__metadata__", None)
    start = 8 + header_bytes
    data = np.memmap(path, np.uint8, "r", start) if num_bytes > start else np.empty(0, np.uint8)
    end = 0
    tensors: dict[str, np.ndarray] = {}
    # The format has no gaps and no overlaps: in the order of their offsets, tensors fill the file exactly.
    for name, entry in sorted(header.items(), key=lambda item: _offset(path, item)):
        dtype, shape, (begin, stop) = _parse(path, name, entry)
        if begin != end or stop > data.size or math.prod(shape) * dtype.itemsize != stop - begin:
            raise WeightsError(
                f"{path}: {name} of shape {shape} and type {dtype.name} at bytes {begin} to {stop} does not fit: the "
                f"file has {data.size} bytes of tensors, and those before it end at {end}; fetch it again"
            )
        tensors[name] = data[begin:stop].view(np.ndarray).view(dtype).reshape(shape)
        end = stop
    if end != data.size:
        raise WeightsError(f"{path}: {data.size} bytes of tensors, the header describes {end}")
    return tensors


def _offset(path: Path, item: tuple[str, Any]) -> tuple[int, int]:
    return _parse(path, *item)[2]


def _parse(path: Path, name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], tuple[int, int]]:
    match entry:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [int(begin), int(stop)]} if (
            all(type(size) is int and size >= 0 for size in shape) and 0 <= begin <= stop
        ):
            if code not in _DTYPES:
                raise WeightsError(f"{path}: {name} is of type {code}, expected one of {', '.join(_DTYPES)}")
            return _DTYPES[code], tuple(shape), (begin, stop)
    raise WeightsError(f"{path}: {name} has a malformed entry in the header: {entry!r:.120}; fetch it again")


def read_safetensors_shards(index: str | Path) -> dict[str, np.ndarray]:
    """Read the files that a ``model.safetensors.index.json`` lists: name -> read-only array over a mapped file.

    Raises:
        WeightsError: a listed file is absent, lies outside the folder, or does not hold what the index says.
    """
    index = Path(index)
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(
            f"{index}: expected a JSON object with weight_map ({type(error).__name__}: {error})"
        ) from None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise WeightsError(f"{index}: expected weight_map to map tensor names to file names")
    files = sorted(set(weight_map.values()))
    # A name with a folder in it could point anywhere on this machine.
    outside = [file for file in files if Path(file).name != file]
    # os.path, because Path.is_file raises OSError for a name too long for the file system.
    absent = [file for file in files if file not in outside and not os.path.isfile(index.parent / file)]
    if outside or absent:
        raise WeightsError(
            f"{index}: files not found beside it: {absent}; names that are not of files beside it: {outside}; "
            "fetch the whole folder again"
        )
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        held = read_safetensors_file(index.parent / file)
        listed = {name for name, holder in weight_map.items() if holder == file}
        if held.keys() != listed:
            raise WeightsError(
                f"{index}: {file} lacks {sorted(listed - held.keys())} and holds, unlisted, "
                f"{sorted(held.keys() - listed)}"
            )
        tensors.update(held)
    return tensors


def write_safetensors_file(path: str | Path, tensors: dict[str, np.ndarray]) -> None:
    """Write contiguous tensors to one file; its metadata says ``pt``, without which transformers refuses it."""
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def cast_tensors(tensors: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Round float32 tensors to ``float16`` or ``bfloat16``; ``float32`` leaves them.

    Raises:
        WeightsError: a finite value that the type has no number for.
    """
    if dtype == "float32":
        return tensors
    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    with np.errstate(over="ignore"):  # said below, by name
        cast = {name: np.asarray(tensor).astype(kind) for name, tensor in tensors.items()}
    if lost := beyond_range(tensors, cast):
        raise WeightsError(
            f"expected weights that {dtype} can hold, got larger ones in {', '.join(lost[:8])}; use float32"
        )
    return cast
