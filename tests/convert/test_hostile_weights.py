"""Damaged, lying and malicious weights files: each gives an error that names the file, and nothing is executed."""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import flax.serialization
import msgpack
import numpy as np
import pytest
import safetensors.numpy
from small_models import NO_TORCH, make_model

from plip_jax.convert.hf import WEIGHTS_FILES, read_hf
from plip_jax.convert.hf_config import HFConfigError
from plip_jax.convert.msgpack_file import read_msgpack_file
from plip_jax.convert.names import WeightsError
from plip_jax.convert.safetensors_file import read_safetensors_file, read_safetensors_shards
from plip_jax.export import export

# ---- safetensors ----------------------------------------------------------------------------------------------------


def _safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(shape: Any = (2,), begin: Any = 0, end: Any = 8, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS = {
    "empty file": b"",
    "cut in the length": b"\x08\0\0",
    "header longer than the file": _safetensors({}, length=1 << 40),
    "header of 2^64 - 1 bytes": _safetensors({}, length=(1 << 64) - 1),
    "no JSON": _safetensors(b"{{{{"),
    "JSON too deep": _safetensors(b"[" * 200_000),
    "not UTF-8": _safetensors(b"\xff\xfe{}"),
    "a list": _safetensors([]),
    "entry is a number": _safetensors({"a": 3}),
    "no offsets": _safetensors({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "offsets beyond the file": _safetensors({"a": _entry([2], 0, 8)}, bytes(4)),
    "offsets reversed": _safetensors({"a": _entry([2], 8, 0)}, bytes(8)),
    "negative offset": _safetensors({"a": _entry([2], -8, 0)}, bytes(8)),
    "offset is a string": _safetensors({"a": _entry([2], "0", 8)}, bytes(8)),
    "shape larger than the bytes": _safetensors({"a": _entry([3])}, bytes(8)),
    "shape overflows 64 bits": _safetensors({"a": _entry([1 << 33, 1 << 33])}, bytes(8)),
    "negative shape": _safetensors({"a": _entry([-1, -2])}, bytes(8)),
    "shape of floats": _safetensors({"a": _entry([2.0])}, bytes(8)),
    "unknown type": _safetensors({"a": _entry(dtype="F8_E4M3")}, bytes(8)),
    "overlap": _safetensors({"a": _entry(), "b": _entry([2], 4, 12)}, bytes(12)),
    "gap": _safetensors({"a": _entry(), "b": _entry([2], 12, 20)}, bytes(20)),
    "bytes left over": _safetensors({"a": _entry()}, bytes(12)),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(SAFETENSORS[name])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        read_safetensors_file(path)


def test_a_sound_safetensors_file_is_read(tmp_path: Path) -> None:
    """The counterpart of the cases above: the same builder, nothing wrong."""
    (tmp_path / "a").write_bytes(
        _safetensors({"__metadata__": {"x": "y"}, "a": _entry()}, np.float32([1, 2]).tobytes())
    )
    np.testing.assert_array_equal(read_safetensors_file(tmp_path / "a")["a"], [1, 2])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "weight_map"),
        ("{", "weight_map"),
        ('{"weight_map": {"a": 1}}', "file names"),
        ('{"weight_map": {"a": "absent.safetensors"}}', "absent.safetensors"),
        ('{"weight_map": {"a": "../part.safetensors"}}', "not of files beside it"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "not of files beside it"),
        ('{"weight_map": {"b": "part.safetensors"}}', r"lacks \['b'\] and holds, unlisted, \['a'\]"),
    ],
)
def test_index_of_shards(tmp_path: Path, index: str, message: str) -> None:
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32)}, tmp_path / "part.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(WeightsError, match=message):
        read_safetensors_shards(tmp_path / "model.safetensors.index.json")


# ---- flax_model.msgpack ---------------------------------------------------------------------------------------------


def _ndarray(shape: Any, dtype: Any, data: Any, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


MSGPACK = {
    "empty file": b"",
    "not msgpack": b"\xc1" * 20,
    "a number": msgpack.packb(3),
    "a list": msgpack.packb([1, 2]),
    "a string leaf": msgpack.packb({"a": "x"}),
    "numbers as keys": msgpack.packb({1: _ndarray([1], "float32", bytes(4))}),
    "two documents": msgpack.packb({}) + msgpack.packb({}),
    "cut short": msgpack.packb({"a": _ndarray([2], "float32", bytes(8))})[:-3],
    "array of 2^32 - 1 announced": b"\xdd\xff\xff\xff\xff",
    "too deep": b"\x81\xa1a" * 100_000 + b"\xc0",
    "shape larger than the bytes": msgpack.packb({"a": _ndarray([9], "float32", bytes(8))}),
    "shape overflows": msgpack.packb({"a": _ndarray([1 << 40, 1 << 40], "float32", bytes(8))}),
    "negative shape": msgpack.packb({"a": _ndarray([-1], "float32", bytes(8))}),
    "objects": msgpack.packb({"a": _ndarray([1], "object", bytes(8))}),
    "type is no string": msgpack.packb({"a": _ndarray([1], 4, bytes(4))}),
    "bytes are a list": msgpack.packb({"a": _ndarray([1], "float32", [1])}),
    "complex": msgpack.packb({"a": msgpack.ExtType(2, msgpack.packb((1.0, 2.0)))}),
    "unknown extension": msgpack.packb({"a": msgpack.ExtType(42, b"x")}),
    "extension is no msgpack": msgpack.packb({"a": msgpack.ExtType(1, b"\xc1")}),
    "chunk missing": msgpack.packb(
        {
            "a": {
                "__msgpack_chunked_array__": True,
                "shape": {"0": 2},
                "chunks": {"1": _ndarray([2], "float32", bytes(8))},
            }
        }
    ),
    "chunks of another shape": msgpack.packb(
        {
            "a": {
                "__msgpack_chunked_array__": True,
                "shape": {"0": 3},
                "chunks": {"0": _ndarray([2], "float32", bytes(8))},
            }
        }
    ),
}


@pytest.mark.parametrize("name", MSGPACK)
def test_msgpack(tmp_path: Path, name: str) -> None:
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(MSGPACK[name])
    with pytest.raises(WeightsError, match=r"flax_model\.msgpack"):
        read_msgpack_file(path)


# ---- whole folders --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(make_model(), tmp_path_factory.mktemp("sound") / "hf")


def test_a_config_that_lies_about_sizes_allocates_nothing(sound_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound_folder, tmp_path / "hf"))
    values = json.loads((folder / "config.json").read_text())
    values["text_config"] |= {"hidden_size": 1 << 20, "num_hidden_layers": 256, "intermediate_size": 1 << 20}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match="tensors do not fit"):
        read_hf(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 100_000])
def test_a_config_that_is_no_json_object(sound_folder: Path, tmp_path: Path, content: bytes) -> None:
    folder = Path(shutil.copytree(sound_folder, tmp_path / "hf"))
    (folder / "config.json").write_bytes(content)
    with pytest.raises(HFConfigError, match=r"config\.json: expected a JSON object"):
        read_hf(folder)


@pytest.mark.parametrize("kind", ["model.safetensors", "flax_model.msgpack", "pytorch_model.bin"])
def test_random_damage_is_either_named_or_harmless(tmp_path: Path, kind: str) -> None:
    """Flipped, cut, doubled and removed bytes: a WeightsError with the file's name, or tensors; nothing else."""
    tensors = {name: np.arange(6, dtype=np.float32).reshape(2, 3) for name in ("a.weight", "b.bias")}
    path = tmp_path / kind
    if kind == "model.safetensors":
        safetensors.numpy.save_file(tensors, path)
    elif kind == "pytorch_model.bin":
        torch = pytest.importorskip("torch", reason=NO_TORCH)
        torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, path)
    else:
        path.write_bytes(flax.serialization.msgpack_serialize(tensors))
    read = WEIGHTS_FILES[kind][0]
    sound = path.read_bytes()
    assert len(read(path)) == 2
    rng = np.random.default_rng(0)
    count = int(os.environ.get("PLIP_JAX_FUZZ", "200"))
    messages: list[str] = []
    for _ in range(count):
        damaged = bytearray(sound)
        for _ in range(rng.integers(1, 4)):
            start, end = np.sort(rng.integers(0, len(damaged) + 1, 2))
            match rng.integers(0, 4):
                case 0:
                    damaged[min(start, len(damaged) - 1)] = rng.integers(0, 256)
                case 1:
                    del damaged[start : min(end, start + 16)]
                case 2:
                    damaged[start:start] = damaged[start : min(end, start + 16)]
                case _:
                    damaged = damaged[: max(end, 1)]
        path.write_bytes(damaged)
        try:
            read(path)
        except WeightsError as error:
            messages.append(str(error))
    assert all(kind in message for message in messages)
    assert len(messages) > count / 2
