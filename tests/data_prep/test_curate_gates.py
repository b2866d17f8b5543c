"""Gates and verdicts within the whole pipeline, and what is made of its folders: review page and neighbours."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from curated_week import Curated, assert_reconciles, assert_truth, curate_week, kept_captions, rows_of
from curation_week import Week, X
from image_server import ImageServer
from PIL import Image
from small_models import make_model
from week_dumps import week_config
from week_images import DistinctImages, jpeg, simulated_images
from write_tables import laion_table

from data_prep import expand, gate, review, takedown
from data_prep.removing.byte_scan import byte_scan, text_needles
from data_prep.sources.laion import LaionSettings, read_posts
from plip_jax.export import export

TISSUE, LEAVES, LABELLED = (1.0, 0.5, 0.8), (0.3, 1.0, 0.3), (1.0, 1.0, 0.1)
"""Tints that a tower of random weights can tell apart: pathology, something else, pathology with a label on it."""

WRITTEN = "Patient: Jane Doe, granulomas of the liver, MRN 1234567"
MASKED = "Patient: [name], granulomas of the liver, MRN [number]"


def tinted(image: Image.Image, tint: tuple[float, float, float]) -> bytes:
    return jpeg(Image.fromarray((np.asarray(image) * tint).astype(np.uint8)), 95)


def train_gates(folder: Path) -> dict[str, object]:
    """A pathology gate and one that finds labels, by the program, on a model of random weights."""
    model = export(make_model(), folder / "model")
    images = simulated_images(seed=7)
    for name, tints in {
        "pathology": (TISSUE, LABELLED),
        "others": (LEAVES,),
        "label": (LABELLED,),
        "unlabelled": (TISSUE, LEAVES),
    }.items():
        (folder / name).mkdir()
        for number in range(40):
            data = tinted(next(images), tints[number % len(tints)])
            (folder / name / f"{number}.jpg").write_bytes(data)
    for name, negative, role in (("pathology", "others", "require"), ("label", "unlabelled", "hold")):
        folders = ["--positive", str(folder / name), "--negative", str(folder / negative)]
        named = ["--name", name, "--role", role, "--checkpoint", str(model), "--out", str(folder / f"{name}.json")]
        assert gate.main(["train", *folders, *named, "--least-recall", "0.9"]) == 0
    return {
        "require": (str(folder / "pathology.json"),),
        "hold": (str(folder / "label.json"),),
        "checkpoint": str(model),
        "batch_size": 32,
    }


@dataclasses.dataclass
class Judged:
    """Plants a week and keeps what people and a model say about its pairs."""

    people: list[dict] = dataclasses.field(default_factory=list)
    model: list[dict] = dataclasses.field(default_factory=list)

    def plan(self, week: Week) -> None:
        def post(tint: tuple[float, float, float]) -> tuple:
            found = week.post(X, week.image(tinted(next(week.images), tint)))
            return found, f"{X}:{found.id}:{found.media[0].key}"

        for _ in range(6):
            week.keep(post(TISSUE)[0])
        for _ in range(3):
            week.end(post(LEAVES)[0], "gate", "not_pathology")
        for _ in range(2):
            week.end(post(LABELLED)[0], "gate", "held_label")
        released, name = post(LABELLED)
        week.keep(released)
        self.people.append({"id": name, "keep": True, "source": "human:ab"})
        self.model.append({"id": name, "keep": False, "source": "llm:m", "reason": "a person has the last word"})
        rejected, name = post(TISSUE)
        week.end(rejected, "verdict", "rejected_llm")
        self.model.append({"id": name, "keep": False, "source": "llm:m", "reason": "not about the image"})
        rewritten, name = post(TISSUE)
        week.keep(rewritten, caption=MASKED)
        self.model.append({"id": name, "keep": True, "caption": WRITTEN, "source": "llm:m"})

    def write(self, folder: Path) -> tuple[str, ...]:
        files = {"people.jsonl": self.people, "model.jsonl": self.model}
        for name, lines in files.items():
            (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tuple(str(folder / name) for name in files)


@pytest.fixture(scope="module")
def gated(tmp_path_factory) -> Curated:
    folder, judged = tmp_path_factory.mktemp("gated"), Judged()
    gates = train_gates(folder)

    def config(dumps: dict[str, Path]):
        made = week_config(dumps)
        with made.unlocked():
            made.gate = gates
            made.verdicts.files = judged.write(folder)
        return made

    with ImageServer() as server:
        yield curate_week(folder, server, DistinctImages(simulated_images()), judged.plan, config)


def test_gates_and_verdicts_decide_as_planted(gated):
    assert_truth(gated)
    assert_reconciles(gated.out)
    scores = {row.id: json.loads(row.scores) for row in rows_of(gated.out) if row.unit == "pair"}
    assert all(found.keys() == {"pathology", "label"} for found in scores.values())
    assert all("Jane Doe" not in caption for captions in kept_captions(gated.out).values() for caption in captions)


def test_no_picture_is_shown_of_what_is_held_or_rejected(gated):
    page = (gated.out / "funnel.html").read_text()
    shown = {row.id: row.clean_digest in page for row in rows_of(gated.out) if row.unit == "pair"}
    expected = {"kept": True, "not_pathology": True, "held_label": False, "rejected_llm": False}
    assert shown == {one: expected[reason or stage] for one, (stage, reason) in gated.week.truth.items()}


def test_the_review_page_shows_what_is_held_and_nothing_else(gated, tmp_path, capsys):
    page = tmp_path / "review.html"
    assert review.main(["--work", str(gated.work), "--out", str(page)]) == 0
    held = {one for one, end in gated.week.truth.items() if end == ("gate", "held_label")}
    text = page.read_text()
    assert {one for one in gated.week.truth if one in text} == held
    assert "2 of 2 pairs" in capsys.readouterr().out
    assert review.main(["--work", str(gated.work), "--out", str(gated.out / "review.html")]) == 1
    assert "records folder" in capsys.readouterr().err


def test_neighbours_of_the_kept_images_are_found_and_the_unsafe_ones_left_out(gated, tmp_path):
    """The work folder's own vectors stand for LAION's: three of them, one unsafe, among vectors of nothing."""
    vectors = np.concatenate([np.load(path) for path in sorted((gated.work / "vectors").glob("*.npy"))])[:3]
    others = np.random.default_rng(0).normal(size=(5, vectors.shape[1]))
    (tmp_path / "vectors").mkdir()
    np.save(tmp_path / "vectors" / "part.npy", np.concatenate([others, vectors]).astype(np.float32))
    scores = [0.0] * 5 + [0.1, 0.9, 0.2]
    (tmp_path / "table").mkdir()
    rows = [
        {"URL": f"https://images.example/{number}.jpg", "TEXT": f"caption {number}", "punsafe": score}
        for number, score in enumerate(scores)
    ]
    table = laion_table(tmp_path / "table" / "part.parquet", rows)
    out = tmp_path / "found.parquet"
    folders = ["--embeddings", str(tmp_path / "vectors"), "--table", str(tmp_path / "table"), "--out", str(out)]
    assert expand.main(["--queries", str(gated.work), *folders, "--neighbours", "1", "--threshold", "0.9999"]) == 0
    posts = list(read_posts(table, LaionSettings(rows_file=str(out)), source="laion"))
    assert [post.captions for post in posts] == [("caption 5",), ("caption 7",)]


def test_a_takedown_forgets_the_vectors_and_the_held_images_too(gated, tmp_path):
    copy = gated.copy(tmp_path)
    rows = {row.reason or row.stage: row for row in rows_of(copy.out) if row.unit == "pair"}
    vectors = {
        digest: vector.tobytes()
        for path in (copy.work / "vectors").glob("*.json")
        for digest, vector in zip(
            json.loads(path.read_text())["digests"], np.load(path.with_suffix(".npy")), strict=True
        )
    }
    needles = {
        reason: (*text_needles(row.clean_digest), *text_needles(row.post_id), vectors[row.clean_digest])
        for reason, row in rows.items()
    }
    assert needles.keys() == {"kept", "not_pathology", "held_label", "rejected_llm"}
    assert {hit.needle for hit in byte_scan([copy.work / "vectors"], needles)} == needles.keys()
    asked = [{"kind": "image", "value": rows[reason].digest} for reason in ("kept", "held_label", "not_pathology")]
    requests = tmp_path / "requests.jsonl"
    requests.write_text("".join(json.dumps(line) + "\n" for line in asked))
    folders = ["--work", str(copy.work), "--out", str(copy.out)]
    assert takedown.main([*folders, "--requests", str(requests)]) == 2  # the model's file of verdicts is elsewhere
    assert {hit.needle for hit in byte_scan([copy.work, copy.out], needles)} == {"rejected_llm"}
    assert kept_captions(copy.out).keys() == kept_captions(gated.out).keys() - {rows["kept"].id}
