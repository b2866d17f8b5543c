"""From raw posts to records: the planted truth is found again, on every runner, and after every kill."""

import csv
import dataclasses
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from curated_week import assert_reconciles, assert_truth, dataset_bytes, rows_of, split_sizes

from data_prep import release
from data_prep.curate import curate, main
from data_prep.curation.authors import load_author_key
from data_prep.removing.byte_scan import byte_scan, text_needles
from data_prep.reports.datasheet import DatasheetError

ROOT = Path(__file__).parents[2]


OTHER_ENGINES = {
    "seven parts": {"partitions": 7},
    "two processes": {"workers": 2},
    "a Dask cluster of two workers": {"runner": "dask", "workers": 2},
}


def test_the_planted_truth_is_found_again(curated):
    assert_truth(curated)
    sizes = split_sizes(curated.out)
    assert sizes["val"] == 10
    assert sum(sizes.values()) == len(curated.week.captions)


def test_the_funnel_reconciles(curated):
    funnel = assert_reconciles(curated.out)
    week = curated.week
    refused = {name: sum(n for (of, _), n in week.unreadable.items() if of == name) for name in week.posts}
    assert {name: steps[0]["in"] for name, steps in funnel["units"]["post"].items()} == {
        name: len(posts) + refused[name] for name, posts in week.posts.items()
    }
    assert funnel["totals"]["pair"][-1]["kept"] == len(week.captions)


def test_no_table_of_the_page_is_too_wide_to_read(curated):
    """A dozen sources are rows, or words in a cell, and not columns."""
    rows = re.findall(r"<tr>(.*?)</tr>", (curated.out / "funnel.html").read_text(), re.DOTALL)
    assert len(rows) > 100
    assert max(len(re.findall(r"<t[hd]\b", row)) for row in rows) <= 6


def test_what_laion_scores_unsafe_is_neither_fetched_nor_written_down(curated):
    week = curated.week
    unsafe = {post.media[0].url for post in week.unsafe}
    assert len(unsafe) == 2
    safe = week.posts["laion"][0].media[0].url
    asked = {week.server.url + path for path in week.server.counts()}
    assert safe in asked
    assert not unsafe & asked
    hits = byte_scan([curated.work, curated.out], {url: text_needles(url) for url in (*unsafe, safe)})
    assert {hit.needle for hit in hits} == {safe}


def test_nobody_knows_the_licence_of_what_laion_found(curated):
    rows = rows_of(curated.out)
    licences = {row.id: row.licence for row in rows if row.source == "laion" and row.unit == "pair"}
    assert licences.keys() >= {f"laion:{post.id}:0" for post in curated.week.posts["laion"]}
    assert set(licences.values()) == {"unknown"}
    assert {row.licence for row in rows if row.source == "figures" and row.stage == "kept"} == {"CC BY"}


def test_nothing_of_people_is_in_the_output(curated):
    """Authors' ids, their places, and what was hidden in a photograph."""
    everything = b"".join(dataset_bytes(curated.out).values())
    authors = {post.author for posts in curated.week.posts.values() for post in posts if post.author}
    assert [author for author in authors if author.encode() in everything] == []
    assert b"778899" not in everything
    rows = b"".join(path.read_bytes() for path in (curated.work / "stages").rglob("part-*"))
    assert [author for author in authors if author.encode() in rows] == []
    assert str(curated.folder).encode() not in everything


def test_a_second_run_does_nothing_again(curated, tmp_path):
    work, out = curated.work, tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in (work / "stages").rglob("part-*")}
    asked = len(curated.week.server.asked)
    curated.again(work, out)
    assert {path: path.stat().st_mtime_ns for path in (work / "stages").rglob("part-*")} == before
    assert len(curated.week.server.asked) == asked
    assert dataset_bytes(out) == dataset_bytes(curated.out)


def test_where_nothing_is_kept_the_reasons_are_said(curated, tmp_path):
    source = next(one for one in curated.config.sources if one.name == "twitter")
    strict = dataclasses.replace(source, threads=dataclasses.replace(source.threads, hashtags=("nothing",)))
    config = dataclasses.replace(curated.config, sources=(strict,))
    key = load_author_key(curated.folder / "key", work=tmp_path / "work", out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"nothing was kept. Where it ended: thread no_hashtag \d+"):
        curate(config, tmp_path / "work", tmp_path / "out", key, acknowledge_missing=True)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_done_is_refused_before_anything_is_read(curated, tmp_path, capsys):
    key = load_author_key(curated.folder / "key", work=tmp_path / "work", out=tmp_path / "out")
    with pytest.raises(DatasheetError, match="lawful_basis, source_terms"):
        curate(curated.config, tmp_path / "work", tmp_path / "out", key)
    assert not (tmp_path / "work").exists()
    arguments = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--author-key", "none"]
    path = f"--config.sources.twitter.path={tmp_path}"
    assert main([*arguments, "--config", "configs/data/openpath.py", path, "--acknowledge-missing"]) == 1
    assert "--make-author-key" in capsys.readouterr().err


def test_a_release_names_the_kept_pairs_and_holds_neither_images_nor_captions(curated, tmp_path):
    out = tmp_path / "release"
    assert release.main(["--records", str(curated.out), "--work", str(curated.work), "--out", str(out)]) == 0
    with (out / "release.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows_of(curated.out) if row.stage == "kept"]
    assert sorted((row["id"], row["split"]) for row in rows) == sorted((row.post_id, row.split) for row in kept)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "release.csv"]
    text = (out / "release.csv").read_text()
    assert [caption for caption in curated.week.captions.values() if caption in text] == []
    authors = {post.author for posts in curated.week.posts.values() for post in posts if post.author}
    assert [author for author in authors if author in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_ENGINES)
def test_every_runner_writes_the_same_bytes(curated, tmp_path, name):
    if "Dask" in name:
        pytest.importorskip("dask.distributed", reason="the runner's extra is not installed")
    # The images are there already; what is asked of the server is not what differs.
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(curated.work / "store" / "originals", work / "store" / "originals")
    shutil.copy(curated.work / "hydration.sqlite", work)
    curated.again(work, tmp_path / "out", **OTHER_ENGINES[name])
    assert dataset_bytes(tmp_path / "out") == dataset_bytes(curated.out)


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_with_the_same_bytes(curated, tmp_path):
    work, out = tmp_path / "work", tmp_path / "out"
    pickled = tmp_path / "curated.pickle"
    pickled.write_bytes(pickle.dumps((curated.config, curated.folder / "key")))
    rng = random.Random(int(os.environ.get("PLIP_JAX_KILL_SEED", "0")))
    command = [sys.executable, str(ROOT / "tests" / "curate_again.py"), str(pickled), str(work), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # this tree, whichever one is installed
    killed = 0
    for _ in range(10):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stderr=subprocess.PIPE)
        # From the start of the interpreter to the last report.
        time.sleep(rng.uniform(1.5, 8))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
        if out.exists():  # it came to its end: begin again, so that ten kills are ten kills
            assert dataset_bytes(out) == dataset_bytes(curated.out)
            shutil.rmtree(out)
            shutil.rmtree(work)
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    assert killed >= 5
    assert dataset_bytes(out) == dataset_bytes(curated.out)
