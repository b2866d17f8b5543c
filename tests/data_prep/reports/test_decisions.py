"""decisions.parquet: every post and pair, nothing that somebody wrote, the same bytes for the same rows."""

import hashlib
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated_pairs import kept_pair

from data_prep.curation.pair import KEPT, Decision, Pair, drop
from data_prep.reports.decisions import DecisionsError, read_decisions, read_versions, write_decisions

VERSIONS = {"code": "0.5.0", "settings": {"min_words": 3}}


@pytest.fixture
def decisions(tmp_path):
    pairs = [kept_pair(number, tmp_path / "store") for number in range(30)]
    kept = [Decision("pair", pair.id, pair.source, KEPT, pair=pair) for pair in pairs[:20]]
    dropped = [drop(pair, "text", "too_short", "2 words, 3 are asked for") for pair in pairs[20:]]
    repost = Decision("post", "twitter:77", "twitter", "thread", "repost", post_id="77", author="ab" * 16)
    malformed = Decision("post", "page3.json line 17", "twitter", "source", "malformed", "at character 5")
    return [*kept, *dropped, repost, malformed]


def test_rows_say_what_is_known(tmp_path, decisions):
    path = tmp_path / "out" / "decisions.parquet"
    assert write_decisions(decisions, path, versions=VERSIONS) == 32
    rows = {row.id: row for row in read_decisions(path)}
    kept = rows["twitter:3:0"]
    assert (kept.unit, kept.stage, kept.reason, kept.split) == ("pair", "kept", "", "train")
    assert (kept.post_id, kept.author, kept.group_id) == ("3", f"{3:032x}", "g0000000000000003")
    assert (kept.width, kept.height, kept.phash, kept.licence) == (8, 9, "0000000000000003", "unknown")
    assert kept.caption_sha256 == hashlib.sha256(b"a gland number 3").hexdigest()
    assert json.loads(kept.scores) == {"pathology": 0.5}
    dropped = rows["twitter:25:0"]
    assert (dropped.stage, dropped.reason, dropped.detail) == ("text", "too_short", "2 words, 3 are asked for")
    post = rows["twitter:77"]
    assert (post.unit, post.reason, post.post_id, post.author, post.width) == ("post", "repost", "77", "ab" * 16, 0)
    assert rows["page3.json line 17"].detail == "at character 5"
    assert read_versions(path) == VERSIONS


def test_nothing_that_somebody_wrote_is_in_the_bytes(tmp_path, decisions):
    path = tmp_path / "decisions.parquet"
    write_decisions(decisions, path, versions=VERSIONS)
    # uncompressed: a compressed file would hide what a scan looks for
    plain = tmp_path / "plain.parquet"
    pq.write_table(pq.read_table(path), plain, compression="none", use_dictionary=False)
    data = plain.read_bytes()
    assert b"twitter:3:0" in data
    for written in (b"raw words of", b"a gland number", b"someone", b"images.example", b"BreastPath"):
        assert written not in data


def test_order_of_input_and_size_of_runs_do_not_change_the_bytes(tmp_path, decisions):
    found = []
    for number, run_rows in enumerate((1000, 5, 7)):
        path = tmp_path / f"{number}.parquet"
        shuffled = random.Random(number).sample(decisions, len(decisions))
        write_decisions(shuffled, path, versions=VERSIONS, run_rows=run_rows)
        found.append(path.read_bytes())
    assert found[0] == found[1] == found[2]
    keys = [(row.source, row.id) for row in read_decisions(tmp_path / "0.parquet")]
    assert keys == sorted(keys)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_input_that_fails_leaves_the_older_file(tmp_path, decisions):
    path = tmp_path / "decisions.parquet"
    write_decisions(decisions[:2], path, versions=VERSIONS)
    before = path.read_bytes()

    def failing():
        yield from decisions
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_decisions(failing(), path, versions=VERSIONS)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["decisions.parquet", "store"]


def test_no_decisions_and_broken_characters(tmp_path):
    path = tmp_path / "decisions.parquet"
    assert write_decisions([], path, versions={}) == 0
    assert list(read_decisions(path)) == []
    pair = Pair("x:\ud800:0", "x", "\ud800", "1", "0", caption="\ud800 half a pair")
    write_decisions([drop(pair, "text", "language")], path, versions={})
    (row,) = read_decisions(path)
    assert (row.id, row.post_id) == ("x:?:0", "?")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(DecisionsError, match="cannot be read"):
        list(read_decisions(tmp_path / "none.parquet"))
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(DecisionsError, match="cannot be read"):
        read_versions(tmp_path / "text.parquet")
    pq.write_table(pa.table({"URL": ["a"]}), tmp_path / "laion.parquet")
    with pytest.raises(DecisionsError, match="URL"):
        list(read_decisions(tmp_path / "laion.parquet"))
