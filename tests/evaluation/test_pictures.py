"""Tables by their text; pictures by their pixels: whole, and different where the results differ."""

import io

import numpy as np
import pytest
from PIL import Image

from plip_jax.evaluation import report, statistics
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
    image = pixels(report.confusion_png(zero_shot_report(counts), title="Zero-shot: kather"))
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
    image = pixels(report.gallery_png([row], images, num_candidates=2000, title="Retrieval"))
    assert is_clear_of_its_border(image)
    assert count_frames(image) == 2 * framed


def test_the_tables_say_what_was_found():
    recall = {"k": 10, "hits": 5, "recall": 0.5, "random": 0.1, "fold": 5.0}
    direction = {"num_queries": 10, "num_candidates": 1000, "median_rank": 8.5, "recall": {"10": recall}}
    retrieval = {
        "type": "retrieval",
        "directions": {"text_to_image": direction},
        "hashes": {"split": "c" * 64},
        "data": "/data/captions",
        "split": "",
    }
    text = report.markdown(
        {
            "model": {"source": "run", "weights_hash": "0123456789abcdef" * 4, "step": 1200},
            "tasks": {"kather": zero_shot_report(np.diag([6, 2, 0, 0, 0, 0, 0, 0, 0])), "books": retrieval},
            "absent": {"pannuke": "no data; give a folder"},
        }
    )
    assert "Weights `0123456789abcdef`, step 1,200." in text
    assert "| kather | 8 | model | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 |" in text
    # Always ADI: F1 2 * 6 / (6 + 8) = 0.857, weighted by 6 of 8 = 0.643, macro over the two classes seen 0.429.
    assert "| kather | 8 | always ADI | 0.643 | 0.429 | 0.500 | 0.000 | 0.750 |" in text
    assert "kather: no examples of DEB" in text
    assert "| text to image | 10 | 1,000 | 8.5 | 0.500 (5.0x) |" in text
    assert "- pannuke: no data; give a folder" in text
    assert "- kather: /data/kather test: prompts `aaaaaaaaaaaaaaaa`" in text
