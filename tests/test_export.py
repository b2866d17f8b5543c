"""The export program: a folder that appears whole or not at all, and never over something else."""

import dataclasses
import json
import types
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from small_models import NO_TORCH, make_model

from plip_jax import export as export_program
from plip_jax.convert.export_format import ConsumerFeatures, ParityInputs, round_params
from plip_jax.convert.hf import differing_params, read_hf
from plip_jax.convert.hf_format import HF
from plip_jax.convert.load import LoadedModel, load_model
from plip_jax.convert.open_clip import OPEN_CLIP
from plip_jax.export import ExportError, export, main
from plip_jax.model_card import CardFacts
from plip_jax.training.interpolation import interpolate

_UNCHECKED = dataclasses.replace(HF, consumer_features=lambda folder, inputs: None)


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
        if path.name not in ("parity.json", "README.md"):  # they say what was read: a file, and not a test's model
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    assert _names(out.parent) == ["out"]  # no temporary folder left
    printed = capsys.readouterr().out
    assert str(out / "model.safetensors") in printed
    assert load_model(source).weights_hash[:16] in printed


def test_the_command_names_places_as_it_was_told_them(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And prints our warnings as it prints everything else, without the place of this code; others keep theirs."""
    lines = []

    def write(folder: Path, model: LoadedModel, dtype: str) -> None:
        # As the interpreter formats them; pytest takes warnings before that.
        for file in (export_program.__file__, "/site-packages/onnx/export.py"):
            lines.append(warnings.formatwarning("too small", UserWarning, file, 93))
        HF.write(folder, model, dtype)

    monkeypatch.setitem(export_program.EXPORTERS, "hf", dataclasses.replace(_UNCHECKED, write=write))
    monkeypatch.chdir(tmp_path)
    assert main(["--checkpoint", str(source), "--out", "here/hf"]) == 0
    printed = capsys.readouterr().out
    assert "wrote here/hf/model.safetensors (" in printed
    assert 'from_pretrained("here/hf")' in printed
    assert str(tmp_path / "here") not in printed
    ours, other = lines
    assert ours == "plip-jax export: too small\n"
    assert other.startswith("/site-packages/onnx/export.py:93: UserWarning: too small\n")
    after = warnings.formatwarning("after", UserWarning, export_program.__file__, 93)
    assert "export.py:93: UserWarning" in after


def test_a_tilde_that_the_shell_left_is_the_home_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in --out=~/x. What is printed loads in Python, which knows no ~."""
    monkeypatch.setitem(export_program.EXPORTERS, "hf", _UNCHECKED)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").symlink_to(source)
    assert main(["--checkpoint=~/model", "--out=~/hf"]) == 0
    printed = capsys.readouterr().out
    assert f'from_pretrained("{tmp_path}/hf")' in printed
    assert "~" not in printed


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

    def fails(folder: Path, model: LoadedModel, dtype: str) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setitem(export_program.EXPORTERS, "hf", dataclasses.replace(HF, write=fails))
    with pytest.raises(OSError, match="disk full"):
        export(make_model(seed=1), out, overwrite=True)
    with pytest.raises(OSError, match="disk full"):
        export(make_model(seed=1), tmp_path / "fresh")
    assert _names(tmp_path) == ["out"]
    assert differing_params(read_hf(out).params, make_model().params) == []


def test_what_is_read_back_must_be_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(folder: Path, model: LoadedModel, dtype: str) -> None:
        params = {**model.params, "text": make_model(seed=1).params["text"]}
        HF.write(folder, dataclasses.replace(model, params=params), dtype)

    monkeypatch.setitem(export_program.EXPORTERS, "hf", dataclasses.replace(HF, write=forgetful))
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


def test_an_export_says_how_exact_it_is(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason=NO_TORCH)
    out = tmp_path / "out"
    assert main(["--checkpoint", str(source), "--dtype", "bfloat16", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "the weights are equal to the last bit. Checked with transformers" in printed.out
    assert printed.err == ""
    parity = json.loads((out / "parity.json").read_text())
    assert (parity["format"], parity["dtype"], parity["checked"]) == ("hf", "bfloat16", True)
    # Of the weights that were asked for; those in the file are rounded.
    assert parity["model"]["weights_hash"] == load_model(source).weights_hash != load_model(out).weights_hash
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert differing_params(read_hf(out).params, round_params(make_model().params, "bfloat16")) == []
    # What an export writes beside a folder of other files is no earlier export.
    (out / "config.json").unlink()
    assert main(["--checkpoint", str(source), "--out", str(out), "--overwrite"]) == 0
    (out / "config.json").unlink()
    (out / "parity.json").unlink()
    assert main(["--checkpoint", str(source), "--out", str(out), "--overwrite"]) == 1
    assert "got README.md; remove it yourself" in capsys.readouterr().err


def test_a_check_that_cannot_be_made_is_a_warning(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = dataclasses.replace(HF, consumer_features=lambda folder, inputs: None)
    monkeypatch.setitem(export_program.EXPORTERS, "hf", absent)
    assert main(["--checkpoint", str(source), "--out", str(tmp_path / "out")]) == 0
    assert "Features not checked: install transformers torch." in capsys.readouterr().err
    assert load_model(tmp_path / "out").weights_hash == load_model(source).weights_hash


def test_a_failed_check_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(folder: Path, inputs: ParityInputs) -> ConsumerFeatures:
        return ConsumerFeatures("another 1.0", np.ones((4, 16), np.float32), np.ones((5, 16), np.float32))

    monkeypatch.setitem(export_program.EXPORTERS, "hf", dataclasses.replace(HF, consumer_features=wrong))
    assert main(["--checkpoint", str(source), "--out", str(tmp_path / "out")]) == 1
    assert _names(tmp_path) == []


def test_a_folder_of_another_program_is_no_earlier_export(source: Path, tmp_path: Path) -> None:
    trainer = tmp_path / "trainer"
    trainer.mkdir()
    for name in ("config.json", "model.safetensors", "optimizer.pt"):
        (trainer / name).write_text("{}")
    with pytest.raises(ExportError, match=r"nothing but the files of format hf.*got optimizer.pt"):
        export(make_model(), trainer, overwrite=True)
    (trainer / "optimizer.pt").unlink()  # now as an earlier version wrote it
    export(make_model(), trainer, overwrite=True)


def test_what_the_model_is_read_from_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(export_program.EXPORTERS, "hf", _UNCHECKED)
    out = export(make_model(), tmp_path / "out")
    loaded = load_model(out)
    for source in (out, out / "model.safetensors", tmp_path / "x" / ".." / "out"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(ExportError, match="the model is read from there"):
            export(dataclasses.replace(loaded, source=str(source)), out, overwrite=True)
    monkeypatch.setattr(export_program, "load_model", lambda *_, **__: pytest.fail("loaded"))
    arguments = ["--wise-ft-from", str(out), "--alpha", "0.5", "--out", str(out), "--overwrite"]
    assert main(["--checkpoint", "x/y", *arguments]) == 1
    assert "the model is read from there" in capsys.readouterr().err


def test_what_came_to_the_target_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def slow(folder: Path, model: LoadedModel, dtype: str) -> None:
        HF.write(folder, model, dtype)
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").write_text("mine")

    monkeypatch.setitem(export_program.EXPORTERS, "hf", dataclasses.replace(_UNCHECKED, write=slow))
    with pytest.raises(ExportError, match="changed while the export was written"):
        export(make_model(), out)
    assert _names(tmp_path) == ["out"]
    (out / "thesis.txt").unlink()

    monkeypatch.setitem(export_program.EXPORTERS, "hf", _UNCHECKED)
    export(make_model(), out, overwrite=True)
    monkeypatch.setitem(export_program.EXPORTERS, "hf", dataclasses.replace(_UNCHECKED, write=slow))
    with pytest.raises(ExportError, match="changed while the export was written"):
        export(make_model(seed=1), out, overwrite=True)
    assert (out / "thesis.txt").read_text() == "mine"
    assert differing_params(read_hf(out).params, make_model().params) == []
    assert _names(tmp_path) == ["out"]


def test_an_interrupt_between_the_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(export_program.EXPORTERS, "hf", _UNCHECKED)
    out = export(make_model(), tmp_path / "out")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "fresh":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(make_model(seed=1), out, overwrite=True)
    assert differing_params(read_hf(out).params, make_model().params) == []
    assert _names(tmp_path) == ["out"]


def test_a_pushed_folder_names_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unchecked = dataclasses.replace(OPEN_CLIP, consumer_features=lambda folder, inputs: None)
    monkeypatch.setitem(export_program.EXPORTERS, "open_clip", unchecked)
    out = export(make_model(), tmp_path / "out", format="open_clip", facts=CardFacts(repo_id="lab/plip-2"))
    text = json.loads((out / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert text["hf_tokenizer_name"] == "lab/plip-2"


class FakeHub:
    """huggingface_hub.HfApi of a hub that is a dict."""

    files: ClassVar[dict[str, list[str]]] = {"lab/used": ["model.safetensors", "onnx/vision_model.onnx"]}

    def __init__(self, token: str, repositories: dict[str, bool], pushed: list[dict[str, Any]]):
        self.token, self.repositories, self.pushed = token, repositories, pushed

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        if repo_id.startswith("another/"):
            raise PermissionError(f"403 Forbidden: {self.token} has no rights to create a model under another")
        self.repositories.setdefault(repo_id, private)
        return f"https://huggingface.co/{repo_id}"

    def repo_info(self, repo_id: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(private=self.repositories[repo_id])

    def list_repo_files(self, repo_id: str) -> list[str]:
        return [".gitattributes", "README.md", "figure.png", *self.files.get(repo_id, [])]

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        self.pushed.append({"repo_id": repo_id, "files": _names(Path(folder_path)), "message": commit_message})


def test_an_export_is_pushed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repositories: dict[str, bool] = {"lab/public": False}
    pushed: list[dict[str, Any]] = []
    monkeypatch.setattr("huggingface_hub.HfApi", lambda token: FakeHub(token, repositories, pushed))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    out = tmp_path / "the out"

    def push(*arguments: str) -> tuple[int, str, str]:
        status = main(["--checkpoint", str(source), "--out", str(out), "--overwrite", *arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    status, said, _ = push("--push-to-hub", "lab/plip-2", "--private", "--license", "mit")
    assert (status, said.splitlines()[-1]) == (0, "pushed to https://huggingface.co/lab/plip-2")
    assert repositories["lab/plip-2"] is True
    assert [(one["repo_id"], one["files"]) for one in pushed] == [("lab/plip-2", _names(out))]
    assert "license: mit" in (out / "README.md").read_text()
    assert 'from_pretrained("lab/plip-2")' in (out / "README.md").read_text()

    # A repository that is there stays as public as it is: what was to be private is not pushed to it.
    status, _, said = push("--push-to-hub", "lab/public", "--private")
    assert status == 1
    assert "lab/public: expected a private repository, got a public one: nothing was pushed" in said
    status, _, said = push("--push-to-hub", "another/plip")
    assert status == 1
    assert "not pushed (PermissionError: 403 Forbidden: *** has no rights" in said
    assert f"The export is whole at {out}; push it later with\n  hf upload another/plip '{out}' ." in said
    # The files of another model would be mixed with this one's.
    status, _, said = push("--push-to-hub", "lab/used")
    assert status == 1
    assert "which this one would be mixed with: onnx/vision_model.onnx; nothing was pushed" in said
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(export_program, "load_model", lambda *_, **__: pytest.fail("loaded"))
    status, _, said = push("--push-to-hub", "lab/plip-2")
    assert status == 1
    assert "expected a token of the hub in HF_TOKEN, got none" in said
    assert len(pushed) == 1
    assert load_model(out).weights_hash == load_model(source).weights_hash
