"""Where checkpoints lie: in the work directory, elsewhere, at a URL (paths only: no test may need a bucket)."""

import importlib.util
import os

import pytest

from plip_jax.convert.load import load_model
from plip_jax.training.checkpoint_folder import CheckpointError, checkpoints_folder, claim_folder, is_workdir

NO_CLIENT = "a client of Google Cloud Storage is installed, and would be asked"


def test_by_default_they_are_in_the_work_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_workdir("run")
    assert claim_folder("run", "") == tmp_path / "run" / "checkpoints"
    assert is_workdir("run")
    assert os.fspath(checkpoints_folder("run")) == f"{tmp_path}/run/checkpoints"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]


def test_a_work_directory_says_where_else_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / "run"
    claimed = claim_folder(workdir, "disk/run/checkpoints")
    assert claimed == tmp_path / "disk" / "run" / "checkpoints"
    assert claimed.is_dir()
    assert is_workdir(workdir)
    monkeypatch.chdir(workdir)  # what was given relative to a folder is found from any
    assert checkpoints_folder(workdir) == claimed
    assert is_workdir(tmp_path / "disk" / "run")


def test_a_run_is_not_begun_anew_beside_its_checkpoints(tmp_path):
    workdir, elsewhere = tmp_path / "run", tmp_path / "disk"
    (claim_folder(workdir, "") / "3").mkdir()
    with pytest.raises(CheckpointError, match=rf"checkpoints are at {workdir}/checkpoints, .* says {elsewhere}"):
        claim_folder(workdir, str(elsewhere))
    (workdir / "checkpoints" / "3").rmdir()
    (claim_folder(workdir, str(elsewhere)) / "3").mkdir()
    with pytest.raises(CheckpointError, match=f"--config.checkpoint.directory={elsewhere},"):
        claim_folder(workdir, "")
    (elsewhere / "3").rmdir()
    assert claim_folder(workdir, "") == checkpoints_folder(workdir) == workdir / "checkpoints"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=f"{tmp_path}/file/here cannot be used"):
        claim_folder(tmp_path / "run", str(tmp_path / "file" / "here"))


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason=NO_CLIENT)
@pytest.mark.parametrize("url", ["gs://bucket/run", "gs://bucket/run/"])
def test_a_url_keeps_its_slashes_and_names_the_client_it_lacks(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    message = r"^gs://bucket/run cannot be used .*pip install gcsfs"
    for use in (is_workdir, checkpoints_folder, load_model, lambda url: claim_folder(tmp_path / "run", url)):
        with pytest.raises(CheckpointError, match=message):
            use(url)
    assert not list(tmp_path.iterdir())  # nothing named gs: is made here
