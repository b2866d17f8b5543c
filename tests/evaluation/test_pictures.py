"""Pictures by their pixels: whole, and different where the results differ."""

import io

import numpy as np
import pytest
from PIL import Image

from plip_jax.evaluation import pictures, statistics
from plip_jax.evaluation.prompts_file import load_prompts
from plip_jax.evaluation.task import GalleryRow

GREEN = np.array([0x1A, 0x7F, 0x37])


def zero_shot_report(counts) -> dict:
    prompts = load_prompts("kather")
    counts = np.asarray(counts)
    constant, metrics = statistics.best_constant_class(counts)
    return {
        "type": "zero_shot",
        "num_examples": int(counts.sum()),
        "confusion": {"labels": list(prompts.labels), "counts": counts.tolist()},
        "prompts": prompts.to_dict(),
        "metrics": statistics.classification_metrics(counts).to_dict(),
        "constant_class": {"label": prompts.labels[constant], "metrics": metrics.to_dict()},
        "missing_classes": ["DEB"],
        "hashes": {"prompts": "a" * 64, "weights": "b" * 64},
        "data": "/data/kather",
        "split": "test",
    }


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def is_clear_of_its_border(image: np.ndarray) -> bool:
    """Nothing is cut off: the outermost pixels are all white."""
    edges = (image[:2], image[-2:], image[:, :2], image[:, -2:])
    return all((edge == 255).all() for edge in edges)


@pytest.mark.parametrize("counts", [np.eye(9, dtype=int) * 12_345, np.diag([5, 3, 0, 0, 0, 0, 2, 0, 0])])
def test_the_confusion_picture_is_whole(counts):
    image = pixels(pictures.confusion_png(zero_shot_report(counts), title="Zero-shot: kather"))
    assert is_clear_of_its_border(image)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50


def count_frames(image: np.ndarray) -> int:
    """Runs of frame colour along the middle of a row of images: two edges a framed image."""
    on = (np.abs(image - GREEN).max(axis=-1) < 12)[image.shape[0] * 2 // 3]
    return int(np.count_nonzero(np.diff(on.astype(int)) == 1))


@pytest.mark.parametrize(
    ("right", "best_right", "rank", "framed"),
    [(("b",), "b", 2, 1), (("a", "c"), "a", 1, 2), (("d",), "d", 1_234, 1)],
)
def test_right_answers_are_framed_and_one_is_shown_where_none_is_among_the_best(right, best_right, rank, framed):
    images = {name: np.full((16, 16, 3), 120 + 20 * i, np.uint8) for i, name in enumerate("abcd")}
    row = GalleryRow("A caption of some length. " * 12, ("a", "b", "c"), right, best_right, rank)
    image = pixels(pictures.gallery_png([row], images, num_candidates=2000, title="Retrieval"))
    assert is_clear_of_its_border(image)
    assert count_frames(image) == 2 * framed
