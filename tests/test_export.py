"""The export program: a folder that appears whole or not at all, and never over something else."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_models import make_model

from plip_jax import export as export_program
from plip_jax.convert.hf import differing_params, read_hf
from plip_jax.convert.load import LoadedModel, load_model
from plip_jax.export import ExportError, export, main
from plip_jax.training.interpolation import interpolate


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(make_model(), tmp_path_factory.mktemp("source") / "hf")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_command_writes_the_same_model(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    assert main(["--checkpoint", str(source), "--format", "hf", "--out", str(out)]) == 0
    assert _names(out) == _names(source)
    for path in source.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    assert _names(out.parent) == ["out"]  # no temporary folder left
    printed = capsys.readouterr().out
    assert str(out / "model.safetensors") in printed
    assert load_model(source).weights_hash[:16] in printed


def test_an_existing_folder_is_refused_unless_it_is_an_earlier_export(source: Path, tmp_path: Path) -> None:
    out = export(make_model(seed=1), tmp_path / "out")
    arguments = ["--checkpoint", str(source), "--out", str(out)]
    assert main(arguments) == 1
    assert differing_params(read_hf(out).params, make_model(seed=1).params) == []
    assert main([*arguments, "--overwrite"]) == 0
    assert differing_params(read_hf(out).params, make_model().params) == []
    assert _names(tmp_path) == ["out"]

    home = tmp_path / "home"
    (home / "thesis").mkdir(parents=True)
    (home / "config.json").touch()
    with pytest.raises(ExportError, match=r"--overwrite replaces an earlier export.*got thesis"):
        export(make_model(), home, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="got a file"):
        export(make_model(), tmp_path / "file", overwrite=True)
    assert (home / "thesis").is_dir()


def test_a_failed_export_leaves_the_target_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = export(make_model(), tmp_path / "out")

    def fails(model: LoadedModel, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setitem(export_program.EXPORTERS, "hf", fails)
    with pytest.raises(OSError, match="disk full"):
        export(make_model(seed=1), out, overwrite=True)
    with pytest.raises(OSError, match="disk full"):
        export(make_model(seed=1), tmp_path / "fresh")
    assert _names(tmp_path) == ["out"]
    assert differing_params(read_hf(out).params, make_model().params) == []


def test_what_is_read_back_must_be_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(folder: Path, config, params, tokenizer, preprocessing) -> None:
        other = make_model(seed=1)
        write_hf(folder, config, {**params, "text": other.params["text"]}, tokenizer, preprocessing)

    write_hf = export_program.write_hf
    monkeypatch.setattr(export_program, "write_hf", forgetful)
    with pytest.raises(ExportError, match="parameters differ: text/blocks/attention/key/bias"):
        export(make_model(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_usage_is_said_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_program, "load_model", lambda *_, **__: pytest.fail("loaded"))
    assert main(["--checkpoint", "x/y", "--format", "onyx", "--out", str(tmp_path / "out")]) == 1
    assert "unknown format 'onyx'; known: hf" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert main(["--checkpoint", "x/y", "--out", str(tmp_path / "full")]) == 1
    assert "--overwrite" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--checkpoint", "x/y", "--which", "newest", "--out", str(tmp_path / "out")])
    assert "expected latest, best or a step" in capsys.readouterr().err


def test_a_model_that_hf_cannot_express_is_refused(tmp_path: Path) -> None:
    model = make_model()
    text = dataclasses.replace(model.config.text, eot_token_id=2)
    with pytest.raises(ValueError, match="end-of-text"):
        export(dataclasses.replace(model, config=dataclasses.replace(model.config, text=text)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_between_a_start_and_the_checkpoint_are_shipped(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = export(make_model(seed=1), tmp_path / "start")
    arguments = ["--checkpoint", str(source), "--wise-ft-from", str(start)]
    assert main([*arguments, "--alpha", "0.5", "--out", str(tmp_path / "half")]) == 0
    expected = interpolate(make_model(seed=1).params, make_model().params, 0.5)
    assert differing_params(read_hf(tmp_path / "half").params, expected) == []
    assert f", 0.5 of the way from {start} (sha256 {load_model(tmp_path / 'half').weights_hash[:16]}" in (
        capsys.readouterr().out
    )
    for wrong, message in (
        (["--wise-ft-from", str(start)], "--wise-ft-from START and --alpha go together"),
        (["--alpha", "0.5"], "--wise-ft-from START and --alpha go together"),
        (["--wise-ft-from", str(start), "--alpha", "1.5"], "from 0 (start) to 1 (checkpoint), got '1.5'"),
    ):
        with pytest.raises(SystemExit):
            main(["--checkpoint", str(source), "--out", str(tmp_path / "no"), *wrong])
        assert message in capsys.readouterr().err
    assert _names(tmp_path) == ["half", "start"]


def test_siglips_bias_is_left_out_with_a_warning(source: Path, tmp_path: Path) -> None:
    model = make_model()
    params = {**model.params, "logit_bias": np.asarray(-10.25, np.float32)}
    with pytest.warns(UserWarning, match=r"no place for SigLIP's logit_bias \(-10.25\): it is left out"):
        export(dataclasses.replace(model, params=params), tmp_path / "out")
    assert "logit_bias" in params
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"not of CLIP \['adapter'\]"):
        export(dataclasses.replace(model, params={**params, "adapter": np.zeros(2, np.float32)}), tmp_path / "other")
