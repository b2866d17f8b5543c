"""What a run's folder may be; its lock and what is compared at a restart are tested with the program."""

from pathlib import Path

import pytest

from plip_jax.training.provenance import RunError, locked


def test_a_bucket_is_no_work_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(RunError, match=r"expected a folder.*--config\.checkpoint\.directory=gs://"),
        locked(Path("gs://b/run")),
    ):
        pass
    assert not list(tmp_path.iterdir())
