"""The command line of the export program: what is read from it, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from small_models import make_model

from plip_jax import export as export_program
from plip_jax.convert.hf_format import HF
from plip_jax.convert.load import LoadedModel
from plip_jax.export import main


def test_a_tilde_that_the_shell_left_is_expanded_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = ["--checkpoint=~/a", "--tokenizer=~/b", "--wise-ft-from=~/c", "--alpha=1", "--evaluation=~/d", "--out=~/e"]
    read = vars(export_program._parse(flags))
    paths = [read[name] for name in ("checkpoint", "tokenizer", "wise_ft_from", "evaluation", "out")]
    assert [str(path) for path in paths] == [str(tmp_path / name) for name in "abcde"]
    read = vars(export_program._parse(["--checkpoint=vinid/plip", "--tokenizer=gs://b/~x", "--out=x"]))
    assert (read["checkpoint"], read["tokenizer"], read["out"]) == ("vinid/plip", "gs://b/~x", Path("x"))


def test_settings_for_a_file_to_start_from_do_not_reach_a_workdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, dict[str, Any]] = {}

    def load(source: str, **settings: Any) -> LoadedModel:
        asked[Path(source).name] = settings
        return dataclasses.replace(make_model(), source=source)

    monkeypatch.setattr(export_program, "load_model", load)
    unchecked = dataclasses.replace(HF, consumer_features=lambda folder, inputs: None)
    monkeypatch.setitem(export_program.EXPORTERS, "hf", unchecked)
    workdir, file = tmp_path / "workdir", tmp_path / "start.safetensors"
    (workdir / "checkpoints").mkdir(parents=True)
    file.touch()
    arguments = ["--activation", "gelu", "--wise-ft-from", str(file), "--alpha", "1", "--out", str(tmp_path / "out")]
    assert main(["--checkpoint", str(workdir), *arguments]) == 0
    assert asked["start.safetensors"]["activation"] == "gelu"
    assert "activation" not in asked["workdir"]


def test_wrong_flags_of_a_push_are_usage_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--private"], "--private needs --push-to-hub OWNER/NAME"),
        (["--push-to-hub", "plip"], "--push-to-hub: expected OWNER/NAME, got 'plip'"),
        (["--base-model", "/home/alice/clip"], "--base-model: expected OWNER/NAME, got '/home/alice/clip'"),
        (["--license", "MIT"], "--license: expected one of the hub's ids, got 'MIT'; near it: mit"),
    ):
        with pytest.raises(SystemExit):
            main(["--checkpoint", "x/y", "--out", str(tmp_path / "out"), *arguments])
        assert message in capsys.readouterr().err
    assert main(["--checkpoint", "x/y", "--dtype", "int8", "--out", str(tmp_path / "out")]) == 1
    assert "format hf has no dtype 'int8'; it has: float32, float16, bfloat16" in capsys.readouterr().err
