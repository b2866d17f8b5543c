"""Write a state dict as ``torch.save`` does, without torch and without pickle.

Owns the writing of the zip archive and of the few pickle opcodes in it; reading is in `torch_file`. The bytes depend on
the tensors only: dates are fixed, and nothing else varies.

Follows ``torch/serialization.py`` and ``caffe2/serialize/inline_container.h``.
"""

import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from plip_jax.convert.names import WeightsError
from plip_jax.convert.torch_pickle import ORDERED_DICT, REBUILD_TENSOR, STORAGES

_ALIGNMENT = 64  # of the tensors' bytes in the file, as torch aligns them: what maps the file reads whole cache lines
_LOCAL_HEADER_BYTES = 30
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that zip can express

_STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}

# Opcodes of pickle protocol 2, by their names in pickletools.
_PROTO_2, _STOP, _EMPTY_DICT, _MARK, _SETITEMS = b"\x80\x02", b".", b"}", b"(", b"u"
_TUPLE, _EMPTY_TUPLE, _REDUCE, _BINPERSID, _NEWFALSE = b"t", b")", b"R", b"Q", b"\x89"


def write_torch_file(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors to one file that ``torch.load(path, weights_only=True)`` reads as a dict.

    Args:
        path: replaced when the file is whole.
        tensors: name -> array of float32, float16, bfloat16, int64 or another type that torch has a storage for.

    Raises:
        WeightsError: an array of a type that torch has no storage for.
    """
    path = Path(path)
    arrays = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in tensors.items()}
    unknown = [f"{name} of {array.dtype}" for name, array in arrays.items() if array.dtype not in _STORAGE_OF]
    if unknown:
        raise WeightsError(f"{path}: torch has no storage for {', '.join(unknown[:8])}")
    folder = path.stem or "archive"
    fresh = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(fresh, "w", zipfile.ZIP_STORED) as archive:
            _add(archive, f"{folder}/data.pkl", _pickled(arrays))
            _add(archive, f"{folder}/byteorder", b"little")
            for number, array in enumerate(arrays.values()):
                # As bytes: bfloat16 has no buffer protocol.
                _add(archive, f"{folder}/data/{number}", array.reshape(-1).view(np.uint8).data)
            _add(archive, f"{folder}/version", b"3\n")
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    """Store one entry, its content at a multiple of `_ALIGNMENT`."""
    info = zipfile.ZipInfo(name, _DATE)
    info.file_size = len(content)
    # torch's padding: an extra field "FB" of as many bytes as it takes, 4 of them its own header.
    start = archive.start_dir + _LOCAL_HEADER_BYTES + len(name.encode()) + 4
    padding = -start % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(info, "w") as entry:
        entry.write(content)


def _pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of ``{name: _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)}``."""
    items = []
    for number, (name, array) in enumerate(arrays.items()):
        storage = (
            _tuple(
                _text("storage"),
                _global(_STORAGE_OF[array.dtype]),
                _text(str(number)),
                _text("cpu"),
                _integer(array.size),
            )
            + _BINPERSID
        )
        strides = [stride // array.itemsize for stride in array.strides]
        no_hooks = _global(ORDERED_DICT) + _EMPTY_TUPLE + _REDUCE
        arguments = (storage, _integer(0), _sizes(array.shape), _sizes(strides), _NEWFALSE, no_hooks)
        items.append(_text(name) + _global(REBUILD_TENSOR) + _tuple(*arguments) + _REDUCE)
    return _PROTO_2 + _EMPTY_DICT + _MARK + b"".join(items) + _SETITEMS + _STOP


def _global(name: str) -> bytes:
    module, attribute = name.split(" ")
    return f"c{module}\n{attribute}\n".encode()


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded  # BINUNICODE


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)  # BININT
    return b"\x8a\x08" + struct.pack("<q", value)  # LONG1 of 8 bytes


def _tuple(*items: bytes) -> bytes:
    return _MARK + b"".join(items) + _TUPLE


def _sizes(sizes: tuple[int, ...] | list[int]) -> bytes:
    return _tuple(*map(_integer, sizes))
