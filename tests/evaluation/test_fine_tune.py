"""Fine-tuning on a tiny network and on a tiny CLIP: the step is PyTorch's, one trace, nothing leaks into the choice."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_classes import make_examples, make_inputs
from small_models import NO_TORCH, make_config, make_params

from plip_jax.data import image
from plip_jax.evaluation import fine_tune
from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.classification_report import draw_fraction
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.fine_tune import CLIP_MEAN, CLIP_STD, Classifier, Labelled, Recipe, load_pixels
from plip_jax.evaluation.fine_tune_task import FINE_TUNE, FineTuneConfig
from plip_jax.evaluation.task import Inputs, Model
from plip_jax.model import clip

SIDE = 4
COLOURS = {"blue": (70, 90, 150), "green": (90, 140, 80), "red": (150, 80, 80)}


class TinyTower:
    """Two matrices; it counts how often it is traced."""

    feature_dim = 6
    image_size = SIDE
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.params = {
            "first": rng.normal(0, 0.2, (SIDE * SIDE * 3, 8)).astype(np.float32),
            "second": rng.normal(0, 0.3, (8, self.feature_dim)).astype(np.float32),
        }
        self.traced = 0

    def pixels(self, image: bytes, name: str) -> np.ndarray:
        return np.frombuffer(image, np.uint8).reshape(SIDE, SIDE, 3)

    def apply(self, params: Any, pixels: Any) -> Any:
        self.traced += 1
        return jnp.tanh(pixels.reshape(len(pixels), -1) @ params["first"]) @ params["second"]


class TinyCLIPTower:
    """The image tower of the tiny CLIP; its images are flat colours, enlarged."""

    mean, std = CLIP_MEAN, CLIP_STD

    def __init__(self) -> None:
        config = make_config()
        self.model = clip.build(config)
        self.params = make_params(config)["vision"]
        self.feature_dim, self.image_size = config.embed_dim, config.vision.image_size

    def pixels(self, image: bytes, name: str) -> np.ndarray:
        small = np.frombuffer(image, np.uint8).reshape(SIDE, SIDE, 3)
        times = self.image_size // SIDE
        return small.repeat(times, axis=0).repeat(times, axis=1)

    def apply(self, params: Any, pixels: Any) -> Any:
        return self.model.encode_image({"vision": params}, pixels)


def draw_images(labels: Sequence[str], seed: int, noise: float = 60.0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    drawn = np.array([COLOURS[label] for label in labels])[:, None, None] + rng.normal(
        0, noise, (len(labels), SIDE, SIDE, 3)
    )
    return [one.tobytes() for one in np.clip(drawn, 0, 255).astype(np.uint8)]


def draw_examples(role: str, counts: dict[str, int], seed: int, slides: int = 10) -> Examples:
    labels = [label for label, count in counts.items() for _ in range(count)]
    labels = np.random.default_rng(seed).permutation(labels).tolist()
    names = [f"{role}-{label}-{i % slides}" for i, label in enumerate(labels)]
    return make_examples(role, labels, names, draw_images(labels, seed))


def draw_labelled(count: int, seed: int = 0) -> Labelled:
    labels = np.random.default_rng(seed).integers(0, 3, count)
    images = draw_images([sorted(COLOURS)[k] for k in labels], seed)
    return Labelled(np.stack([TinyTower().pixels(one, "") for one in images]), labels)


def leaves(params: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_training_is_that_of_pytorchs_adamw(schedule):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    tower, data, rate, epochs = TinyTower(), draw_labelled(11), 0.02, 6
    # One batch an epoch, so the order is of no matter; five of its sixteen places are empty.
    recipe = Recipe(epochs=epochs, batch_size=16, weight_decay=0.1, schedule=schedule)
    params = Classifier(tower, 3, recipe).train(data, np.arange(11), rate, seed=0)

    own = {name: torch.nn.Parameter(torch.tensor(leaf)) for name, leaf in tower.params.items()}
    head = torch.nn.Linear(tower.feature_dim, 3)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW([*own.values(), *head.parameters()], lr=rate, weight_decay=0.1)
    pixels = torch.tensor((data.pixels / 255 - CLIP_MEAN) / CLIP_STD, dtype=torch.float32).reshape(11, -1)
    for step in range(epochs):
        optimizer.param_groups[0]["lr"] = rate * (
            0.5 + 0.5 * np.cos(np.pi * step / epochs) if schedule == "cosine" else 1
        )
        optimizer.zero_grad()
        logits = head(torch.tanh(pixels @ own["first"]) @ own["second"])
        torch.nn.functional.cross_entropy(logits, torch.tensor(data.label_ids)).backward()
        optimizer.step()
    expected = {
        "tower": {name: leaf.detach().numpy() for name, leaf in own.items()},
        "head": {"kernel": head.weight.detach().numpy().T, "bias": head.bias.detach().numpy()},
    }
    for found, wanted in zip(leaves(params), leaves(expected), strict=True):
        # Adam divides by the root of a gradient's square, which magnifies float32 rounding of small gradients.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_one_trace_serves_every_size_and_rate_and_the_networks_own_weights_stay():
    tower, data = TinyTower(), draw_labelled(40)
    start = leaves({name: leaf.copy() for name, leaf in tower.params.items()})
    classifier = Classifier(tower, 3, Recipe(epochs=2, batch_size=16))
    first = classifier.train(data, np.arange(40), 0.01, seed=3)
    classifier.train(data, np.arange(7), 0.1, seed=1)
    again = classifier.train(data, np.arange(40), 0.01, seed=3)
    other = classifier.train(data, np.arange(40), 0.01, seed=4)
    assert classifier.predict(first, data).shape == (40,)
    classifier.predict(first, data, np.arange(17))
    assert tower.traced == 2  # one for the step, one for the logits
    assert all((a == b).all() for a, b in zip(leaves(first), leaves(again), strict=True))
    assert any((a != b).any() for a, b in zip(leaves(first), leaves(other), strict=True))
    assert all((a == b).all() for a, b in zip(leaves(tower.params), start, strict=True))
    assert all((a != b).any() for a, b in zip(leaves(first["tower"]), start, strict=True))


def test_each_example_is_seen_once_an_epoch_and_those_that_fill_a_batch_up_do_not_count():
    data = draw_labelled(10)
    batches = list(Classifier(TinyTower(), 3, Recipe(batch_size=4))._batches(data, np.array([7, 2, 9, 4, 1, 0])))
    assert [batch["weights"].tolist() for batch in batches] == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert all(batch["pixels"].shape == (4, SIDE, SIDE, 3) for batch in batches)
    seen = np.concatenate([batch["pixels"][batch["weights"] > 0] for batch in batches])
    np.testing.assert_array_equal(seen, data.pixels[[7, 2, 9, 4, 1, 0]])


def test_what_is_not_finite_has_no_answer():
    data = draw_labelled(10)
    classifier = Classifier(TinyTower(), 3, Recipe(epochs=4, batch_size=16))
    assert classifier.predict(classifier.train(data, np.arange(10), 1e30, seed=0), data) is None


def test_a_fraction_is_of_each_class_and_a_smaller_one_is_part_of_a_larger():
    ids = np.random.default_rng(0).permutation([0] * 200 + [1] * 40 + [2] * 3)
    small, large = draw_fraction(ids, 0.1, 5), draw_fraction(ids, 0.5, 5)
    assert np.bincount(ids[small]).tolist() == [20, 4, 1]
    assert np.bincount(ids[large]).tolist() == [100, 20, 2]
    assert set(small) < set(large)
    assert (np.diff(small) > 0).all()
    assert draw_fraction(ids, 1.0, 1).tolist() == list(range(243))
    assert draw_fraction(ids, 0.1, 6).tolist() != small.tolist()


@pytest.mark.parametrize("in_memory", [0, 2**30])
def test_images_are_decoded_in_order_to_memory_or_a_file(monkeypatch, tmp_path, in_memory):
    monkeypatch.setattr(fine_tune, "_IN_MEMORY", in_memory)
    monkeypatch.setattr(fine_tune, "_DECODED_AT_ONCE", 3)
    examples = draw_examples("train", {"red": 5, "blue": 5}, 0)
    pixels = load_pixels(examples, TinyTower(), tmp_path, "train")
    assert isinstance(pixels, np.memmap) == (in_memory == 0)
    assert (tmp_path / "train.npy").exists() == (in_memory == 0)
    assert [row.tobytes() for row in pixels] == [record.image for record in examples.records]
    moved = dataclasses.replace(examples, records=[*examples.records][::-1])
    with pytest.raises(EvaluationError, match="data changed"):
        load_pixels(moved, TinyTower(), tmp_path, "train")


def test_clips_pixel_statistics_are_those_of_the_preprocessing():
    assert (CLIP_MEAN, CLIP_STD) == (image.CLIP_MEAN, image.CLIP_STD)


TRAIN, TEST = {"red": 60, "green": 40, "blue": 20}, {"red": 30, "green": 20, "blue": 10}


def settings(**changes: Any) -> FineTuneConfig:
    return FineTuneConfig(
        **{
            "train_split": "train",
            "fractions": (0.1, 1.0),
            "seeds": (0, 1),
            "epochs": 8,
            "batch_size": 16,
            "learning_rates": (1e-12, 0.02),
            **changes,
        }
    )


def make_task_inputs(tower: Any = None, bootstrap: BootstrapConfig | None = None, **data: Examples) -> Inputs:
    data = data or {"train": draw_examples("train", TRAIN, 0), "test": draw_examples("test", TEST, 1)}
    model = Model("m", make_inputs({}, {}).model.embed, tower=lambda: tower or TinyTower())
    return Inputs(data, model, bootstrap)


def test_the_task_learns_more_from_more_and_reports_each_seed():
    inputs = make_task_inputs(bootstrap=BootstrapConfig(resamples=200))
    result = FINE_TUNE.run(settings(), inputs)
    report = result.report
    assert tuple(report["metrics"]) == FINE_TUNE.metric_names(settings())
    small, whole = report["curve"]
    assert (small["num_examples"], whole["num_examples"]) == (12, 120)
    assert small["mean"] < whole["mean"]
    assert whole["mean"] > 0.85  # constant class: 0.33
    assert report["constant_class"]["label"] == "red"
    assert whole["mean"] == np.mean(whole["scores"]) == report["metrics"]["weighted_f1"]
    assert whole["sd"] == pytest.approx(abs(whole["scores"][0] - whole["scores"][1]) / 2**0.5, abs=1e-12)  # rounding
    assert report["seed_scores"] == {"weighted F1 at 0.1": small["scores"], "weighted F1 at 1": whole["scores"]}
    # A rate that learns nothing answers one class, and is never chosen.
    assert whole["learning_rates"] == small["learning_rates"] == [0.02, 0.02]
    assert all(nothing < something for nothing, something in whole["validation"])
    assert whole["low"] < whole["mean"] < whole["high"]
    assert [whole["low"], whole["high"]] == report["bootstrap"]["intervals"]["weighted_f1"]
    assert report["bootstrap"]["unit"] == "slide-level"
    assert set(result.replicates) == set(report["metrics"])
    assert np.array(report["confusion"]["counts"]).sum() == len(result.rows) == 60
    assert result.correct is not None
    assert [row["predicted"] == row["label"] for row in result.rows] == result.correct.tolist()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    again = FINE_TUNE.run(settings(), make_task_inputs(bootstrap=BootstrapConfig(resamples=200)))
    assert again.report == report


def test_the_learning_rate_is_chosen_without_the_test_split():
    inputs = make_task_inputs()
    expected = FINE_TUNE.run(settings(seeds=(0,)), inputs).report["curve"]
    others = make_examples("other", list(inputs.test.labels), (), draw_images(["red"] * 60, 5))
    found = FINE_TUNE.run(settings(seeds=(0,)), make_task_inputs(train=inputs.data["train"], test=others)).report[
        "curve"
    ]
    assert [one["validation"] for one in found] == [one["validation"] for one in expected]
    assert [one["scores"] for one in found] != [one["scores"] for one in expected]


def test_a_validation_split_of_its_own_is_used_where_it_is_named():
    inputs = make_task_inputs()
    # Labelled at random for validation: no rate scores well there, whatever the training split is like.
    labels = np.random.default_rng(0).permutation(inputs.test.labels).tolist()
    data = {**inputs.data, "val": make_examples("val", labels, (), draw_images(["green"] * 60, 2))}
    report = FINE_TUNE.run(settings(seeds=(0,), val_split="v"), make_task_inputs(**data)).report
    assert max(max(tried) for one in report["curve"] for tried in one["validation"]) < 0.6
    assert "val" in report["hashes"]
    assert FINE_TUNE.splits(settings(val_split="v")) == {"train": "train", "val": "v"}


def test_diverged_rates_are_not_chosen_and_all_of_them_are_an_error():
    report = FINE_TUNE.run(
        settings(seeds=(0,), fractions=(1.0,), learning_rates=(1e30, 0.02)), make_task_inputs()
    ).report
    assert report["curve"][0]["learning_rates"] == [0.02]
    assert report["curve"][0]["validation"][0][0] is None
    with pytest.raises(EvaluationError, match="diverged with every one of"):
        FINE_TUNE.run(settings(seeds=(0,), fractions=(1.0,), learning_rates=(1e30,)), make_task_inputs())


def test_a_share_of_the_training_split_can_be_the_test_set_by_whole_slides_and_is_labelled():
    train = draw_examples("train", TRAIN, 0)
    chosen = settings(test_share=0.3, seeds=(0,), fractions=(1.0,))
    result = FINE_TUNE.run(chosen, make_task_inputs(train=train, test=train))
    tested = {str(row["id"]) for row in result.rows}
    slide = dict(zip(train.ids, train.slide_ids, strict=True))
    assert result.report["num_examples"] == len(tested)
    assert len(tested) + result.report["num_train_examples"] == 120
    assert not {slide[name] for name in tested} & {slide[name] for name in train.ids if name not in tested}
    assert any("0.3 of the training split" in note and "whole slides" in note for note in result.report["notes"])
    assert result.correct is None
    with pytest.raises(EvaluationError, match="set split=train, or test_share=0"):
        FINE_TUNE.check(chosen, {"train": train, "test": draw_examples("test", TEST, 1)})
    with pytest.raises(EvaluationError, match="expected other examples than the test split"):
        FINE_TUNE.check(settings(), {"train": train, "test": train})


def test_pixel_statistics_are_clips_for_every_model_unless_told():
    found = {}
    for statistics in ("clip", "own"):
        tower = TinyTower()
        tower.std = (1e9, 1e9, 1e9)  # of its own every image is black
        chosen = settings(seeds=(0,), fractions=(1.0,), learning_rates=(0.02,), pixel_statistics=statistics)
        found[statistics] = FINE_TUNE.run(chosen, make_task_inputs(tower)).report
    assert found["clip"]["metrics"]["weighted_f1"] > 0.85
    assert found["own"]["metrics"] == {
        name: found["own"]["constant_class"]["metrics"][name.split("_at_")[0]] for name in found["own"]["metrics"]
    }
    assert any("CLIP's statistics" in note for note in found["clip"]["notes"])
    assert not any("CLIP's statistics" in note for note in found["own"]["notes"])


def test_a_tiny_clips_image_tower_learns_with_all_its_weights(tmp_path):
    tower = TinyCLIPTower()
    classes = sorted(COLOURS)
    data = {}
    for seed, counts in enumerate((TRAIN, TEST)):
        examples = draw_examples(f"split{seed}", counts, seed)
        labels = np.array([classes.index(label) for label in examples.labels])
        data[seed] = Labelled(load_pixels(examples, tower, tmp_path, "split"), labels)
    classifier = Classifier(tower, 3, Recipe(epochs=4, batch_size=16))
    params = classifier.train(data[0], np.arange(120), 3e-3, seed=0)
    assert (classifier.predict(params, data[1]) == data[1].label_ids).mean() > 0.8  # constant class: 0.5
    unchanged = jax.tree_util.tree_map_with_path(
        lambda path, new, old: jax.tree_util.keystr(path) if (np.asarray(new) == old).all() else None,
        params["tower"],
        tower.params,
    )
    assert jax.tree.leaves(unchanged) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_split": ""}, "train_split"),
        ({"fractions": (0.5, 0.1)}, "fractions"),
        ({"fractions": (0.5, 1.1)}, "fractions"),
        ({"seeds": ()}, "seeds"),
        ({"learning_rates": (0.0,)}, "learning_rates"),
        ({"pixel_statistics": "imagenet"}, "expected one of clip, own"),
        ({"test_share": 1.0}, "test_share"),
        ({"schedule": "linear"}, "schedule: expected one of"),
        ({"epochs": 0}, "epochs"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(EvaluationError, match=message):
        settings(**changes)


def test_a_subsample_that_cannot_be_split_is_refused_before_anything_is_decoded():
    inputs = make_task_inputs()
    with pytest.raises(EvaluationError, match=r"leave out the smallest fraction, 0.001 of 120"):
        FINE_TUNE.check(settings(fractions=(0.001, 1.0)), inputs.data)
