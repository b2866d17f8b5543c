"""Thousands of posts with real micrographs, from raw dumps to the first steps of training; and planted identifiers."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from curated_week import (
    ROOT,
    Curated,
    assert_reconciles,
    assert_truth,
    curate_week,
    kept_captions,
    split_sizes,
)
from curation_week import Week, X, plan_week
from image_server import ImageServer
from week_images import DistinctImages, simulated_images, tiles_of

from data_prep.removing.byte_scan import byte_scan, text_needles

IDENTIFIERS = Path(__file__).parent / "text" / "identifiers.json"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def large(realdata, tmp_path_factory) -> Curated:
    """Over two thousand posts."""
    started = time.monotonic()
    images = DistinctImages(tiles_of(realdata / "pathology_atlas" / "tiles"))
    with ImageServer() as server:
        curated = curate_week(
            tmp_path_factory.mktemp("large"), server, images, lambda week: plan_week(week, plain=1500)
        )
        seconds, posts = time.monotonic() - started, sum(map(len, curated.week.posts.values()))
        print(f"\n{posts} posts planted, written and curated in {seconds:.0f} s: {posts / seconds:.0f} a second")
        yield curated


@pytest.mark.realdata
def test_the_truth_of_a_large_week_is_found_again(large):
    assert sum(map(len, large.week.posts.values())) > 2000
    assert_truth(large)
    funnel = assert_reconciles(large.out)
    assert funnel["totals"]["pair"][-1]["kept"] == len(large.week.captions) > 1500


@pytest.mark.realdata
def test_training_starts_on_it(large, tmp_path):
    arguments = [
        "--config=configs/plip_vit_b32.py:smoke",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.sources.openpath.path={large.out}",
        f"--config.eval.tasks.heldout.data={large.out}",
        "--config.eval.tasks.heldout.split=val",
        "--config.train.steps=2",
        "--config.train.eval_interval_steps=2",
        "--config.train.checkpoint_interval_steps=2",
        "--config.optim.warmup_steps=1",
    ]
    command = [sys.executable, "-m", "plip_jax.train", *arguments]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}  # most of its time is compilation
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert any("eval/heldout/text_to_image_recall@10" in line for line in lines)


def around(text: str, identifier: str, characters: int = 8) -> str:
    """An identifier with its neighbours in the text: "92" alone is in any file."""
    start = text.index(identifier)
    return text[max(0, start - characters) : start + len(identifier) + characters]


def test_none_of_fifty_planted_identifiers_leaves_the_work_folder(tmp_path):
    planted = json.loads(IDENTIFIERS.read_text())["planted"]
    assert len(planted) == 50

    def plan(week: Week) -> None:
        for one in planted:
            week.post(X, week.image(), captions=(f"{one['text']}. Seen on a routine section. #GIPath",))

    with ImageServer() as server:
        curated = curate_week(tmp_path, server, DistinctImages(simulated_images()), plan)
    assert sum(split_sizes(curated.out).values()) == 50
    captions = kept_captions(curated.out)
    assert len({caption for texts in captions.values() for caption in texts}) == 50
    needles = {f"{n}": text_needles(around(one["text"], one["identifier"])) for n, one in enumerate(planted)}
    raw = {hit.needle for hit in byte_scan([curated.work / "stages"], needles)}
    assert raw == needles.keys()  # provenance has the text as it was posted
    needles |= {one["identifier"]: text_needles(one["identifier"]) for one in planted if len(one["identifier"]) >= 8}
    assert byte_scan([curated.out], needles) == []
