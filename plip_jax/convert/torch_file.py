"""Read ``pytorch_model.bin`` without torch and without unpickling.

Owns a reader of the zip archive that ``torch.save`` has written since PyTorch 1.6. The archive's ``data.pkl`` is a
pickle, and a pickle is a program. It is never given to ``pickle``: its opcodes are walked by a small machine that
knows only those a state dict needs, and whose only products are numbers, strings, tuples, dicts and tensor
descriptions. A global is an inert name, and only the names in ``_STORAGES`` and the two functions below have a meaning.

Follows the file layout of ``torch/serialization.py`` and the idea of ``torch/_weights_only_unpickler.py``.
"""

import dataclasses
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from plip_jax.convert.names import WeightsError

_STORAGES: dict[str, np.dtype] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch LongStorage": np.dtype("<i8"),
}
_REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
_ORDERED_DICT = "collections OrderedDict"

# ViT-L/14's data.pkl is 0.1 MB; beyond this it is no state dict of a CLIP.
_MAX_PICKLE_BYTES = 64 << 20
_MAX_DIMENSIONS = 8


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str  # "module attribute", as pickletools gives it


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict saved by ``torch.save`` (zip format).

    Returns:
        name -> read-only array of float32, float16, bfloat16 or int64.

    Raises:
        WeightsError: the file is damaged, in the format of before PyTorch 1.6, or holds anything but a dict of
            tensors. Nothing in it is executed.
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
            return _read_archive(archive, path.stat().st_size)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    # Damage shows itself in zipfile and pickletools as any of these.
    except (zipfile.BadZipFile, ValueError, KeyError, IndexError, EOFError, OSError, NotImplementedError) as error:
        raise WeightsError(f"{path}: damaged torch archive ({type(error).__name__}: {error})") from None
    except (RuntimeError, TypeError, OverflowError) as error:
        raise WeightsError(f"{path}: not a readable torch archive ({type(error).__name__}: {error})") from None


def _read_archive(archive: zipfile.ZipFile, num_bytes: int) -> dict[str, np.ndarray]:
    entries = {info.filename: info for info in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise WeightsError("an entry of the archive appears twice")
    # torch stores, never compresses: with this no allocation below is larger than the file.
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise WeightsError("expected stored entries, got compressed ones: not written by torch.save")
    if any(info.file_size > num_bytes for info in entries.values()):
        raise WeightsError(f"an entry claims more than the {num_bytes} bytes of the file")
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(f"expected one <name>/data.pkl in the archive, got {sorted(entries)[:8]}")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in entries and archive.read(f"{prefix}byteorder").strip() != b"little":
        raise WeightsError("expected little-endian storages")
    if entries[pickles[0]].file_size > _MAX_PICKLE_BYTES:
        raise WeightsError(f"data.pkl of {entries[pickles[0]].file_size} bytes: too large for a state dict")

    state = _Machine().run(archive.read(pickles[0]))
    if not isinstance(state, dict):
        raise WeightsError(f"expected a dict of tensors, got {_describe(state)}")
    others = [f"{name!r}: {_describe(value)}" for name, value in state.items() if not isinstance(value, _Tensor)]
    if others:
        raise WeightsError(f"expected a dict of tensors, got also {', '.join(others[:8])}")
    storages: dict[str, np.ndarray] = {}
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise WeightsError(f"expected names of tensors, got {name!r}")
        storage = tensor.storage
        if storage.key not in storages:
            storages[storage.key] = np.frombuffer(archive.read(f"{prefix}data/{storage.key}"), np.uint8)
        tensors[name] = _view(name, tensor, storages[storage.key])
    return tensors


def _view(name: str, tensor: _Tensor, data: np.ndarray) -> np.ndarray:
    """Lay the tensor over its storage, once both are known to fit."""
    dtype, size = tensor.storage.dtype, tensor.storage.size
    if data.nbytes != size * dtype.itemsize:
        raise WeightsError(f"{name}: storage of {size} {dtype.name} announced, {data.nbytes} bytes found")
    count = int(np.prod(tensor.shape, dtype=object))  # object: no overflow from a lying shape
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


def _describe(value: Any) -> str:
    return value.name if isinstance(value, _Global) else type(value).__name__


class _Machine:
    """The pickle machine reduced to data: opcodes in ``_OPCODES``, globals as inert names."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                if len(self.stack) != 1:
                    raise WeightsError(f"data.pkl ends with {len(self.stack)} values, expected one")
                return self.stack[0]
            action = _OPCODES.get(opcode.name)
            if action is None:
                raise WeightsError(f"data.pkl uses the pickle opcode {opcode.name}, which no state dict needs: refused")
            action(self, argument)
        raise WeightsError("data.pkl has no end")

    def pop(self, kind: type | tuple[type, ...] = object) -> Any:
        value = self.stack.pop()
        if value is _MARK or not isinstance(value, kind):
            raise WeightsError(f"data.pkl: unexpected {_describe(value)} on the stack")
        return value

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def global_(self, name: str) -> None:
        if name not in _STORAGES and name not in (_REBUILD_TENSOR, _ORDERED_DICT):
            raise WeightsError(
                f"data.pkl names {name.replace(' ', '.')}, which is not among the names a float16, bfloat16 or float32 "
                "state dict needs: refused, nothing was executed"
            )
        self.push(_Global(name))

    def persistent_load(self, _: Any) -> None:
        match self.pop(tuple):
            case ("storage", _Global(name=name), str(key), str(), int(size)) if name in _STORAGES and size >= 0:
                if "/" in key or ".." in key:
                    raise WeightsError(f"data.pkl: storage key {key!r}")
                self.push(_Storage(key, _STORAGES[name], size))
            case other:
                raise WeightsError(f"data.pkl: expected a storage, got a persistent id of {len(other)} parts")

    def reduce(self, _: Any) -> None:
        arguments, function = self.pop(tuple), self.pop(_Global)
        if function.name == _ORDERED_DICT and not arguments:
            self.push({})
        elif function.name == _REBUILD_TENSOR and len(arguments) >= 4:
            self.push(_tensor(*arguments[:4]))
        else:
            raise WeightsError(f"data.pkl calls {function.name.replace(' ', '.')} with {len(arguments)} arguments")

    def build(self, _: Any) -> None:
        # The one use in a state dict: OrderedDict's attribute _metadata (module versions). Dropped.
        self.pop(dict)
        if not isinstance(self.stack[-1], dict):
            raise WeightsError(f"data.pkl sets the state of {_describe(self.stack[-1])}: refused")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise WeightsError(f"data.pkl sets items of {_describe(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise WeightsError(f"data.pkl: a dict key of type {_describe(key)}")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise WeightsError(f"data.pkl appends to {_describe(target)}")
        target.extend(items)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    def is_size(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    well_formed = (
        isinstance(storage, _Storage)
        and is_size(offset)
        and isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides) <= _MAX_DIMENSIONS
        and all(map(is_size, shape + strides))
    )
    if not well_formed:
        raise WeightsError(f"data.pkl: a tensor with offset {offset!r}, shape {shape!r:.80}, strides {strides!r:.80}")
    return _Tensor(storage, offset, shape, strides)


def _pop_many(count: int) -> Callable[[_Machine, Any], None]:
    def action(machine: _Machine, _: Any) -> None:
        machine.push(tuple(machine.pop() for _ in range(count))[::-1])

    return action


def _set_one(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _remember(machine: _Machine, index: int | None) -> None:
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


def _push_argument(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": lambda machine, _: machine.push(_MARK),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "BININT": _push_argument,
    "BININT1": _push_argument,
    "BININT2": _push_argument,
    "LONG1": _push_argument,
    "BINFLOAT": _push_argument,
    "BINUNICODE": _push_argument,
    "SHORT_BINUNICODE": _push_argument,
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": _pop_many(1),
    "TUPLE2": _pop_many(2),
    "TUPLE3": _pop_many(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "SETITEM": _set_one,
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "BINPUT": _remember,
    "LONG_BINPUT": _remember,
    "MEMOIZE": _remember,
    "BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "GLOBAL": lambda machine, name: machine.global_(name),
    "BINPERSID": lambda machine, _: machine.persistent_load(None),
    "REDUCE": lambda machine, _: machine.reduce(None),
    "BUILD": lambda machine, _: machine.build(None),
}
