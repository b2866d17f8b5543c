"""Telling sources apart, the errors of those that are none, the hash of the weights, and weights between two models."""

import argparse
import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from small_models import NO_TORCH, make_config, make_model, make_params, make_torch_model, save_torch_folder

from plip_jax.convert import load
from plip_jax.convert.hf import differing_params, write_hf
from plip_jax.convert.load import LoadedModel, SourceError, hash_params, interpolate_models, load_model
from plip_jax.convert.names import from_params
from plip_jax.convert.open_clip_config import config_to_open_clip
from plip_jax.convert.torch_writer import write_torch_file
from plip_jax.data.tokenizer import train_tokenizer
from plip_jax.training.checkpoint import CheckpointConfig, Checkpoints, Description
from plip_jax.training.state import TrainState


def save_hf(folder: Path, model: LoadedModel) -> Path:
    write_hf(folder, model.config, model.params, model.tokenizer, model.preprocessing)
    return folder


def test_a_folder_is_recognised_by_its_content(tmp_path: Path) -> None:
    model = make_model()
    # The name would do for a hub id; the folder is what counts.
    folder = save_hf(tmp_path / "vinid" / "plip", model)
    loaded = load_model(folder)
    assert (loaded.source, loaded.weights_file, loaded.step) == (str(folder), "model.safetensors", None)
    assert loaded.weights_hash == model.weights_hash
    with pytest.raises(SourceError, match="this model has one only"):
        load_model(folder, which="best")
    with pytest.raises(SourceError, match="training run's moving average; this model has one weight only"):
        load_model(folder, weights="ema")


def save_workdir(workdir: Path, params: dict[str, Any], ema: dict[str, Any] | None = None) -> None:
    """A run whose only checkpoint is of step 3."""
    model = make_model()
    description = Description(model.config.to_dict(), model.preprocessing.to_dict(), {}, [])
    checkpoints = Checkpoints(workdir, CheckpointConfig())
    zero = jnp.asarray(0, jnp.int32)
    state = TrainState(jnp.asarray(3, jnp.int32), params, {}, ema=ema, skipped=zero, skipped_in_row=zero)
    checkpoints.save(state, description, model.tokenizer.files)
    checkpoints.close()


def test_a_workdir_of_training_is_recognised(tmp_path: Path) -> None:
    model = make_model()
    save_workdir(tmp_path, model.params)
    loaded = load_model(tmp_path)
    assert loaded.step == 3
    assert loaded.weights_file == "checkpoint of step 3"
    assert (loaded.config, loaded.preprocessing) == (model.config, model.preprocessing)
    assert differing_params(loaded.params, model.params) == []
    assert loaded.weights_hash == model.weights_hash
    assert loaded.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert loaded.tokenizer.folder is None  # it was in the checkpoint
    assert loaded.weights == "raw"
    with pytest.raises(ValueError, match="kept no moving average"):
        load_model(tmp_path, weights="ema")


def test_the_moving_average_is_taken_where_a_run_kept_one_and_siglips_bias_stays(tmp_path: Path) -> None:
    config = make_config()
    raw, ema = ({**make_params(config, seed), "logit_bias": np.asarray(-seed, np.float32)} for seed in (1, 2))
    save_workdir(tmp_path, raw, ema)
    found = {weights: load_model(tmp_path, weights=weights) for weights in ("auto", "raw", "ema")}
    for weights, params in (("auto", ema), ("ema", ema), ("raw", raw)):
        assert differing_params(found[weights].params, params) == [], weights
        assert found[weights].weights_hash == hash_params(params)
    assert [model.weights for model in found.values()] == ["ema", "raw", "ema"]
    assert found["auto"].weights_file == "checkpoint of step 3, moving average"
    assert found["raw"].weights_file == "checkpoint of step 3"
    assert found["auto"].params["logit_bias"] == -2


def test_a_model_between_two_says_what_it_is_made_of() -> None:
    start, end = make_model(seed=1), dataclasses.replace(make_model(), source="run", step=3)
    mixed = interpolate_models(start, end, 0.25)
    scale = [model.params["text"]["final_norm"]["scale"] for model in (start, end, mixed)]
    np.testing.assert_array_equal(scale[2], np.float32(0.75) * scale[0] + np.float32(0.25) * scale[1])
    assert (mixed.source, mixed.step, mixed.config) == ("run", 3, end.config)
    assert mixed.weights_hash == hash_params(mixed.params) not in (start.weights_hash, end.weights_hash)
    assert mixed.mixed_from == {"alpha": 0.25, "start": start.describe(), "end": end.describe()}
    assert mixed.describe()["mixed_from"]["start"]["weights_hash"] == start.weights_hash
    assert interpolate_models(start, end, 1).weights_hash == end.weights_hash
    # Two folders of one model may differ in the convention that pools; they are still one network.
    argmax = dataclasses.replace(start.config, text=dataclasses.replace(start.config.text, eot_pooling="argmax"))
    assert interpolate_models(dataclasses.replace(start, config=argmax), end, 0).config == end.config


def test_models_of_two_networks_or_vocabularies_are_not_mixed() -> None:
    model = make_model()
    other = dataclasses.replace(model, config=make_config(activation="gelu"))
    with pytest.raises(SourceError, match="not of one network, they differ in activation:"):
        interpolate_models(model, other, 0.5)
    tokenizer = train_tokenizer(["mucus and more mucus"], vocab_size=540, context_length=16)
    with pytest.raises(SourceError, match="differ in the tokenizer's vocabulary:"):
        interpolate_models(dataclasses.replace(model, tokenizer=tokenizer), model, 0.5)
    with pytest.raises(ValueError, match="alpha: expected"):
        interpolate_models(model, model, 2.0)


def test_the_flags_of_a_program_choose_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    load.add_model_flags(parser)
    assert parser.parse_args(["--checkpoint", "run"]).weights == "auto"
    assert parser.parse_args(["--checkpoint", "run", "--weights", "raw"]).weights == "raw"
    flags = parser.parse_args(["--checkpoint", "w.pt", "--tokenizer", "vocabulary", "--activation", "gelu"])
    assert (flags.tokenizer, flags.activation) == ("vocabulary", "gelu")
    for wrong in (["--weights", "average"], ["--activation", "relu"]):
        with pytest.raises(SystemExit):
            parser.parse_args(["--checkpoint", "run", *wrong])
        assert wrong[0] in capsys.readouterr().err


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


def save_open_clip(folder: Path, *, seed: int = 0) -> LoadedModel:
    """The files of an open_clip repository as QuiltNet-B-32 has them: its weights as a .bin, and HF's tokenizer."""
    model = make_model(seed)
    values = config_to_open_clip(model.config, last_token_id=model.tokenizer.vocab_size - 1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": values, "preprocess_cfg": {}}))
    write_torch_file(folder / "open_clip_pytorch_model.bin", from_params(model.params, model.config, "openai"))
    model.tokenizer.save(folder)
    return model


def test_an_open_clip_folder_is_read_where_hugging_face_has_no_weights(tmp_path: Path) -> None:
    open_clip, hf = save_open_clip(tmp_path), make_model(1)
    loaded = load_model(tmp_path)
    assert (loaded.weights_file, loaded.weights_hash) == ("open_clip_pytorch_model.bin", open_clip.weights_hash)
    (tmp_path / "config.json").write_text('{"model_type": "clip", "text_config": {}, "vision_config": {}}')
    assert load_model(tmp_path).weights_hash == open_clip.weights_hash
    save_hf(tmp_path, hf)
    assert load_model(tmp_path).weights_hash == hf.weights_hash
    # Of its two weights files open_clip prefers the safe one, as it does itself.
    (tmp_path / "model.safetensors").rename(tmp_path / "other")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(SourceError, match=r"open_clip_model\.safetensors: .*got a file that begins b'damaged'"):
        load_model(tmp_path)


def test_of_two_files_of_weights_neither_is_guessed(tmp_path: Path) -> None:
    model = make_model()
    for name in ("last.pt", "best.pt"):
        write_torch_file(tmp_path / name, from_params(model.params, model.config, "openai"))
    with pytest.raises(SourceError, match=r"a folder with one file of weights.*found best\.pt, last\.pt"):
        load_model(tmp_path)


def test_a_workdir_has_its_own_tokenizer_and_activation(tmp_path: Path) -> None:
    save_workdir(tmp_path, make_model().params)
    with pytest.raises(SourceError, match="has its own tokenizer and activation; pass neither"):
        load_model(tmp_path, tokenizer=tmp_path)
    with pytest.raises(SourceError, match="pass neither"):
        load_model(tmp_path, activation="gelu")


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
    hub, cache = save_hf(tmp_path / "hub", make_model()), tmp_path / "cache"
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
    shutil.rmtree(hub)
    shutil.rmtree(cache)
    cache.mkdir()
    save_open_clip(hub)
    assert load_model("owner/model").weights_file == "open_clip_pytorch_model.bin"
    (hub / "open_clip_pytorch_model.bin").rename(hub / "epoch_9.pt")
    (cache / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(SourceError, match=r"hub id owner/model: .*expected a Hugging Face CLIP folder"):
        load_model("owner/model")
    assert load.HUB_ID.fullmatch("owner/model/deeper") is None
