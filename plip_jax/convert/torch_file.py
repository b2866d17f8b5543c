"""Read files of torch weights without torch and without unpickling.

Owns the zip archive that ``torch.save`` has written since PyTorch 1.6 and that ``torch.jit.save`` writes: which of its
entries are read, how a tensor lies in one, and where in a checkpoint or a tree of modules the state dict is.
The pickle inside is read by `torch_pickle`, where nothing can be executed; a TorchScript archive's code is not read.

Follows ``torch/serialization.py`` and ``caffe2/serialize/inline_container.h``.
"""

import itertools
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.convert.names import WeightsError
from plip_jax.convert.torch_pickle import ScriptObject, TensorView, describe, read_pickle

# ViT-L/14's data.pkl is 0.1 MB, with its optimizer 0.3 MB; beyond this it is no file of a CLIP's weights.
_MAX_PICKLE_BYTES = 16 << 20
# A CLIP's module tree is 6 deep and has some thousand tensors.
_MAX_DEPTH = 32
_MAX_OBJECTS = 100_000
_MAX_NAME = 1000

# What wrappers put before every name: torch.nn.parallel and torch.compile.
_PREFIXES = ("module.", "_orig_mod.")
OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
"""Sizes that OpenAI's archives carry at the root of the module, as tensors or as numbers."""

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # APPNOTE.TXT of PKWARE, 4.3.7


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict, of a checkpoint that has one in it, or of a TorchScript archive.

    A checkpoint is a dict with one dict of tensors among its values, such as ``{"epoch": 3, "state_dict": {…},
    "optimizer": {…}}``. Of a TorchScript archive the tensors of the module tree are given under dotted names;
    attributes of other kinds are left out, but `OPENAI_SIZES` come as int64 arrays of shape []. A ``module.`` before
    every name is taken off.

    Returns:
        name -> read-only array, of the type in the file. The arrays lie in the mapped file; nothing is copied.

    Raises:
        WeightsError: the file is damaged, in the format of before PyTorch 1.6, or holds anything else. Nothing in it
            is executed.
    """
    path = Path(path)
    with path.open("rb") as file:
        magic = file.read(4)
    if magic[:2] != b"PK":
        raise WeightsError(
            f"{path}: expected the zip archive that torch.save has written since PyTorch 1.6, got a file that begins "
            f"with {magic!r}. If it is of an older PyTorch, convert it once where torch is installed: "
            f"torch.save(torch.load('pytorch_model.bin', weights_only=True), 'pytorch_model.bin')"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    # Damage shows itself in zipfile and pickletools as any of these.
    except (
        zipfile.BadZipFile,
        ValueError,
        KeyError,
        IndexError,
        EOFError,
        OSError,
        NotImplementedError,
        struct.error,
    ) as error:
        raise WeightsError(f"{path}: damaged torch archive ({type(error).__name__}: {error}); fetch it again") from None
    except (RuntimeError, TypeError, OverflowError) as error:
        raise WeightsError(
            f"{path}: not a readable torch archive ({type(error).__name__}: {error}); fetch it again"
        ) from None


def _read_archive(archive: zipfile.ZipFile, path: Path) -> dict[str, np.ndarray]:
    prefix, entries = _entries(archive, path.stat().st_size)
    if f"{prefix}byteorder" in entries and archive.read(f"{prefix}byteorder").strip() != b"little":
        raise WeightsError("expected little-endian storages")
    pickled = entries[f"{prefix}data.pkl"]
    if pickled.file_size > _MAX_PICKLE_BYTES:
        raise WeightsError(f"data.pkl of {pickled.file_size} bytes: too large for weights")
    state = read_pickle(archive.read(pickled))
    found = _script_tensors(state) if isinstance(state, ScriptObject) else _state_dict(state)
    if len(found) > _MAX_OBJECTS:
        raise WeightsError(f"{len(found)} tensors: no CLIP has as many")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    storages: dict[str, np.ndarray] = {}
    tensors: dict[str, np.ndarray] = {}
    for name, value in found.items():
        if not isinstance(value, TensorView):
            tensors[name] = np.asarray(value, np.int64)
            continue
        key = value.storage.key
        if key not in storages:
            storages[key] = _stored_bytes(mapped, entries[f"{prefix}data/{key}"])
        tensors[name] = _view(name, value, storages[key])
    return _without_prefixes(tensors)


def _entries(archive: zipfile.ZipFile, num_bytes: int) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The folder inside the archive, and the entries that may be read, once their sizes are known to be true."""
    infos = archive.infolist()
    pickles = [info.filename for info in infos if info.filename.count("/") == 1 and info.filename.endswith("/data.pkl")]
    entries = {info.filename: info for info in infos}
    if len(entries) != len(infos):
        raise WeightsError("an entry of the archive appears twice")
    if len(pickles) != 1:
        raise WeightsError(f"expected one <name>/data.pkl in the archive, got {sorted(entries)[:8]}")
    prefix = pickles[0].removesuffix("data.pkl")
    # torch.jit.save compresses its code, which is not read, and nothing else.
    entries = {name: info for name, info in entries.items() if not name.startswith(f"{prefix}code/")}
    # torch stores, never compresses: with this no allocation below is larger than the file.
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise WeightsError("expected stored entries, got compressed ones: not written by torch")
    if any(info.file_size > num_bytes or info.compress_size != info.file_size for info in entries.values()):
        raise WeightsError(f"an entry claims more than the {num_bytes} bytes of the file; fetch it again")
    in_order = sorted(entries.values(), key=lambda info: info.header_offset)
    for info, following in itertools.pairwise(in_order):
        if info.header_offset + _LOCAL_HEADER.size + info.file_size > following.header_offset:
            raise WeightsError(f"the entries {info.filename} and {following.filename} overlap")
    return prefix, entries


def _stored_bytes(mapped: mmap.mmap, info: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of a stored entry where they lie in the file, checked against the entry's checksum."""
    signature, *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(mapped, info.header_offset)
    start = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    name = mapped[start - extra_bytes - name_bytes : start - extra_bytes].decode("utf-8", "replace")
    if signature != b"PK\x03\x04" or name != info.filename or start + info.file_size > len(mapped):
        raise WeightsError(
            f"damaged entry {info.filename}: it does not lie where the archive's directory says; fetch it again"
        )
    data = np.frombuffer(mapped, np.uint8, info.file_size, start)
    if zlib.crc32(data.data) != info.CRC:
        raise WeightsError(
            f"damaged entry {info.filename}: its checksum is not the one in the archive's directory; fetch it again"
        )
    return data


def _view(name: str, tensor: TensorView, data: np.ndarray) -> np.ndarray:
    """Lay the tensor over its storage, once both are known to fit."""
    dtype, size = tensor.storage.dtype, tensor.storage.size
    if data.nbytes != size * dtype.itemsize:
        raise WeightsError(f"{name}: storage of {size} {dtype.name} announced, {data.nbytes} bytes found")
    count = math.prod(tensor.shape)
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    # count <= size also refuses tensors expanded by zero strides into more memory than the file has.
    if count > size or (count and last >= size):
        raise WeightsError(
            f"{name}: shape {tensor.shape}, strides {tensor.strides} and offset {tensor.offset} reach beyond its "
            f"storage of {size} elements"
        )
    if not count:
        return np.zeros(tensor.shape, dtype)
    elements = data.view(dtype)[tensor.offset :]
    byte_strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(elements, tensor.shape, byte_strides, writeable=False)


def _state_dict(state: Any) -> dict[str, TensorView]:
    """The state dict: `state` itself, or the one among its values."""
    if not isinstance(state, dict):
        raise WeightsError(f"expected a dict of tensors, got {describe(state)}")
    inside = {key: value for key, value in state.items() if _is_state_dict(value)}
    if len(inside) > 1:
        listing = ", ".join(f"{key!r} (a dict of {len(value)} tensors)" for key, value in inside.items())
        raise WeightsError(
            f"expected one dict of tensors in the checkpoint, got {listing}; save the one that is wanted to a file of "
            "its own: torch.save(checkpoint[KEY], FILE)"
        )
    if inside:
        ((key, tensors),) = inside.items()
        mixed = {name: _num_tensors(value) for name, value in state.items() if name != key}
        if larger := [name for name, count in mixed.items() if count > len(tensors)]:
            raise WeightsError(
                f"expected one dict of tensors in the checkpoint, got {key!r:.80} with {len(tensors)}, and "
                f"{larger[0]!r:.80} with {mixed[larger[0]]} beside other things; save the tensors that are wanted to a "
                "file of their own"
            )
        return tensors
    others = [f"{name!r:.80}: {describe(value)}" for name, value in state.items() if not isinstance(value, TensorView)]
    if others:
        more = f" and {len(others) - 8} more" if len(others) > 8 else ""
        raise WeightsError(f"expected a dict of tensors, got also {', '.join(others[:8])}{more}")
    if numbered := [name for name in state if not isinstance(name, str)]:
        raise WeightsError(f"expected names of tensors, got {numbered[0]!r}")
    return state


def _num_tensors(value: Any) -> int:
    return sum(isinstance(tensor, TensorView) for tensor in value.values()) if isinstance(value, dict) else 0


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, TensorView) for name, tensor in value.items())
    )


def _script_tensors(root: ScriptObject) -> dict[str, TensorView | int]:
    """The tensors in a tree of TorchScript objects under dotted names, and the `OPENAI_SIZES` of its root."""
    found: dict[str, TensorView | int] = {}
    for number, (name, value) in enumerate(_walk(root, "", 0)):
        # A shared object is met once for every path to it, so a small pickle can describe endlessly many.
        if number >= _MAX_OBJECTS:
            raise WeightsError(f"a module tree of more than {_MAX_OBJECTS} attributes: no CLIP has as many")
        if isinstance(value, TensorView) or (name in OPENAI_SIZES and type(value) is int):
            found[name] = value
    if not found:
        raise WeightsError(f"a TorchScript archive without a tensor in its module tree ({root.type_name:.80})")
    return found


def _walk(node: ScriptObject, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > _MAX_DEPTH:
        raise WeightsError(f"a module tree of more than {_MAX_DEPTH} levels, or one that holds itself")
    for attribute, value in node.attributes.items():
        name = f"{prefix}{attribute}"
        if len(name) > _MAX_NAME:
            raise WeightsError(f"a module tree with a name of {len(name)} letters")
        yield name, value
        if isinstance(value, ScriptObject):
            yield from _walk(value, f"{name}.", depth + 1)


def _without_prefixes(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    while tensors and (prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), "")):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
