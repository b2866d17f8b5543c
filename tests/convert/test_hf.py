"""Hugging Face folders in and out: bit-equal round trips, the order of weights files, and one error for all faults."""

import dataclasses
import json
import shutil
from pathlib import Path

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from small_models import NO_TORCH, make_config, make_model, make_params, make_torch_model, save_torch_folder

from plip_jax.convert import hf
from plip_jax.convert.hf import WEIGHTS_FILES, differing_params, read_hf, write_hf
from plip_jax.convert.hf_config import HFConfigError
from plip_jax.convert.names import WeightsError, from_params
from plip_jax.convert.program_folder import write_small_files

torch = pytest.importorskip("torch", reason=NO_TORCH)


@pytest.fixture(scope="module")
def torch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_torch_folder(tmp_path_factory.mktemp("torch") / "hf", make_torch_model())


@pytest.fixture
def folder(torch_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(torch_folder, tmp_path / "copy"))


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def test_transformers_folder_comes_back_bit_equal(torch_folder: Path, tmp_path: Path) -> None:
    model = read_hf(torch_folder)
    write_hf(tmp_path / "out", model.config, model.params, model.tokenizer, model.preprocessing)
    before, after = _tensors(torch_folder), _tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == np.float32
        assert after[name].tobytes() == tensor.tobytes(), name
        assert after[name].shape == tensor.shape, name


def test_our_model_comes_back_bit_equal(tmp_path: Path) -> None:
    model = make_model()
    write_hf(tmp_path, model.config, model.params, model.tokenizer, model.preprocessing)
    read = read_hf(tmp_path)
    assert differing_params(model.params, read.params) == []
    assert (read.config, read.preprocessing) == (model.config, model.preprocessing)
    assert read.tokenizer.fingerprint == model.tokenizer.fingerprint


def test_the_written_files_are_those_all_versions_load(tmp_path: Path) -> None:
    model = make_model()
    write_hf(tmp_path, model.config, model.params, model.tokenizer, model.preprocessing)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "merges.txt",
        "model.safetensors",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    text = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert text["eos_token_id"] == model.tokenizer.eot_token_id
    assert text["bos_token_id"] == model.tokenizer.bot_token_id
    assert text["vocab_size"] == model.tokenizer.vocab_size
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 16


def _flax_tree(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """HF's Flax naming, derived here from the torch names and ranks, not from the table under test."""
    flat = {}
    for name, tensor in tensors.items():
        *parents, last = name.split(".")
        if last == "weight" and "embedding" in parents[-1] and tensor.ndim == 2:
            last = "embedding"
        elif last == "weight" and tensor.ndim == 1:
            last = "scale"
        elif last == "weight":
            last, tensor = "kernel", tensor.T if tensor.ndim == 2 else tensor.transpose(2, 3, 1, 0)
        flat[(*parents, last)] = np.ascontiguousarray(tensor) if tensor.ndim else tensor
    nested: dict = {}
    for path, tensor in flat.items():
        node = nested
        for parent in path[:-1]:
            node = node.setdefault(parent, {})
        node[path[-1]] = tensor
    return nested


def _write_weights(folder: Path, name: str) -> None:
    """Replace model.safetensors by the same weights in another file."""
    tensors = _tensors(folder)
    (folder / "model.safetensors").unlink()
    if name == "flax_model.msgpack":
        (folder / name).write_bytes(flax.serialization.msgpack_serialize(_flax_tree(tensors)))
    elif name == "pytorch_model.bin":
        state = {key: torch.from_numpy(value.copy()) for key, value in tensors.items()}
        # As old versions saved it, with the buffer of positions; and with views that only their strides explain.
        state["text_model.embeddings.position_ids"] = torch.arange(16).expand((1, -1))
        state["visual_projection.weight"] = state["visual_projection.weight"].t().contiguous().t()
        both = torch.stack([state["text_model.final_layer_norm.weight"], state["text_model.final_layer_norm.bias"]])
        state["text_model.final_layer_norm.weight"], state["text_model.final_layer_norm.bias"] = both
        torch.save(state, folder / name)
    elif name == "model.safetensors.index.json":
        names = sorted(tensors)
        shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for file, held in shards.items():
            safetensors.numpy.save_file({key: tensors[key] for key in held}, folder / file)
        weight_map = {key: file for file, held in shards.items() for key in held}
        (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("name", [name for name in WEIGHTS_FILES if name != "model.safetensors"])
def test_every_weights_file_gives_the_same_parameters(torch_folder: Path, folder: Path, name: str) -> None:
    expected = read_hf(torch_folder)
    assert expected.weights_file == "model.safetensors"
    _write_weights(folder, name)
    model = read_hf(folder)
    assert model.weights_file == name
    assert differing_params(model.params, expected.params) == []


def test_flax_file_with_chunked_arrays(torch_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 1000)  # bytes; 2^30 in Flax
    _write_weights(folder, "flax_model.msgpack")
    assert b"__msgpack_chunked_array__" in (folder / "flax_model.msgpack").read_bytes()
    assert differing_params(read_hf(folder).params, read_hf(torch_folder).params) == []


@pytest.mark.parametrize("kind", ["safetensors", "torch", "flax"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_become_float32_exactly(folder: Path, kind: str, dtype: str) -> None:
    half = {
        name: np.asarray(value.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16))
        for name, value in _tensors(folder).items()
    }
    (folder / "model.safetensors").unlink()
    if kind == "flax":
        (folder / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(_flax_tree(half)))
    else:
        state = {
            name: torch.from_numpy(value.astype(np.float32)).to(getattr(torch, dtype)) for name, value in half.items()
        }
        if kind == "torch":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            from safetensors.torch import save_file as save_torch_tensors  # imports torch

            save_torch_tensors(state, folder / "model.safetensors")
    model = read_hf(folder)
    for name, tensor in from_params(model.params, model.config, "hf").items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, half[name].astype(np.float32), err_msg=name)


def test_safetensors_are_preferred_and_a_folder_without_weights_says_what_it_wants(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert read_hf(folder).weights_file == "model.safetensors"
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors, .*pytorch_model\.bin, got .*weights\.safetensors"):
        read_hf(folder)


def test_every_fault_of_the_tensors_is_in_one_error(folder: Path) -> None:
    tensors = _tensors(folder)
    del tensors["logit_scale"], tensors["text_model.encoder.layers.1.mlp.fc1.bias"]
    tensors["visual_projection.weight"] = tensors["visual_projection.weight"][:, :7].copy()
    tensors["vision_model.post_layernorm.bias"] = tensors["vision_model.post_layernorm.bias"].astype(np.int64)
    tensors["classifier.weight"] = np.zeros((2, 3), np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError) as raised:
        read_hf(folder)
    message = str(raised.value)
    assert "5 tensors" in message
    assert "missing: logit_scale ()" in message
    assert "missing: text_model.encoder.layers.1.mlp.fc1.bias (64,)" in message
    assert "shape: visual_projection.weight expected (16, 32), got (16, 7)" in message
    assert "dtype: vision_model.post_layernorm.bias expected one of float32, float16, bfloat16, got int64" in message
    assert "extra: classifier.weight (2, 3)" in message


def test_preprocessing_inside_processor_config(folder: Path) -> None:
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert read_hf(folder).preprocessing.image_size == 32
    (folder / "processor_config.json").unlink()
    with pytest.raises(HFConfigError, match=r"preprocessor_config\.json or processor_config\.json, got neither"):
        read_hf(folder)


def test_files_of_different_models_are_refused(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    for section, field, value, message in (
        ("text_config", "vocab_size", 500, "eot_token_id"),
        ("text_config", "eos_token_id", 3, "end-of-text id"),
        ("vision_config", "image_size", 64, "expected images of vision_config.image_size = 64"),
    ):
        changed = {**values, section: {**values[section], field: value}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            read_hf(folder)


def test_writing_foreign_parameters_is_refused(tmp_path: Path) -> None:
    model = make_model()
    del model.params["vision"]["class_embedding"]
    with pytest.raises(WeightsError, match="vision/class_embedding"):
        hf.write_hf(tmp_path, model.config, model.params, model.tokenizer, model.preprocessing)


def test_a_table_with_more_rows_than_the_vocabulary_is_written(tmp_path: Path) -> None:
    """Pooling at the largest id is pooling at end-of-text: the rows beyond the vocabulary are no token's."""
    config = make_config()
    text = dataclasses.replace(config.text, vocab_size=config.text.vocab_size + 8, eot_pooling="argmax")
    config = dataclasses.replace(config, text=text)
    model = dataclasses.replace(make_model(), config=config, params=make_params(config))
    write_hf(tmp_path / "hf", config, model.params, model.tokenizer, model.preprocessing)
    (tmp_path / "programs").mkdir()
    write_small_files(tmp_path / "programs", model)
    for folder in ("hf", "programs"):
        written = json.loads((tmp_path / folder / "config.json").read_text())["text_config"]
        assert (written["vocab_size"], written["eos_token_id"]) == (568, 559)
    assert differing_params(model.params, read_hf(tmp_path / "hf").params) == []
