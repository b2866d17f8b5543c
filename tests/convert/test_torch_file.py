"""Files of torch, read and written without it: torch's own saving and loading is the oracle."""

import argparse
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from small_models import NO_TORCH

from plip_jax.convert import torch_writer
from plip_jax.convert.names import WeightsError
from plip_jax.convert.torch_file import read_torch_file
from plip_jax.convert.torch_writer import write_torch_file

DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


def saved(path: Path, state: Any) -> Path:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    torch.save(state, path)
    return path


def assert_equal_bits(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(ours) == list(expected)
    for name, array in expected.items():
        assert ours[name].dtype == array.dtype, name
        assert ours[name].shape == array.shape, name
        assert ours[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("dtype", [*DTYPES, "bfloat16"])
def test_every_type_of_torch(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    values = [[0, 1], [2, 3]] if dtype != "bool" else [[False, True], [True, True]]
    tensors = read_torch_file(saved(tmp_path / "a", {"a": torch.tensor(values, dtype=getattr(torch, dtype))}))
    assert tensors["a"].dtype.name == dtype
    np.testing.assert_array_equal(tensors["a"].astype(np.float32), values)
    assert not tensors["a"].flags.writeable


def test_views_and_shared_storages(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {"base": base, "transposed": base.T, "part": base[1:3, ::2], "scalar": base[2, 3], "empty": base[:0]}
    tensors = read_torch_file(saved(tmp_path / "a", state))
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensors[name], tensor.numpy(), err_msg=name)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", 0])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_a_training_checkpoint(tmp_path: Path, wrapper: str | int, prefix: str) -> None:
    """As open_clip's and others' training programs save it, with an optimizer that has moments."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "name": "a run",
        wrapper: {prefix + name: tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "scaler": {"scale": 65536.0, "_growth_tracker": 0},
        "best": torch.tensor(0.5),
        "args": None,
    }
    tensors = read_torch_file(saved(tmp_path / "a", checkpoint))
    expected = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert_equal_bits(tensors, expected)


def test_a_checkpoint_that_keeps_sizes_types_and_devices(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    others = {"shape": torch.Size([2, 3]), "dtype": torch.bfloat16, "device": torch.device("cuda:0")}
    checkpoint = {"state_dict": {"a": torch.arange(3.0)}, **others, "hyper_parameters": others}
    assert_equal_bits(read_torch_file(saved(tmp_path / "a", checkpoint)), {"a": np.arange(3, dtype=np.float32)})
    with pytest.raises(WeightsError, match="expected a dict of tensors, got also 'dtype': torch bfloat16"):
        read_torch_file(saved(tmp_path / "a", {"a": torch.arange(3.0), "dtype": torch.bfloat16}))


def test_a_few_tensors_beside_a_model_are_not_taken_for_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    tensor = torch.zeros(2)
    path = saved(tmp_path / "a", {"model": {"a": tensor, "b": tensor, "step": 3}, "statistics": {"mean": tensor}})
    with pytest.raises(WeightsError, match="got 'statistics' with 1, and 'model' with 2 beside other things"):
        read_torch_file(path)
    saved(path, {"model": {"a": tensor, "b": tensor}, "statistics": {"mean": tensor, "count": 3}})
    assert list(read_torch_file(path)) == ["a", "b"]


@pytest.mark.parametrize("beside", [argparse.Namespace(lr=1e-3), np.float64(0.5), {1, 2}])
def test_a_checkpoint_with_objects_of_others_says_what_to_save(tmp_path: Path, beside: Any) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    path = saved(tmp_path / "a", {"state_dict": {"a": torch.arange(3.0)}, "args": beside})
    with pytest.raises(
        WeightsError, match=r"refused, nothing was executed\. If you trust the file, .*\['state_dict'\]"
    ):
        read_torch_file(path)
    # What the message says helps.
    saved(path, torch.load(path, map_location="cpu", weights_only=False)["state_dict"])
    assert_equal_bits(read_torch_file(path), {"a": np.arange(3, dtype=np.float32)})


def test_a_view_with_its_sign_still_to_come_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    view = torch.complex(torch.zeros(3), torch.arange(1.0, 4.0)).conj().imag
    assert view.is_neg()
    with pytest.raises(WeightsError, match=r"a tensor with the metadata neg, which change.*resolve_neg\(\)"):
        read_torch_file(saved(tmp_path / "a", {"a": view}))
    ours = read_torch_file(saved(tmp_path / "a", {"a": view.resolve_neg().resolve_conj()}))
    np.testing.assert_array_equal(ours["a"], [-1, -2, -3])


def test_parameters_that_were_saved_as_such(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    model = torch.nn.Linear(3, 2)
    tensors = read_torch_file(saved(tmp_path / "a", dict(model.named_parameters())))
    assert_equal_bits(tensors, {name: tensor.numpy() for name, tensor in model.state_dict().items()})


def test_a_prefix_of_some_names_stays(tmp_path: Path) -> None:
    write_torch_file(tmp_path / "a", {"module.a": np.zeros(2), "b": np.zeros(2)})
    assert list(read_torch_file(tmp_path / "a")) == ["module.a", "b"]


def make_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {dtype: rng.integers(0, 2, (2, 3)).astype(dtype) for dtype in DTYPES}
    return tensors | {
        "bfloat16": rng.normal(size=5).astype(ml_dtypes.bfloat16),
        "nan and infinity": np.asarray([np.nan, np.inf, -0.0], np.float32),
        "scalar": np.asarray(7, np.int64),
        "transposed": rng.normal(size=(3, 4)).astype(np.float32).T,
        "empty": np.zeros((0, 4), np.float32),
        "a.näme": np.ones((1, 1, 2, 1), np.float32),
    }


def test_torch_loads_what_is_written(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    tensors = make_tensors()
    write_torch_file(tmp_path / "model.pt", tensors)
    for mapped in (False, True):
        loaded = torch.load(tmp_path / "model.pt", weights_only=True, mmap=mapped)
        assert all(tensor.is_contiguous() for tensor in loaded.values())
        bfloat16 = loaded.pop("bfloat16").view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        ours = {name: tensor.numpy() for name, tensor in loaded.items()} | {"bfloat16": bfloat16}
        assert_equal_bits({name: ours[name] for name in tensors}, tensors)


@settings(max_examples=40, deadline=None)  # the disk is slow at times
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),  # a lone surrogate is no UTF-8
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: numpy_strategies.arrays(
                dtype, numpy_strategies.array_shapes(min_dims=0, max_side=4, min_side=0)
            )
        ),
        max_size=5,
    )
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray]) -> None:
    path = tmp_path_factory.mktemp("torch") / "model.pt"
    # A prefix of torch's wrappers is taken off.
    tensors = {f"a.{name}": array for name, array in tensors.items()}
    write_torch_file(path, tensors)
    assert_equal_bits(read_torch_file(path), tensors)


def test_the_bytes_depend_on_the_tensors_only(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_torch_file(tmp_path / name / "model.pt", make_tensors())
    assert (tmp_path / "a" / "model.pt").read_bytes() == (tmp_path / "b" / "model.pt").read_bytes()


def test_tensors_are_stored_and_aligned(tmp_path: Path) -> None:
    write_torch_file(tmp_path / "model.pt", make_tensors())
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        assert archive.testzip() is None
        assert archive.read("model/version") == b"3\n"
        assert archive.read("model/byteorder") == b"little"
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert (info.header_offset + 30 + len(info.filename) + len(info.extra)) % 64 == 0, info.filename


def test_a_type_without_a_storage_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    write_torch_file(tmp_path / "model.pt", {"a": np.zeros(2, np.float32)})
    with pytest.raises(WeightsError, match="no storage for b of complex64, c of uint16"):
        write_torch_file(tmp_path / "model.pt", {"b": np.zeros(2, np.complex64), "c": np.zeros(2, np.uint16)})
    assert list(read_torch_file(tmp_path / "model.pt")) == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_torch_file(tmp_path / "model.pt", {"a": np.zeros(2, np.float32)})

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch_writer.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_torch_file(tmp_path / "model.pt", {"b": np.zeros(2, np.float32)})
    monkeypatch.undo()
    assert list(read_torch_file(tmp_path / "model.pt")) == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_reading_copies_nothing(tmp_path: Path) -> None:
    write_torch_file(tmp_path / "model.pt", {"a": np.ones((4 << 20,), np.float32)})
    tracemalloc.start()
    try:
        tensors = read_torch_file(tmp_path / "model.pt")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20  # of 16 MB of tensors
    assert tensors["a"].sum() == 4 << 20
    (tmp_path / "model.pt").unlink()  # the arrays keep the mapped file
    assert tensors["a"].sum() == 4 << 20
