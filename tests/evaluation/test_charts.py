"""Charts by their pixels: whole, and showing what they were given."""

import io

import numpy as np
import pytest
from PIL import Image

from plip_jax.evaluation.charts import Curve, Score, curves_png, scores_png, styles_of

SCORES = {
    "kather: weighted f1": [
        Score("ours", 0.5, 0.4, 0.6),
        Score("constant class", 0.06, is_baseline=True),
        Score("PLIP", 0.565, 0.559, 0.572, is_published=True),
    ],
    "A task with quite a long name: balanced accuracy": [Score("ours", 0.9), Score("theirs", -0.3, -0.5, 0.1)],
}
CURVES = {
    "text to image": [
        Curve("ours", [1, 10, 100], [0.1, 0.4, 0.9], [0, 0.3, 0.8], [0.2, 0.5, 1.0]),
        Curve("chance", [1, 10, 100], [0.01, 0.1, 1.0], is_model=False),
    ],
    "image to text": [Curve("ours", [1, 10, 100], [0.2, 0.5, 0.95])],
}


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def shows(image: np.ndarray, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(image - wanted).max(axis=-1) < 3).any())


def draw_curves(curves=CURVES) -> np.ndarray:
    return pixels(curves_png(curves, title="Recall", x_label="K", y_label="recall at K"))


@pytest.mark.parametrize("image", [pixels(scores_png(SCORES, title="Scores", axis="score")), draw_curves()])
def test_a_chart_is_whole_and_keeps_the_models_colours(image):
    edges = (image[:2], image[-2:], image[:, :2], image[:, -2:])
    assert all((edge == 255).all() for edge in edges)  # nothing is cut off
    colour, _ = styles_of(["ours"])["ours"]
    assert shows(image, colour)


def test_another_value_is_another_picture():
    other = {**CURVES, "image to text": [Curve("ours", [1, 10, 100], [0.2, 0.6, 0.95])]}
    assert not np.array_equal(draw_curves(), draw_curves(other))
    first = pixels(scores_png({"t": [Score("a", 0.5, 0.4, 0.6)]}, title="", axis=""))
    assert not np.array_equal(first, pixels(scores_png({"t": [Score("a", 0.5, 0.3, 0.6)]}, title="", axis="")))


def test_models_beyond_the_colours_still_have_a_style():
    assert len(styles_of([f"model {n}" for n in range(9)])) == 9
