"""Releasing ids and addresses: every kept pair once, and nothing that somebody wrote, in text or in an address."""

import csv
import dataclasses
import random
from pathlib import Path

import pytest
from curated_pairs import kept_pair, small_png

from data_prep.curated_shards import ShardSettings, file_of, finish_folder, group_by_shard, write_shard
from data_prep.curation.rows import partition_of, write_part
from data_prep.release import PATHOLOGY_HASHTAGS, main, public_link, release_row


def make_run(root: Path, pairs, *, partitions: int = 3) -> tuple[Path, Path]:
    """A work folder with the rows of the last stage, and the records made from them."""
    work, out, settings = root / "work", root / "atlas", ShardSettings(shards=1)
    for part in range(partitions):
        rows = [pair for pair in pairs if partition_of(pair.id, partitions) == part]
        write_part(work / "stages" / "split" / "kept", part, rows)
    staged = work / "shards"
    shards = {
        key[0]: [write_shard(members, root / "store", staged / file_of(out, key, settings), settings)]
        for key, members in group_by_shard(pairs, settings).items()
    }
    finish_folder(out, staged, shards, overwrite=True)
    return out, work


@pytest.fixture
def pairs(tmp_path):
    store = tmp_path / "store"
    twitter = [kept_pair(number, store) for number in range(8)]
    reply = kept_pair(20, store, source="twitter_reply", split="test", hashtags=("JaneDoe", "gipath", "BreastPath"))
    laion = kept_pair(30, store, source="laion", permalink="", url="https://images.example/a%20b.png?w=9", hashtags=())
    return [*twitter, reply, laion]


def run(root: Path, *paths: Path) -> int:
    records, work, out = paths
    return main(["--records", str(records), "--work", str(work), "--out", str(out)])


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "release.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_openpaths_with_split_and_group(tmp_path, pairs, capsys):
    records, work = make_run(tmp_path, pairs)
    assert run(tmp_path, records, work, tmp_path / "release") == 0
    assert "released 10 ids (PathLAION 1, Twitter 8, Twitter reply 1)" in capsys.readouterr().out
    rows = read(tmp_path / "release")
    assert list(rows[0]) == ["source", "hashtag", "weblink", "id", "media ID", "split", "group"]
    assert len(rows) == 10
    by_id = {row["id"]: row for row in rows}
    assert by_id["3"] == {
        "source": "Twitter",
        "hashtag": "BreastPath",
        "weblink": "https://twitter.com/i/web/status/3",
        "id": "3",
        "media ID": "0",
        "split": "train",
        "group": "g0000000000000003",
    }
    assert (by_id["20"]["source"], by_id["20"]["split"]) == ("Twitter reply", "test")
    assert by_id["20"]["hashtag"] == "GIPath"  # its first that is on the list, in the list's spelling
    assert by_id["30"]["weblink"] == "https://images.example/a%20b.png?w=9"
    readme = (tmp_path / "release" / "README.md").read_text()
    assert "| train | 9 |" in readme
    assert "| PathLAION | 1 |" in readme
    assert sorted(path.name for path in (tmp_path / "release").iterdir()) == ["README.md", "release.csv"]


def test_no_text_image_or_author_is_in_any_byte(tmp_path, pairs):
    records, work = make_run(tmp_path, pairs)
    needles = [b"a gland number", b"raw words", b"someone", b"JaneDoe", b"%032x" % 3, small_png(3)[:40]]

    def found(folder: Path) -> set[bytes]:
        files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        return {needle for needle in needles if any(needle in data for data in files)}

    # the scan can find them: all of them are in what the release is made from
    assert found(work) | found(tmp_path / "store") == set(needles)
    assert run(tmp_path, records, work, tmp_path / "release") == 0
    assert found(tmp_path / "release") == set()


def test_bytes_do_not_depend_on_order_or_partitions(tmp_path, pairs):
    found = []
    for seed, partitions in enumerate((1, 3, 5)):
        root = tmp_path / str(seed)
        root.mkdir()
        (root / "store").symlink_to(tmp_path / "store")
        records, work = make_run(root, random.Random(seed).sample(pairs, len(pairs)), partitions=partitions)
        assert run(root, records, work, root / "release") == 0
        found.append((root / "release" / "release.csv").read_bytes())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("address", "link"),
    [
        ("https://twitter.com/JaneDoeMD/status/123?s=20", "https://twitter.com/i/web/status/123"),
        ("http://mobile.twitter.com/JaneDoeMD/statuses/123/photo/1", "https://twitter.com/i/web/status/123"),
        ("https://X.com/JaneDoeMD/status/123#m", "https://twitter.com/i/web/status/123"),
        ("https://x.com/JaneDoeMD", ""),
        ("https://www.instagram.com/janedoe/p/Cab_-1/?hl=en", "https://www.instagram.com/p/Cab_-1/"),
        ("https://instagram.com/reel/Cab1/", "https://www.instagram.com/p/Cab1/"),
        ("https://www.instagram.com/janedoe/", ""),
        (
            "https://old.reddit.com/r/pathology/comments/ab12/a_case_of_gist_in_my_clinic/",
            "https://www.reddit.com/comments/ab12/",
        ),
        ("https://www.reddit.com/user/janedoe/comments/ab12/x/", "https://www.reddit.com/comments/ab12/"),
        ("https://jane:secret@images.example:8443/a.png?w=1#me", "https://images.example:8443/a.png?w=1"),
        ("https://notx.com/JaneDoeMD/status/123", "https://notx.com/JaneDoeMD/status/123"),
        ("https://[2001:db8::1]/a.png", "https://[2001:db8::1]/a.png"),
        ("https://www.flickr.com/photos/janedoe/5123/in/pool", "https://www.flickr.com/photo.gne?id=5123"),
        ("https://bsky.app/profile/janedoe.bsky.social/post/3kab", ""),
        ("https://mastodon.example/@janedoe/1092", ""),
        ("https://www.univ.example/~jdoe/a.png", ""),
        ("https://[broken/a.png", ""),
        ("https://images.example:port/a.png", ""),
        ("file:///home/jane/a.png", ""),
        ("/home/jane/a.png", ""),
        ("", ""),
    ],
)
def test_links_name_the_post_and_nobody(address, link):
    assert public_link(address) == link


def test_a_local_file_has_no_link(tmp_path):
    pair = kept_pair(1, tmp_path / "store", permalink="", url="", path="/home/jane/slides/1.png")
    assert release_row(pair).weblink == ""
    assert "jane" not in repr(release_row(pair))


def test_the_list_has_openpaths_32_hashtags():
    assert len({tag.casefold() for tag in PATHOLOGY_HASHTAGS}) == 32


def test_private_places_are_refused(tmp_path, pairs, capsys):
    records, work = make_run(tmp_path, pairs)
    for out in (work, records, work / "release", records / "a" / "b", tmp_path, work / ".." / "atlas" / "c"):
        assert run(tmp_path, records, work, out) == 1
        assert "private data" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(records)
    assert run(tmp_path, records, work, tmp_path / "link" / "release") == 1
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    assert run(tmp_path, records, work, taken) == 1
    assert "holds something already" in capsys.readouterr().err
    assert [path.name for path in taken.iterdir()] == ["file"]


def test_records_of_another_run_are_refused(tmp_path, pairs, capsys):
    records, work = make_run(tmp_path, pairs)
    extra = dataclasses.replace(pairs[0], id="twitter:99:0")
    write_part(work / "stages" / "split" / "kept", 7, [extra])
    assert run(tmp_path, records, work, tmp_path / "release") == 1
    assert "not of the same run" in capsys.readouterr().err
    assert not (tmp_path / "release").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_missing_folders_are_named(tmp_path, pairs, capsys):
    records, work = make_run(tmp_path, pairs)
    assert run(tmp_path, records, tmp_path / "nowork", tmp_path / "release") == 1
    assert "run the pipeline first" in capsys.readouterr().err
    assert run(tmp_path, tmp_path / "norecords", work, tmp_path / "release") == 1
    assert "No records" in capsys.readouterr().err


def test_nothing_is_released_while_a_takedown_is_not_finished(tmp_path, pairs, capsys):
    records, work = make_run(tmp_path, pairs)
    (work / "takedown-journal.json").write_text("{}")
    assert run(tmp_path, records, work, tmp_path / "release") == 1
    assert "finish it first" in capsys.readouterr().err
    assert not (tmp_path / "release").exists()
