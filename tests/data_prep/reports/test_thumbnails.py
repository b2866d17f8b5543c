"""Which examples a report shows, and what goes along with them."""

import io
import random

import pytest
from curated_pairs import kept_pair, put
from PIL import Image

from data_prep.curation.pair import KEPT, Decision, drop
from data_prep.reports.thumbnails import choose_thumbnails


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def kept(number: int, store, **fields) -> Decision:
    pair = kept_pair(number, store, **fields)
    return Decision("pair", pair.id, pair.source, KEPT, pair=pair)


def test_only_what_may_be_shown_is_shown(store):
    decisions = [
        kept(1, store),
        kept(2, store, source="laion"),
        drop(kept_pair(3, store), "gate", "not_pathology"),
        drop(kept_pair(4, store), "gate", "held_impurity"),
        drop(kept_pair(5, store, clean_digest=""), "hydrate", "http_404"),
        Decision("post", "twitter:9", "twitter", "thread", "repost"),
    ]
    assert set(choose_thumbnails(decisions, store)) == {(KEPT, "twitter"), (KEPT, "laion")}
    shown = choose_thumbnails(decisions, store, may_show=lambda decision: not decision.reason.startswith("held_"))
    assert set(shown) == {(KEPT, "twitter"), (KEPT, "laion"), ("gate", "not_pathology")}
    (thumbnail,) = shown["gate", "not_pathology"]
    assert thumbnail.clean_digest == decisions[2].pair.clean_digest


def test_the_choice_does_not_depend_on_order_and_shows_an_image_once(store):
    decisions = [kept(number, store) for number in range(60)]
    decisions += [kept(number, store, clean_digest=decisions[0].pair.clean_digest) for number in range(60, 90)]
    first = choose_thumbnails(decisions, store, per_group=5)
    digests = [one.clean_digest for one in first[KEPT, "twitter"]]
    assert len(set(digests)) == len(digests) == 5
    for seed in range(4):
        assert choose_thumbnails(random.Random(seed).sample(decisions, 90), store, per_group=5) == first


def test_thumbnails_are_small_and_carry_no_metadata(store):
    image = Image.new("RGB", (1200, 600), (200, 100, 150))
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe, 12.03.1950"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, comment=b"MRN 1234567", icc_profile=b"a profile of the scanner")
    found = choose_thumbnails([kept(1, store, clean_digest=put(store, buffer.getvalue()))], store)
    (thumbnail,) = found[KEPT, "twitter"]
    with Image.open(io.BytesIO(thumbnail.jpeg)) as small:
        assert small.size == (112, 56)
        assert not small.getexif()
    for planted in (b"Jane Doe", b"MRN", b"scanner", b"Exif"):
        assert planted not in thumbnail.jpeg
    assert len(thumbnail.jpeg) < 4000


def test_what_is_not_in_the_store_is_left_out(store):
    there, gone = kept(1, store), kept(2, store)
    path = store / gone.pair.clean_digest[:2] / gone.pair.clean_digest
    path.unlink()
    assert [one.clean_digest for one in choose_thumbnails([there, gone], store)[KEPT, "twitter"]] == [
        there.pair.clean_digest
    ]
    path.write_bytes(b"no image")
    assert choose_thumbnails([gone], store) == {}
