"""Damaged, lying and malicious ``pytorch_model.bin`` files: each is refused by name, and nothing in it is executed."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import NO_TORCH

from plip_jax.convert.names import WeightsError
from plip_jax.convert.torch_file import read_torch_file

torch = pytest.importorskip("torch", reason=NO_TORCH)


class _Runs:
    """Unpickling this with pickle calls a function with the arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


class _Code:
    """Takes part in a pickle by name."""


class _StoragePickler(pickle.Pickler):
    """Writes `_Stored` as torch writes a storage."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.persistent if isinstance(obj, _Stored) else None


class _Stored:
    def __init__(self, *persistent: Any):
        self.persistent = persistent


STORAGE = _Stored("storage", torch.FloatStorage, "0", "cpu", 4)


def _tensor(*arguments: Any, storage: Any = STORAGE) -> Any:
    return _Runs(torch._utils._rebuild_tensor_v2, storage, *arguments, False, OrderedDict())


def _pickled(state: Any) -> bytes:
    stream = io.BytesIO()
    _StoragePickler(stream, protocol=2).dump(state)
    return stream.getvalue()


def _archive(data_pkl: bytes, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)
    return stream.getvalue()


def _with_compressed(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", _pickled({"a": _tensor(0, (4,), (1,))}))
        archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())
        archive.writestr(f"archive/{name}", bytes(1000), zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def _overlapping() -> bytes:
    """The directory says that the tensor's entry begins where the pickle's does."""
    central = GOOD.rindex(b"PK\x01\x02")
    return GOOD[: central + 42] + bytes(4) + GOOD[central + 46 :]


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _module(*attributes: tuple[str, bytes]) -> bytes:
    """The opcodes of a TorchScript object with these opcodes under its attributes."""
    items = b"".join(_text(name) + value for name, value in attributes)
    return b"c__torch__\nM\n)\x81}(" + items + b"ub"


def _shared_modules() -> bytes:
    """30 levels, each holding the one below twice: 2^30 paths."""
    module = _module()
    for level in range(30):
        module = _module(("a", module + b"q" + bytes([level])), ("b", b"h" + bytes([level])))
    return b"\x80\x02" + module + b"."


def _long_names() -> bytes:
    module = _module()
    for _ in range(10):
        module = _module(("a" * 200, module))
    return b"\x80\x02" + module + b"."


def _saved(state: Any, *, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


MARKER = "PLIP_JAX_TEST_EXECUTED"
GOOD = _archive(_pickled({"a": _tensor(0, (2, 2), (2, 1))}))
TORCH: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "begins with"),
    "cut to the half": (GOOD[: len(GOOD) // 2], "damaged"),
    "cut by one byte": (GOOD[:-1], "damaged"),
    "a flipped byte of a tensor": (GOOD.replace(np.float32(3).tobytes(), np.float32(5).tobytes(), 1), "damaged"),
    "of before PyTorch 1.6": (_saved({"a": torch.zeros(2)}, legacy=True), "older PyTorch"),
    "os.system": (_archive(_pickled({"a": _Runs(os.system, "touch " + MARKER)})), r"posix\.system|nt\.system"),
    "builtins.eval": (_archive(_pickled(_Runs(eval, "1"))), r"__builtin__\.eval"),
    "builtins.getattr": (_archive(_pickled(_Runs(getattr, OrderedDict, "update"))), "getattr"),
    "a class of anyone": (_archive(_pickled({"a": _Code()})), r"copy_reg\._reconstructor|_Code"),
    "numpy's rebuild": (_archive(_pickled({"a": np.zeros(2)})), "numpy"),
    "a whole torch module": (_saved(torch.nn.Linear(2, 2)), r"torch\.nn"),
    "putenv as a string opcode": (_archive(b"cos\nputenv\n(S'" + MARKER.encode() + b"'\nS'1'\ntR."), r"os\.putenv"),
    "INST opcode": (_archive(b"(S'1'\nios\nsystem\n."), "refused"),
    "OBJ opcode": (_archive(b"(cos\nsystem\nS'1'\no."), r"os\.system"),
    "OBJ opcode on a class of TorchScript": (_archive(b"(c__torch__\nM\no."), "OBJ"),
    "NEWOBJ opcode": (_archive(b"\x80\x02ccollections\nOrderedDict\n)\x81."), "NEWOBJ"),
    "NEWOBJ_EX opcode": (_archive(b"\x80\x04c__torch__\nM\n)}\x92."), "NEWOBJ_EX"),
    "NEWOBJ of TorchScript with arguments": (_archive(b"\x80\x02c__torch__\nM\nK\x01\x85\x81."), "NEWOBJ"),
    "REDUCE of a class of TorchScript": (_archive(b"\x80\x02c__torch__\nM\n)R."), "calls __torch__.M"),
    "a name that only begins as TorchScript's": (_archive(b"\x80\x02c__torch__evil\nM\n)\x81."), "__torch__evil"),
    "code beside TorchScript's": (
        _archive(b"\x80\x02" + _module(("a", b"cos\nsystem\n" + _text("touch " + MARKER) + b"\x85R")) + b"."),
        r"os\.system",
    ),
    "TorchScript's class alone": (_archive(b"\x80\x02c__torch__\nM\n."), "dict of tensors, got __torch__ M"),
    "a module without tensors": (_archive(b"\x80\x02c__torch__\nM\n)\x81}b."), "without a tensor"),
    "a module with a list as its state": (_archive(b"\x80\x02c__torch__\nM\n)\x81]b."), "unexpected list"),
    "a module that holds itself": (_archive(b"\x80\x02c__torch__\nM\n)\x81q\0}X\x01\0\0\0ah\0sb."), "holds itself"),
    "modules shared at every level": (_archive(_shared_modules()), "attributes: no CLIP"),
    "long names at every level": (_archive(_long_names()), "name of"),
    "persistent id without a storage": (_archive(b"\x80\x02K\x01\x85Q."), "persistent id"),
    "PERSID opcode": (_archive(b"Pstorage\n."), "PERSID"),
    "BUILD without a dict": (_archive(b"\x80\x02}K\x01b."), "unexpected int"),
    "a parameter of a number": (
        _archive(b"\x80\x02ctorch._utils\n_rebuild_parameter\nK\x01\x85R."),
        "a parameter made",
    ),
    "a parameter of nothing": (_archive(b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R."), "not a readable"),
    "a tensor of nothing": (_archive(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R."), "not a readable"),
    "a mark remembered": (_archive(b"\x80\x02(q\0."), "remembers a mark"),
    "a mark as the result": (_archive(b"\x80\x02(."), "unexpected"),
    "TUPLE without a mark": (_archive(b"\x80\x02K\x01t."), "damaged"),
    "POP opcodes": (_archive(b"\x80\x02}K\x010."), "POP"),
    "protocol 5's buffers": (_archive(b"\x80\x05\x97."), "NEXT_BUFFER"),
    "frozen sets": (_archive(b"\x80\x04(\x91."), "FROZENSET"),
    "a tuple of 200,000 levels": (_archive(b"\x80\x02)" + b"\x85" * 200_000 + b"."), "dict of tensors, got tuple"),
    "a shape of 100,000 levels": (
        _archive(_pickled({"a": _tensor(0, (4,), (1,))}).replace(b"K\x04\x85", b")" + b"\x85" * 100_000)),
        "a tensor with offset",
    ),
    # 60 tuples, each twice the one before: 2^60 letters where anything prints it.
    "an offset of 2^60 leaves": (
        _archive(
            _pickled({"a": _tensor("here", (4,), (1,))}).replace(b"X\x04\0\0\0here", b")" + b"q\x32h\x32\x86" * 60)
        ),
        "a tensor with offset tuple",
    ),
    "a memo of huge indices": (_archive(b"\x80\x02}r\xff\xff\xff\xffj\xff\xff\xff\xff0."), "POP"),
    "LONG4 of a gigabyte": (_archive(b"\x80\x02\x8b\xff\xff\xff\x3f."), "damaged"),
    "BINUNICODE8 of an exabyte": (_archive(b"\x80\x04\x8d" + b"\xff" * 7 + b"\x0fabc."), "damaged"),
    "a decimal of a million digits": (_archive(b"L" + b"9" * 1_000_000 + b"L\n."), "damaged|LONG"),
    "a pickle of 17 MB": (_archive(b"\x80\x02" + b"}0" * (17 << 19) + b"."), "too large"),
    "STACK_GLOBAL opcode": (_archive(b"\x80\x04\x8c\x02os\x8c\x06system\x93."), "STACK_GLOBAL"),
    "extension registry": (_archive(b"\x80\x02\x82\x01."), "EXT1"),
    "state on a class": (_archive(b"\x80\x02ccollections\nOrderedDict\n}b."), "state"),
    "OrderedDict with arguments": (_archive(b"\x80\x02ccollections\nOrderedDict\n]\x85R."), "1 arguments"),
    "calling a string": (_archive(b"\x80\x02X\x01\0\0\0a)R."), "unexpected str"),
    "no end": (_archive(b"\x80\x02}"), "data.pkl|damaged"),
    "empty pickle": (_archive(b""), "data.pkl|damaged"),
    "empty stack": (_archive(b"\x80\x02}s."), "damaged"),
    "unset memo": (_archive(b"\x80\x02h\x07."), "damaged"),
    "string longer than the pickle": (_archive(b"\x80\x02X\xff\xff\xff\x7fabc."), "damaged"),
    "a list": (_archive(_pickled([1, 2])), "dict of tensors, got list"),
    "numbers beside tensors": (_archive(_pickled({"a": _tensor(0, (4,), (1,)), "step": 7})), "'step': int"),
    "nested dicts": (_archive(_pickled({"state_dict": {"a": 1}})), "'state_dict': dict of 1"),
    "two state dicts": (
        _archive(_pickled({"model": {"a": _tensor(0, (4,), (1,))}, "ema": {"a": _tensor(0, (4,), (1,))}})),
        r"'model' \(a dict of 1 tensors\), 'ema' \(a dict of 1 tensors\); save the one",
    ),
    "numbers as names": (_archive(_pickled({0: _tensor(0, (4,), (1,))})), "names of tensors, got 0"),
    "shape beyond the storage": (_archive(_pickled({"a": _tensor(0, (5,), (1,))})), "reach beyond"),
    "strides beyond the storage": (_archive(_pickled({"a": _tensor(0, (2, 2), (4, 1))})), "reach beyond"),
    "offset beyond the storage": (_archive(_pickled({"a": _tensor(4, (1,), (1,))})), "reach beyond"),
    "expanded to a terabyte": (_archive(_pickled({"a": _tensor(0, (1 << 38,), (0,))})), "reach beyond"),
    "shape overflows 64 bits": (_archive(_pickled({"a": _tensor(0, (1 << 62, 1 << 62), (0, 0))})), "reach beyond"),
    "negative stride": (_archive(_pickled({"a": _tensor(3, (4,), (-1,))})), "a tensor with offset"),
    "negative offset": (_archive(_pickled({"a": _tensor(-1, (1,), (1,))})), "a tensor with offset"),
    "strides of another rank": (_archive(_pickled({"a": _tensor(0, (2, 2), (1,))})), "a tensor with offset"),
    "shape of strings": (_archive(_pickled({"a": _tensor(0, ("2",), (1,))})), "a tensor with offset"),
    "storage is no storage": (_archive(_pickled({"a": _tensor(0, (1,), (1,), storage=3)})), "a tensor with offset"),
    "storage larger than its file": (
        _archive(
            _pickled({"a": _tensor(0, (1,), (1,), storage=_Stored("storage", torch.FloatStorage, "0", "cpu", 9))})
        ),
        "9 float32 announced",
    ),
    "storage of complex numbers": (_saved({"a": torch.zeros(2, dtype=torch.complex64)}), r"torch\.ComplexFloatStorage"),
    "storage elsewhere": (
        _archive(
            _pickled({"a": _tensor(0, (1,), (1,), storage=_Stored("storage", torch.FloatStorage, "../0", "cpu", 4))})
        ),
        "storage key",
    ),
    "storage absent": (
        _archive(
            _pickled({"a": _tensor(0, (1,), (1,), storage=_Stored("storage", torch.FloatStorage, "7", "cpu", 4))})
        ),
        "damaged",
    ),
    "persistent id of another kind": (
        _archive(_pickled({"a": _tensor(0, (1,), (1,), storage=_Stored("module", "x"))})),
        "persistent id",
    ),
    "compressed": (_archive(_pickled({}), zipfile.ZIP_DEFLATED), "compressed"),
    "a compressed tensor": (_with_compressed("data/1"), "compressed"),
    "a bomb of a gigabyte": (_archive(b"0" * (64 << 20), zipfile.ZIP_DEFLATED), "compressed"),
    "an entry twice": (_archive(_pickled({}), x=b"", y=b"").replace(b"archive/y", b"archive/x"), "appears twice"),
    "two pickles": (_archive(_pickled({}), x=b"").replace(b"archive/x", b"b/data.pkl"), "one <name>/data.pkl|damaged"),
    "an entry named elsewhere by its own header": (
        GOOD.replace(b"archive/data/0", b"archive/data/1", 1),
        "damaged entry",
    ),
    "two entries in one place": (_overlapping(), "overlap|damaged"),
    "big-endian": (_archive(_pickled({}), byteorder=b"big"), "little-endian"),
    "no data.pkl": (_archive(b"").replace(b"data.pkl", b"data.txt"), "data.pkl"),
}


@pytest.mark.parametrize("name", TORCH)
def test_torch(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = TORCH[name]
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as raised:
        read_torch_file(path)
    assert "pytorch_model.bin" in str(raised.value)
    assert not (tmp_path / MARKER).exists()
    assert MARKER not in os.environ


def test_a_sound_torch_file_is_read(tmp_path: Path) -> None:
    """The counterpart of the cases above: the same builder, nothing wrong."""
    (tmp_path / "a").write_bytes(GOOD)
    np.testing.assert_array_equal(read_torch_file(tmp_path / "a")["a"], [[0, 1], [2, 3]])


def test_entries_that_claim_more_than_the_file(tmp_path: Path) -> None:
    central = GOOD.index(b"PK\x01\x02")
    # Offset 24 of a central directory entry: the uncompressed size.
    lying = GOOD[: central + 24] + struct.pack("<I", 0x7FFFFFFF) + GOOD[central + 28 :]
    (tmp_path / "a").write_bytes(lying)
    with pytest.raises(WeightsError, match="claims more than"):
        read_torch_file(tmp_path / "a")


def test_a_scripted_module_of_code_is_read_without_it(tmp_path: Path) -> None:
    """Only the code may be compressed, and nobody looks at it."""
    (tmp_path / "a").write_bytes(_with_compressed("code/__torch__.py"))
    np.testing.assert_array_equal(read_torch_file(tmp_path / "a")["a"], [0, 1, 2, 3])


def test_a_changed_byte_is_harmless(tmp_path: Path) -> None:
    """Any byte of the file: an error of ours, or the tensors."""
    path, refused = tmp_path / "a", 0
    for position in range(len(GOOD)):
        path.write_bytes(GOOD[:position] + bytes([GOOD[position] ^ 0x55]) + GOOD[position + 1 :])
        try:
            tensors = read_torch_file(path)
        except WeightsError:
            refused += 1
        else:
            np.testing.assert_array_equal(tensors["a"], [[0, 1], [2, 3]])
    assert refused > len(GOOD) / 2


def test_pickle_itself_would_have_executed_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the files above are made with does run code where it is unpickled."""
    monkeypatch.chdir(tmp_path)
    data = _pickled({"a": _Runs(os.mkdir, MARKER)})
    (tmp_path / "a").write_bytes(_archive(data))
    with pytest.raises(WeightsError, match="mkdir"):
        read_torch_file(tmp_path / "a")
    assert not (tmp_path / MARKER).exists()
    pickle.loads(data)
    assert (tmp_path / MARKER).exists()
