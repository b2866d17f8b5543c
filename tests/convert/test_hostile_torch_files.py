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
    "NEWOBJ opcode": (_archive(b"\x80\x02ccollections\nOrderedDict\n)\x81."), "NEWOBJ"),
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
    "nested dicts": (_archive(_pickled({"state_dict": {"a": 1}})), "'state_dict': dict"),
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
    "storage of doubles": (_saved({"a": torch.zeros(2, dtype=torch.float64)}), r"torch\.DoubleStorage"),
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
