"""Salted hashes of what was removed, and the rules of removal on single rows."""

import dataclasses
import hashlib
import hmac
import random
from pathlib import Path

import pytest

from data_prep.curation.pair import Decision, Pair
from data_prep.removing.removal import decision_goes, names_removed, pair_goes, post_goes, redact_decision
from data_prep.removing.tombstones import (
    SALT_NAME,
    TOMBSTONES_NAME,
    Tombstone,
    TombstoneError,
    Tombstones,
    add_tombstones,
    load_salt,
    make_tombstone,
    seal,
)
from data_prep.sources.post import Media, Post

POST = Post(
    "1234567",
    (Media("a", "https://pbs/1.jpg"), Media("b", "https://pbs/2.jpg")),
    ("A text",),
    "twitter",
    author="f" * 32,
    permalink="https://x/1234567",
)
PAIR = Pair(
    id="twitter:55:m0",
    source="twitter_reply",
    post_id="55",
    image_post_id="44",
    media_key="m0",
    author="b" * 32,
    image_author="c" * 32,
    permalink="https://x/55",
    url="https://pbs/44.jpg",
    digest="d" * 64,
    clean_digest="e" * 64,
    phash="0f" * 8,
)


def stones(work: Path, *values: tuple[str, str]) -> Tombstones:
    salt = load_salt(work)
    return add_tombstones(work, [Tombstone(kind, seal(salt, kind, value)) for kind, value in values])


def test_a_hash_is_hmac_sha256_of_kind_and_value(tmp_path: Path):
    (tmp_path / SALT_NAME).write_text("00ff" * 16)
    salt = bytes.fromhex("00ff" * 16)
    expected = hmac.new(salt, b"post\0twitter:12", hashlib.sha256).hexdigest()[:32]
    assert seal(load_salt(tmp_path), "post", "twitter:12") == expected


def test_nothing_in_the_work_folder_tells_the_value(tmp_path: Path):
    stones(tmp_path, ("post", "twitter:1460000000000000001"), ("url", "https://pbs/1.jpg"))
    for path in tmp_path.iterdir():
        assert b"146000" not in path.read_bytes()
        assert b"pbs" not in path.read_bytes()
    assert (tmp_path / SALT_NAME).stat().st_mode & 0o077 == 0


def test_tombstones_are_added_once(tmp_path: Path):
    stones(tmp_path, ("post", "twitter:1"), ("post", ":2"))
    before = (tmp_path / TOMBSTONES_NAME).read_bytes()
    assert len(stones(tmp_path, ("post", ":2"))) == 2
    assert (tmp_path / TOMBSTONES_NAME).read_bytes() == before
    assert len(stones(tmp_path, ("author", "x"))) == 3
    assert (tmp_path / TOMBSTONES_NAME).read_bytes().startswith(before)


def test_a_folder_without_takedowns_covers_nothing_and_stays_empty(tmp_path: Path):
    none = Tombstones.load(tmp_path)
    assert not none.covers(POST)
    assert not none.covers_image("d" * 64, "0f" * 8)
    assert none.redact(POST) is POST
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("salt", [None, "", "00", "zz" * 32])
def test_tombstones_without_their_salt_are_an_error(tmp_path: Path, salt: str | None):
    stones(tmp_path, ("post", ":2"))
    (tmp_path / SALT_NAME).unlink()
    if salt is not None:
        (tmp_path / SALT_NAME).write_text(salt)
    with pytest.raises(TombstoneError, match="restore it"):
        Tombstones.load(tmp_path)


@pytest.mark.parametrize("line", ["{", "[]", '{"kind": "post"}', '{"kind": "dog", "hash": "00"}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str):
    stones(tmp_path, ("post", ":2"))
    with (tmp_path / TOMBSTONES_NAME).open("a") as file:
        file.write(line)
    with pytest.raises(TombstoneError, match="line 2"):
        Tombstones.load(tmp_path)


@pytest.mark.parametrize("bits", range(6))
def test_near_hashes_are_covered_within_three_bits(tmp_path: Path, bits: int):
    salt, removed = load_salt(tmp_path), 0x0F1E2D3C4B5A6978
    covering = add_tombstones(tmp_path, [make_tombstone(salt, "phash", f"{removed:016x}")])
    rng = random.Random(bits)
    for _ in range(20):
        near = removed ^ sum(1 << place for place in rng.sample(range(64), bits))
        assert covering.covers_image("", f"{near:016x}") == (bits <= 3)
    assert "0f1e2d3c" not in (tmp_path / TOMBSTONES_NAME).read_text()


def test_a_hash_that_was_removed_without_neighbours_is_covered_within_two_bits(tmp_path: Path):
    covering = stones(tmp_path, ("phash", "0f" * 8))
    for flipped in (0, 1, 3, 7):
        near = f"{int('0f' * 8, 16) ^ flipped << 20:016x}"
        assert covering.covers_image("", near) == (flipped.bit_count() <= 2)


@pytest.mark.parametrize(
    ("kind", "value", "goes"),
    [
        ("post", "twitter:1234567", True),
        ("post", ":1234567", True),
        ("post", "instagram:1234567", False),
        ("post", "twitter:123456", False),
        ("author", "f" * 32, True),
        ("url", "https://x/1234567", True),
        ("url", "https://pbs/1.jpg", False),  # its other image stays
    ],
)
def test_what_removes_a_post(tmp_path: Path, kind: str, value: str, goes: bool):
    assert stones(tmp_path, (kind, value)).covers(POST) == goes


def test_one_of_two_images_is_taken_out_of_a_post(tmp_path: Path):
    one = stones(tmp_path, ("url", "https://pbs/1.jpg"))
    assert one.redact(POST) == dataclasses.replace(POST, media=POST.media[1:])
    assert stones(tmp_path, ("url", "https://pbs/2.jpg")).covers(POST)


@pytest.mark.parametrize(
    ("kind", "value", "goes"),
    [
        ("post", "twitter:55", True),
        ("post", "twitter:44", True),
        ("post", ":44", True),
        ("post", "instagram:44", False),
        ("author", "b" * 32, True),
        ("author", "c" * 32, True),
        ("url", "https://x/55", True),
        ("url", "https://pbs/44.jpg", True),
        ("image", "d" * 64, True),
        ("image", "e" * 64, True),
        ("image", "f" * 64, False),
        ("phash", "0f" * 8, True),
        ("pair", "twitter:55:m0", True),
        ("pair", "twitter:55", False),
    ],
)
def test_what_removes_a_pair(tmp_path: Path, kind: str, value: str, goes: bool):
    has = stones(tmp_path, (kind, value)).has
    assert pair_goes(PAIR, has) == goes
    assert decision_goes(Decision("pair", PAIR.id, PAIR.source, "text", pair=PAIR), has) == goes


def test_an_empty_value_matches_nothing(tmp_path: Path):
    kinds = ("post", "author", "url", "image", "phash", "pair")
    has = stones(tmp_path, *((kind, "") for kind in kinds), ("post", ":"), ("post", "twitter:")).has
    assert not post_goes(Post("1", (Media(),), source="twitter"), has)
    assert not post_goes(Post("1", source="twitter"), has)
    assert not pair_goes(Pair("twitter:1:0", "twitter", "1", "1", "0"), has)
    assert not decision_goes(Decision("post", "page.json line 3", "twitter", "source", "malformed"), has)


@pytest.mark.parametrize(
    ("detail", "named"),
    [
        ("1234567 is", True),
        ("copy of twitter:1234567:m0, 2 bits away", True),
        ("see https://x.com/someone/status/1234567?s=20.", True),
        ("12345678 bytes", False),
        ("12 pixels", False),
    ],
)
def test_a_detail_that_names_a_removed_post_is_blanked(tmp_path: Path, detail: str, named: bool):
    covering = stones(tmp_path, ("post", "twitter:1234567"))
    assert names_removed(detail, "twitter", covering.has) == named
    row = Decision("post", "twitter:9", "twitter", "thread", "not_most_liked", detail)
    assert redact_decision(row, covering.has, covering.pseudonym).detail == ("" if named else detail)
