"""Local images are found however their folder is written."""

from pathlib import Path

import pytest
from PIL import Image

from data_prep.curation.pair import Pair
from data_prep.curation.stages import find_images
from data_prep.fetching.hydration_state import HydrationState
from data_prep.fetching.store import Store
from data_prep.hydrate import HydrationSettings
from data_prep.removing.tombstones import Tombstones


@pytest.mark.parametrize("dumps", ["dumps", "./dumps", "ABSOLUTE"])
def test_local_images_are_found_however_their_folder_is_written(tmp_path, monkeypatch, dumps):
    """Instaloader's paths are absolute, those of tables are relative; the folder may be either."""

    class Source:
        images = tmp_path / "dumps" if dumps == "ABSOLUTE" else Path(dumps)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "dumps").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "dumps" / "inside.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "beside.png")
    places = ["inside.png", str(tmp_path / "dumps" / "inside.png"), "../beside.png", str(tmp_path / "beside.png")]
    pairs = [
        Pair(f"any:{number}:0", "any", str(number), str(number), "0", path=path) for number, path in enumerate(places)
    ]
    state = HydrationState(tmp_path / "hydration.sqlite")
    sources = {"any": Source()}
    store = Store(tmp_path / "store")
    found = list(
        find_images(
            0,
            pairs,
            sources=sources,
            settings=HydrationSettings(),
            store=store,
            state=state,
            tombstones=Tombstones(b"", ()),
        )
    )
    state.close()
    assert [getattr(one, "reason", "") for one in found] == ["", "", "outside_images", "outside_images"]
