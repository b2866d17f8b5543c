"""What the stages make of their rows where it matters to people: places, removed images, held ones."""

import dataclasses
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from week_images import jpeg, simulated_images

from data_prep.curation import stages
from data_prep.curation.authors import AuthorKey
from data_prep.curation.config import CurationConfig
from data_prep.curation.pair import Decision, Pair
from data_prep.curation.rows import decode_row
from data_prep.curation.verdicts import VerdictSettings
from data_prep.fetching.hydration_state import DONE, PERMANENT, HydrationState, Outcome
from data_prep.fetching.store import Store
from data_prep.hydrate import HydrationSettings
from data_prep.images.clean_image import CleanImage, ImageSettings, clean_image
from data_prep.images.gates import Counts, Gate, GateSettings
from data_prep.removing.byte_scan import byte_scan, text_needles
from data_prep.removing.tombstones import Tombstone, Tombstones, seal
from plip_jax.config_file import load_config

KEY = AuthorKey(bytes(range(32)))
SALT = bytes(32)


def removed(*values: tuple[str, str]) -> Tombstones:
    return Tombstones(SALT, [Tombstone(kind, seal(SALT, kind, value)) for kind, value in values])


def read(kind: str, path: Path) -> list[stages.Item]:
    config = load_config("configs/data/openpath.py", [f"sources.laion.kind={kind}", f"sources.laion.path={path}"])
    with config.unlocked():
        config.sources.laion.settings = {}
        config.gate.acknowledge_no_gate = True
    sources = CurationConfig.read(config).by_source()
    found = stages.read_items(("laion", path), sources=sources, key=KEY, partitions=4)
    return [decode_row(stages.Item, line) for _, line in found]


def test_a_place_is_kept_for_the_work_folder_and_is_no_id(tmp_path):
    path = tmp_path / "alice.doe_7001.json"
    path.write_text(json.dumps({"instaloader": {"node_type": "Profile"}, "node": {"username": "alice.doe"}}))
    (item,) = read("instaloader", path)
    assert item.decision is not None
    assert item.decision.where == "alice.doe_7001.json line 1"
    assert "alice" not in json.dumps(dataclasses.asdict(dataclasses.replace(item.decision, where="")))
    source, _, name = item.id.partition(":")
    assert (source, len(name), item.decision.id) == ("laion", 16, item.id)


def test_nothing_points_to_what_is_unsafe(tmp_path):
    path = tmp_path / "part-0.csv"
    path.write_text("URL,TEXT,punsafe\n" + "".join(f"https://x.example/{n}.jpg,a,0.9\n" for n in range(3)))
    decisions = [item.decision for item in read("laion", path)]
    assert len({one.id for one in decisions if one}) == 3
    for number, one in enumerate(decisions):
        assert one is not None
        assert (one.reason, one.detail, one.where) == ("unsafe_score", "", "")
        # Whoever has the table can try all of its places.
        assert hashlib.sha256(f"part-0.csv row {number}".encode()).hexdigest()[:16] not in one.id


def pair(number: int, **fields: object) -> Pair:
    return Pair(f"twitter:{number}:0", "twitter", str(number), str(number), "0", **fields)  # type: ignore[arg-type] # fields by name


@pytest.fixture
def image() -> bytes:
    return jpeg(next(simulated_images()))


def test_a_removed_image_that_comes_back_is_forgotten_with_its_address(tmp_path, image):
    store, images = Store(tmp_path / "originals"), tmp_path / "images"
    images.mkdir()
    (images / "again.jpg").write_bytes(image)
    digest, url, other = store.put(image), "https://h.example/again.jpg", "https://h.example/other.jpg"
    kept = store.put(image + b"other")
    config = load_config("configs/data/openpath.py", [f"sources.twitter.path={images}"])
    with HydrationState(tmp_path / "hydration.sqlite") as state:
        state.record(Outcome(url, DONE, digest=digest))
        state.record(Outcome(other, DONE, digest=kept))
        found = list(
            stages.find_images(
                0,
                [pair(1, url=url), pair(2, url=other), pair(3, url=url), pair(4, path="again.jpg")],
                sources=CurationConfig.read(config).by_source(),
                settings=HydrationSettings(),
                store=store,
                state=state,
                tombstones=removed(("image", digest)),
            )
        )
        outcome = state.lookup(url)
    assert found[1] == pair(2, url=other, digest=kept)
    for number in (1, 3, 4):
        ended = Decision("pair", f"twitter:{number}:0", "twitter", "hydrate", "takedown", pair=pair(number))
        assert ended in found
    assert list(store.digests()) == [kept]
    assert outcome == Outcome(url, PERMANENT, "takedown")
    assert byte_scan([tmp_path / "hydration.sqlite"], {"digest": text_needles(digest)}) == []


@pytest.mark.parametrize("known_by", ["phash", "stored bytes"])
def test_a_copy_of_a_removed_image_is_not_stored_and_not_described(tmp_path, image, known_by):
    clean = clean_image(image, ImageSettings())
    assert isinstance(clean, CleanImage)
    values = {"phash": ("phash", clean.phash), "stored bytes": ("image", clean.sha256)}
    digest = Store(tmp_path / "store" / "originals").put(image)
    pairs = [pair(number, url=f"https://h.example/{number}", digest=digest) for number in range(2)]
    stones = removed(values[known_by])
    found = list(stages.clean_images(0, pairs, settings=ImageSettings(), work=tmp_path, tombstones=stones))
    assert found == [
        Decision("pair", f"twitter:{number}:0", "twitter", "image", "takedown", pair=pair(number))
        for number in range(2)
    ]
    assert not (tmp_path / "store" / "clean").exists()


def test_what_a_gate_holds_is_let_through_by_a_person_only(tmp_path, monkeypatch):
    counts = Counts(9, 1, 9, 1, 0.95, 0.6, 0.6)
    face = Gate("face", "hold", (1.0,), 0.0, 0.5, 0.9, counts, True, "m", "f", {}, "0")
    said = [("llm:a", True), ("human:b", True), ("llm:a", False), ("human", False)]
    lines = [json.dumps({"id": f"twitter:{n}:0", "keep": keep, "source": who}) for n, (who, keep) in enumerate(said)]
    (tmp_path / "verdicts.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(stages, "load_gates", lambda settings: (face,))
    monkeypatch.setattr(stages, "_encoder", lambda checkpoint, batch_size: SimpleNamespace(fingerprint="f"))
    monkeypatch.setattr(stages, "embed", lambda *_: None)
    monkeypatch.setattr(stages, "scores_of", lambda gates, features, fingerprint: [{"face": 0.9}] * 5)
    pairs = [pair(number, clean_digest=f"{number:064x}") for number in range(5)]
    verdicts = VerdictSettings((str(tmp_path / "verdicts.jsonl"),))
    found = stages.apply_all_gates(0, pairs, settings=GateSettings(), verdicts=verdicts, contents=(), work=tmp_path)
    held = [(one.stage, one.reason) if isinstance(one, Decision) else None for one in found]
    # those that were rejected are dropped by the next stage, which says so
    assert held == [("gate", "held_face"), None, None, None, ("gate", "held_face")]
