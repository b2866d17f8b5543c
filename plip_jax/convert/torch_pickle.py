"""The pickle inside a torch archive, read without unpickling.

Owns a small machine that walks the opcodes of a ``data.pkl``. A pickle is a program, and it is never given to
``pickle``: the machine knows only the opcodes that state dicts, checkpoints and TorchScript modules need, and its only
products are numbers, strings, tuples, lists, dicts, descriptions of tensors (`TensorView`) and inert TorchScript
objects (`ScriptObject`). A global is a name; the names below have a meaning, ``__torch__.…`` names are labels of
TorchScript's classes, and every other name is refused. Knows nothing of zip files.

Follows the file layout of ``torch/serialization.py`` and ``torch/csrc/jit/serialization/pickler.cpp``, and the idea of
``torch/_weights_only_unpickler.py``.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from plip_jax.convert.names import WeightsError

STORAGES: dict[str, np.dtype] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
    "torch BoolStorage": np.dtype("?"),
}
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
ORDERED_DICT = "collections OrderedDict"
_REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
# What TorchScript wraps lists and dicts in, to say their type: each returns its first argument (torch/jit/_pickle.py).
_TYPE_TAGS = tuple(
    f"torch.jit._pickle {name}"
    for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
)

# Values that checkpoints keep beside the weights, of which the first argument says enough.
_INERT = ("torch Size", "torch device")
# torch.float32 and its like are names without a call.
_DTYPES = {
    f"torch {name}"
    for name in ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
}

# torch.load with weights_only=False runs what is in the file.
_SAVE_THE_STATE_DICT = (
    "If you trust the file, save its weights alone, where torch and what wrote it are installed: "
    "torch.save(torch.load(FILE, map_location='cpu', weights_only=False)['state_dict'], OUT), with the key that holds "
    "them"
)

_MAX_DIMENSIONS = 8


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of elements in the archive's entry ``data/<key>``."""

    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class TensorView:
    """A tensor laid over a storage; offset and strides count elements. Nothing says yet that it fits."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass
class ScriptObject:
    """An object of a TorchScript class, without its code: a name and what was stored under which attribute."""

    type_name: str
    attributes: dict[Any, Any]


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str  # "module attribute", as pickletools gives it


_MARK = object()


def read_pickle(data: bytes) -> Any:
    """Give what a ``data.pkl`` holds. Nothing is executed, and nothing takes more memory than some bytes an opcode.

    Raises:
        WeightsError: an opcode, a name or a shape of things that no file of weights needs.
        ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError: a damaged pickle.
    """
    return _Machine().run(data)


def describe(value: Any) -> str:
    """What kind of thing a value from a pickle is, for an error message."""
    if isinstance(value, _Global):
        return f"{value.name:.200}"
    if isinstance(value, TensorView):
        return "a tensor"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, dict) else type(value).__name__


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
                return self.pop()
            action = _OPCODES.get(opcode.name)
            if action is None:
                raise WeightsError(
                    f"data.pkl uses the pickle opcode {opcode.name}, which no weights need: refused. "
                    f"{_SAVE_THE_STATE_DICT}"
                )
            action(self, argument)
        raise WeightsError("data.pkl has no end")

    def pop(self, kind: type | tuple[type, ...] = object) -> Any:
        value = self.stack.pop()
        if value is _MARK or not isinstance(value, kind):
            raise WeightsError(f"data.pkl: unexpected {describe(value)} on the stack")
        return value

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def global_(self, name: str) -> None:
        known = name in STORAGES or name in _FUNCTIONS or name in _DTYPES or name == ORDERED_DICT
        if not known and not name.startswith(("__torch__.", "__torch__ ")):
            raise WeightsError(
                f"data.pkl names {name.replace(' ', '.'):.200}, which is not among the names that weights need: "
                f"refused, nothing was executed. {_SAVE_THE_STATE_DICT}"
            )
        self.push(_Global(name))

    def persistent_load(self, _: Any) -> None:
        match self.pop(tuple):
            case ("storage", _Global(name=name), str(key), str(), int(size)) if name in STORAGES and size >= 0:
                if "/" in key or ".." in key:
                    raise WeightsError(f"data.pkl: storage key {key!r:.80}")
                self.push(Storage(key, STORAGES[name], size))
            case other:
                raise WeightsError(f"data.pkl: expected a storage, got a persistent id of {len(other)} parts")

    def reduce(self, _: Any) -> None:
        arguments, function = self.pop(tuple), self.pop(_Global)
        if function.name == ORDERED_DICT and not arguments:
            self.push({})
        elif function.name in _FUNCTIONS:
            self.push(_FUNCTIONS[function.name](*arguments))
        else:
            raise WeightsError(f"data.pkl calls {function.name.replace(' ', '.'):.200} with {len(arguments)} arguments")

    def new_object(self, _: Any) -> None:
        arguments, kind = self.pop(tuple), self.pop(_Global)
        if not kind.name.startswith("__torch__") or arguments:
            raise WeightsError(f"data.pkl makes an object of {kind.name.replace(' ', '.'):.200} (NEWOBJ): refused")
        self.push(ScriptObject(kind.name.replace(" ", "."), {}))

    def build(self, _: Any) -> None:
        state, target = self.pop(dict), self.stack[-1]
        if isinstance(target, ScriptObject):
            target.attributes.update(state)
        # On a dict: OrderedDict's attribute _metadata (versions of modules). Dropped.
        elif not isinstance(target, dict):
            raise WeightsError(f"data.pkl sets the state of {describe(target)}: refused")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise WeightsError(f"data.pkl sets items of {describe(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise WeightsError(f"data.pkl: a dict key of type {describe(key)}")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise WeightsError(f"data.pkl appends to {describe(target)}")
        target.extend(items)


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any = None,
    hooks: Any = None,
    metadata: Any = None,
    *_: Any,
) -> TensorView:
    # Neither requires_grad nor hooks move a value. Metadata does: torch's lazy views, not yet negated or conjugated.
    if metadata:
        names = [name for name in metadata if isinstance(name, str)] if isinstance(metadata, dict) else []
        raise WeightsError(
            f"data.pkl: a tensor with the metadata {', '.join(names[:8]) or describe(metadata):.200}, which change its "
            "values where it is read; save it again as tensor.resolve_neg().resolve_conj()"
        )

    def is_size(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    well_formed = (
        isinstance(storage, Storage)
        and is_size(offset)
        and isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides) <= _MAX_DIMENSIONS
        and all(map(is_size, shape + strides))
    )
    if not well_formed:
        raise WeightsError(
            f"data.pkl: a tensor with offset {_brief(offset)}, shape {_brief(shape)}, strides {_brief(strides)}, "
            f"laid over {describe(storage)}"
        )
    return TensorView(storage, offset, shape, strides)


def _brief(value: Any) -> str:
    # Not repr of anything: a tuple that holds itself twice, 60 times over, is described by 200 bytes.
    flat = isinstance(value, tuple) and len(value) <= _MAX_DIMENSIONS and all(isinstance(n, int | str) for n in value)
    return f"{value!r:.200}" if flat or isinstance(value, int) else describe(value)


def _parameter(tensor: Any, *_: Any) -> TensorView:
    if not isinstance(tensor, TensorView):
        raise WeightsError(f"data.pkl: a parameter made of {describe(tensor)}, expected a tensor")
    return tensor


def _first(value: Any, *_: Any) -> Any:
    return value


# The calls that are understood, and what stands for each here.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    REBUILD_TENSOR: _tensor,
    _REBUILD_PARAMETER: _parameter,
    **dict.fromkeys((*_TYPE_TAGS, *_INERT), _first),
}


def _pop_many(count: int) -> Callable[[_Machine, Any], None]:
    def action(machine: _Machine, _: Any) -> None:
        machine.push(tuple(machine.pop() for _ in range(count))[::-1])

    return action


def _set_one(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _remember(machine: _Machine, index: int | None) -> None:
    value = machine.stack[-1]
    if value is _MARK:  # a mark from the memo would be taken for a value
        raise WeightsError("data.pkl remembers a mark")
    machine.memo[len(machine.memo) if index is None else index] = value


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
    "NEWOBJ": lambda machine, _: machine.new_object(None),
    "BUILD": lambda machine, _: machine.build(None),
}
