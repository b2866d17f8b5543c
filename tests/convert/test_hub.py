"""Hub ids: only what is needed is fetched, a folder wins, and what to do without the network is said."""

import shutil
import time

import pytest

from plip_jax.convert.hub import SourceError, hub_folder

WEIGHTS = (("model.safetensors",), ("pytorch_model.bin",))


def test_the_small_files_and_the_first_format_of_weights_are_fetched(tmp_path, monkeypatch):
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    hub.mkdir()
    cache.mkdir()
    for name in ("config.json", "pytorch_model.bin", "tf_model.h5", "README.md"):
        (hub / name).touch()
    asked = []

    def snapshot_download(repo_id: str, allow_patterns: list[str]) -> str:
        asked.append((repo_id, *allow_patterns))
        for pattern in allow_patterns:
            for path in hub.glob(pattern):
                shutil.copy(path, cache)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert hub_folder("owner/model", ("config.json",), WEIGHTS) == cache
    assert asked == [
        ("owner/model", "config.json"),
        ("owner/model", "model.safetensors"),
        ("owner/model", "pytorch_model.bin"),
    ]
    assert {path.name for path in cache.iterdir()} == {"config.json", "pytorch_model.bin"}
    assert hub_folder(str(hub), ("config.json",), WEIGHTS) == hub
    assert len(asked) == 3


def test_what_to_do_without_the_network_is_said_at_once():
    start = time.monotonic()
    with pytest.raises(SourceError, match=r"fetch config\.json and one of model\.safetensors, pytorch_model\.bin of"):
        hub_folder("owner/model", ("config.json",), WEIGHTS)  # HF_HUB_OFFLINE=1: tests/conftest.py
    assert time.monotonic() - start < 5  # a second, most of it the import of huggingface_hub


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "/nowhere/at/all"])
def test_what_is_neither_is_named(source):
    with pytest.raises(SourceError, match="expected a model folder or a hub id"):
        hub_folder(source, ("config.json",), WEIGHTS)
