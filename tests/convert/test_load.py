"""Telling sources apart, the errors of those that are none, and the hash of the weights."""

import shutil
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from small_models import NO_TORCH, make_model, make_torch_model, save_torch_folder

from plip_jax.convert import load
from plip_jax.convert.hf import differing_params
from plip_jax.convert.load import SourceError, hash_params, load_model
from plip_jax.export import export
from plip_jax.training.checkpoint import CheckpointConfig, Checkpoints, Description
from plip_jax.training.state import TrainState


def test_a_folder_is_recognised_by_its_content(tmp_path: Path) -> None:
    model = make_model()
    # The name would do for a hub id; the folder is what counts.
    folder = export(model, tmp_path / "vinid" / "plip")
    loaded = load_model(folder)
    assert (loaded.source, loaded.weights_file, loaded.step) == (str(folder), "model.safetensors", None)
    assert loaded.weights_hash == model.weights_hash
    with pytest.raises(SourceError, match="this model has one only"):
        load_model(folder, which="best")


def test_a_workdir_of_training_is_recognised(tmp_path: Path) -> None:
    model = make_model()
    description = Description(model.config.to_dict(), model.preprocessing.to_dict(), {}, [])
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    zero = jnp.asarray(0, jnp.int32)
    state = TrainState(jnp.asarray(3, jnp.int32), model.params, {}, ema=None, skipped=zero, skipped_in_row=zero)
    checkpoints.save(state, description, model.tokenizer.files)
    checkpoints.close()
    loaded = load_model(tmp_path)
    assert loaded.step == 3
    assert loaded.weights_file == "checkpoint of step 3"
    assert (loaded.config, loaded.preprocessing) == (model.config, model.preprocessing)
    assert differing_params(loaded.params, model.params) == []
    assert loaded.weights_hash == model.weights_hash
    assert loaded.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert loaded.tokenizer.folder is None  # it was in the checkpoint


def test_the_hash_is_of_the_weights_and_not_of_their_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    reference = make_torch_model()
    folder = save_torch_folder(tmp_path / "hf", reference)
    expected = load_model(folder).weights_hash
    torch.save(reference.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    loaded = load_model(folder)
    assert loaded.weights_file == "pytorch_model.bin"
    assert loaded.weights_hash == expected

    changed = make_model()
    assert hash_params(changed.params) == make_model().weights_hash
    scale = changed.params["vision"]["pre_norm"]["scale"]
    scale[0] = np.nextafter(scale[0], np.float32(2))  # one bit
    assert hash_params(changed.params) != make_model().weights_hash


def test_a_folder_that_is_no_model_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "tiles").mkdir()
    with pytest.raises(SourceError, match=r"config\.json and one of model\.safetensors.* found notes\.txt, tiles/"):
        load_model(tmp_path)
    with pytest.raises(SourceError, match=r"expected a model folder.*got a file"):
        load_model(tmp_path / "notes.txt")
    with pytest.raises(SourceError, match=r"expected a model folder.*nothing at that path"):
        load_model(tmp_path / "absent" / "folder")
    with pytest.raises(SourceError, match="nothing at that path"):
        load_model("ViT-B-32")


def test_a_hub_id_without_the_network_says_which_files_to_fetch_and_is_quick() -> None:
    start = time.monotonic()
    with pytest.raises(SourceError) as raised:
        load_model("vinid/plip")  # HF_HUB_OFFLINE=1: tests/conftest.py
    assert time.monotonic() - start < 5  # a second, most of it the import of huggingface_hub
    message = str(raised.value)
    for expected in (
        "https://huggingface.co/vinid/plip",
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "model.safetensors",
        "pass that folder",
    ):
        assert expected in message


def test_only_one_format_of_weights_is_fetched_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, cache = export(make_model(), tmp_path / "hub"), tmp_path / "cache"
    (hub / "pytorch_model.bin").touch()
    (hub / "tf_model.h5").touch()
    cache.mkdir()

    def snapshot_download(repo_id: str, allow_patterns: list[str]) -> str:
        assert repo_id == "owner/model"
        for pattern in allow_patterns:
            for path in hub.glob(pattern):
                shutil.copy(path, cache)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert load_model("owner/model").weights_file == "model.safetensors"
    assert not (cache / "pytorch_model.bin").exists()
    assert not (cache / "tf_model.h5").exists()
    assert load._HUB_ID.fullmatch("owner/model/deeper") is None
