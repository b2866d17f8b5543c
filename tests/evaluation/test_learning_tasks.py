"""The tasks that learn, planned as a config plans them, on real micrographs with thumbnails for embeddings."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from plip_jax.data.examples import open_examples
from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.fine_tune import CLIP_MEAN, CLIP_STD
from plip_jax.evaluation.suite import data_of, open_data, plan_tasks
from plip_jax.evaluation.task import Inputs, Model

pytestmark = pytest.mark.realdata


class ColourTower:
    """One matrix on an 8 x 8 thumbnail."""

    feature_dim, image_size = 32, 8
    mean, std = CLIP_MEAN, CLIP_STD

    def __init__(self) -> None:
        self.params = np.random.default_rng(0).normal(0, 0.05, (192, 32)).astype(np.float32)

    def pixels(self, image: bytes, name: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(image)).convert("RGB").resize((8, 8), Image.Resampling.BOX))

    def apply(self, params, pixels):
        return jnp.tanh(pixels.reshape(len(pixels), -1) @ params)


def test_three_tissues_are_told_apart_far_above_the_constant_class(realdata):
    shared = {"data": str(realdata / "colon_regions3"), "split": "test", "train_split": "train"}
    planned, absent = plan_tasks(
        {
            "probe": {"type": "published_probe", **shared, "seeds": (1, 2)},
            "logistic": {"type": "linear_probe", **shared, "strengths": (0.1, 1.0, 10.0), "fractions": (0.05,)},
            "shots": {"type": "few_shot", **shared, "shots": (1, 16), "episodes": 50},
            "tuned": {
                "type": "fine_tune", **shared, "fractions": (0.05, 1.0), "seeds": (0, 1), "epochs": 6,
                "batch_size": 32, "learning_rates": (1e-5, 2e-3), "val_seed": 3,
            },
        }
    )  # fmt: skip
    opened = open_data(planned, open_examples)
    assert absent == {}
    assert len(opened) == 2  # they share both splits
    tower = ColourTower()
    embeddings = {}

    def encode(images, names):
        thumbnails = np.stack([tower.pixels(one, "") for one in images]).astype(np.float32) / 255 - 0.5
        return thumbnails.reshape(len(names), -1)

    def embed(examples):
        if id(examples) not in embeddings:
            embeddings[id(examples)] = examples.embed(encode)
        return embeddings[id(examples)]

    model = Model("colours", embed, tower=lambda: tower)
    for item in planned:
        result = item.task.run(item.config, Inputs(data_of(item, opened), model, BootstrapConfig(resamples=100)))
        report = result.report
        assert tuple(report["metrics"]) == item.task.metric_names(item.config), item.name
        assert report["num_examples"] == len(result.rows) == 254, item.name
        assert report["metrics"][next(iter(report["metrics"]))] > 0.6, item.name
        assert report["constant_class"]["metrics"]["macro_f1"] < 0.3, item.name
        assert list(report["per_class"]) == ["ADI", "BACK", "NORM"], item.name
        assert json.loads(json.dumps(report, allow_nan=False)) == report, item.name
