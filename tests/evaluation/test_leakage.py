"""Planted copies are found by hash or by embedding, and nothing else is."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from plip_jax.data.perceptual_hash import close_pairs, hash_image
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.leakage import AuditedImages, LeakageConfig, audit_report, audit_rows, find_leaks
from tests.small_tissue import encoded, tissue

BLANK = Image.new("RGB", (64, 64), (240, 240, 240))


def audited(prefix: str, images, features=None) -> AuditedImages:
    hashes = [hash_image(image) for image in images]
    return AuditedImages(
        tuple(f"{prefix}{row}" for row in range(len(images))),
        np.array([one.bits for one in hashes]),
        np.array([one.is_flat for one in hashes]),
        features,
    )


def unit(rows) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


TRAIN = [tissue(seed) for seed in range(12)] + [BLANK]
TEST = [
    tissue(100),
    Image.open(io.BytesIO(encoded(tissue(3), "JPEG", quality=60))),
    tissue(101),
    tissue(5).resize((64, 64), Image.Resampling.BICUBIC),
    tissue(7).transpose(Image.Transpose.TRANSVERSE),
    BLANK,
]


def test_recompressed_resized_and_turned_copies_are_found_by_hash():
    train, test = audited("train", TRAIN), audited("test", TEST)
    leaks = find_leaks(train, test, LeakageConfig(), close_pairs=close_pairs)
    assert leaks.by_hash.tolist() == [False, True, False, True, True, False]
    assert leaks.by_embedding is None
    assert [(pair.test, pair.train, pair.why) for pair in leaks.pairs] == [
        (1, 3, "hash"),
        (3, 5, "hash"),
        (4, 7, "hash"),
    ]
    assert all(pair.distance <= 6 and pair.cosine is None for pair in leaks.pairs)
    assert np.flatnonzero(~leaks.flagged).tolist() == [0, 2, 5]
    report = audit_report(leaks, train, test, LeakageConfig())
    assert report["flagged"] == {"hash": 3, "embedding": None, "both": None, "either": 3}
    assert report["share_flagged"] == 0.5
    assert report["too_flat_to_hash"] == {"train": 1, "test": 1}
    assert report["pairs"][0]["test_id"] == "test1"
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_embeddings_flag_what_hashes_cannot():
    rng = np.random.default_rng(0)
    trained = unit(rng.normal(size=(13, 32)))
    tested = unit(rng.normal(size=(6, 32)))
    tested[5] = trained[12]  # the blank ones
    tested[1] = unit(trained[[3]] + 0.001)[0]
    tested[0] = unit(trained[[8]] + 0.1 * tested[[0]])[0]  # another crop of what training has
    train, test = audited("train", TRAIN, trained), audited("test", TEST, tested)
    leaks = find_leaks(train, test, LeakageConfig(cosine=0.99), close_pairs=close_pairs)
    assert leaks.by_embedding.tolist() == [True, True, False, False, False, True]
    assert leaks.flagged.tolist() == [True, True, False, True, True, True]
    rows = audit_rows(leaks, train, test)
    assert [(row["test_id"], row["train_id"], row["why"]) for row in rows] == [
        ("test0", "train8", "embedding"),
        ("test1", "train3", "hash and embedding"),
        ("test3", "train5", "hash"),
        ("test4", "train7", "hash"),
        ("test5", "train12", "embedding"),
    ]
    assert rows[4]["distance"] is None  # two blank images: their hashes say nothing
    assert rows[0]["distance"] > 6
    # 1e-6: a float32 product of rows of length one
    assert [rows[place]["cosine"] for place in (2, 4)] == pytest.approx([float(tested[3] @ trained[5]), 1], abs=1e-6)
    assert audit_report(leaks, train, test, LeakageConfig())["flagged"] == {
        "hash": 3, "embedding": 3, "both": 1, "either": 5,
    }  # fmt: skip


def test_the_closest_training_images_are_listed_and_no_more():
    hashes = np.array([[0b1], [0b11], [0b0], [2**50], [0b1]], np.uint64)
    train = AuditedImages(tuple("abcde"), hashes)
    test = AuditedImages(("t", "u", "v"), np.array([[0], [2**40 - 1], [0]], np.uint64))
    leaks = find_leaks(train, test, LeakageConfig(pairs_per_image=2), close_pairs=close_pairs)
    # The equal hashes of a and e are one image that is there twice; both copies of the test image are flagged.
    assert [(pair.test, pair.train, pair.distance) for pair in leaks.pairs] == [
        (0, 0, 1), (0, 2, 0), (2, 0, 1), (2, 2, 0),
    ]  # fmt: skip
    assert leaks.flagged.tolist() == [True, False, True]


def test_by_embedding_alone():
    leaks = find_leaks(
        AuditedImages(("a", "b"), features=unit([[1, 0], [0, 1]])),
        AuditedImages(("t", "u"), features=unit([[1, 0.01], [1, 1]])),
        LeakageConfig(),
        close_pairs=close_pairs,
    )
    assert leaks.by_hash is None
    assert leaks.flagged.tolist() == [True, False]
    assert [(pair.test, pair.train, pair.distance) for pair in leaks.pairs] == [(0, 0, None)]


def test_what_cannot_be_audited_is_refused():
    train = AuditedImages(("a",), features=unit([[1, 0]]))
    with pytest.raises(EvaluationError, match="got neither"):
        find_leaks(train, AuditedImages(("t",), np.zeros((1, 1), np.uint64)), LeakageConfig(), close_pairs=close_pairs)
    with pytest.raises(EvaluationError, match="features of one model, got 2 and 3"):
        find_leaks(train, AuditedImages(("t",), features=unit([[1, 0, 0]])), LeakageConfig(), close_pairs=close_pairs)
    with pytest.raises(EvaluationError, match="expected hashes of 1 images, got 2"):
        AuditedImages(("a",), np.zeros((2, 8), np.uint64))
    with pytest.raises(EvaluationError, match=r"hash_radius in \[0, 64\]"):
        LeakageConfig(hash_radius=65)


@pytest.mark.realdata
def test_the_tiles_that_two_real_sets_share_are_found(realdata):
    def tiles(folder: str) -> AuditedImages:
        # Slides of both sets; their files end in the same column and row.
        files = [
            file for file in sorted((realdata / folder).rglob("*.jpg")) if "NORM" in file.parts or "lipoma" in str(file)
        ]
        found = audited("", [Image.open(file) for file in files])
        return AuditedImages(tuple("_".join(file.stem.split("_")[-3:]) for file in files), found.hashes, found.is_flat)

    train, test = tiles("pathology_atlas/tiles"), tiles("colon_regions3/test")
    leaks = find_leaks(train, test, LeakageConfig(), close_pairs=close_pairs)
    rows = audit_rows(leaks, train, test)
    assert len(rows) >= 10
    assert all(row["test_id"] == row["train_id"] and row["distance"] == 0 for row in rows)
