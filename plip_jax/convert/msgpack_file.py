"""Read ``flax_model.msgpack``, the file of Flax's serialization, without flax.

Owns the decoding of Flax's three msgpack extension types and of its chunked arrays; knows no tensor names.
Follows ``flax/serialization.py``.
"""

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from plip_jax.convert.names import WeightsError

_EXT_NDARRAY, _EXT_COMPLEX, _EXT_SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
}


def read_msgpack_file(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of a tree saved by ``flax.serialization.to_bytes``.

    Returns:
        Path joined by ``/`` -> read-only array.

    Raises:
        WeightsError: the file is damaged, or holds anything but nested dicts of arrays.
    """
    path = Path(path)
    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_decode_extension, raw=False, strict_map_key=True)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    # msgpack's own errors are ValueErrors, but for UnpackException; deep nesting is a StackError, a ValueError too.
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as error:
        raise WeightsError(f"{path}: damaged msgpack file ({type(error).__name__}: {error}); fetch it again") from None
    if not isinstance(tree, dict):
        raise WeightsError(f"{path}: expected a tree of arrays, got {type(tree).__name__}")
    try:
        return _flatten(tree)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def _decode_extension(code: int, data: bytes) -> np.ndarray:
    if code == _EXT_COMPLEX:
        raise WeightsError("a complex number, which no CLIP has")
    if code not in (_EXT_NDARRAY, _EXT_SCALAR):
        raise WeightsError(f"unknown msgpack extension type {code}, expected one of Flax's")
    match msgpack.unpackb(data, raw=True):
        case [list(shape), bytes(name), bytes(buffer)]:
            return _array(shape, name.decode("ascii", "replace"), buffer)
    raise WeightsError("an array that is not (shape, dtype, bytes)")


def _array(shape: list[Any], name: str, buffer: bytes) -> np.ndarray:
    if name not in _DTYPES:
        raise WeightsError(f"an array of {name!r}, expected one of {', '.join(_DTYPES)}")
    return np.frombuffer(buffer, _DTYPES[name]).reshape(_check_shape(shape, len(buffer), _DTYPES[name].itemsize))


def _check_shape(shape: list[Any], num_bytes: int, itemsize: int) -> tuple[int, ...]:
    if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) * itemsize != num_bytes:
        raise WeightsError(f"an array of shape {shape!r:.80} with {num_bytes} bytes of {itemsize}-byte values")
    return tuple(shape)


def _flatten(tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """Walk with an explicit stack: a file may nest deeper than Python recurses."""
    flat: dict[str, np.ndarray] = {}
    pending: list[tuple[str, Any]] = [("", tree)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, np.ndarray):
            flat[path] = value
        elif isinstance(value, dict) and _CHUNKED in value:
            flat[path] = _join_chunks(path, value)
        elif isinstance(value, dict):
            pending += [(f"{path}/{key}" if path else str(key), child) for key, child in value.items()]
        else:
            raise WeightsError(f"expected an array at {path!r}, got {type(value).__name__}")
    return flat


def _join_chunks(path: str, value: dict[str, Any]) -> np.ndarray:
    """Join an array that Flax cut because msgpack allows 2^31 - 1 bytes a leaf."""
    shape, chunks = value.get("shape"), value.get("chunks")
    if not isinstance(shape, dict) or not isinstance(chunks, dict) or not chunks:
        raise WeightsError(f"a chunked array without shape or chunks at {path!r}")
    parts = [part for i in range(len(chunks)) if isinstance(part := chunks.get(str(i)), np.ndarray) and part.ndim == 1]
    sizes = [shape.get(str(i)) for i in range(len(shape))]
    if len(parts) != len(chunks):
        raise WeightsError(f"a chunked array with a missing chunk at {path!r}")
    joined = np.concatenate(parts)
    return joined.reshape(_check_shape(sizes, joined.nbytes, joined.dtype.itemsize))
