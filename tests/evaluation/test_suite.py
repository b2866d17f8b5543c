"""Several tasks together: planned, checked and embedded once."""

import dataclasses
import json

import numpy as np
import pytest

from plip_jax.evaluation import suite
from plip_jax.evaluation.embeddings import EvaluationError


@dataclasses.dataclass(frozen=True)
class Record:
    id: str
    image: bytes
    label: str
    captions: tuple[str, ...]


RECORDS = [Record(f"r{i}", bytes([i]), "ab"[i % 2], (f"caption {i}",)) for i in range(4)]


@pytest.fixture
def tasks(tmp_path) -> dict:
    prompts = {"name": "p", "source": "s", "classes": {"a": ["x"], "b": ["y"]}, "templates": ["{}"]}
    (tmp_path / "p.json").write_text(json.dumps(prompts))
    return {
        "one": {"type": "zero_shot", "data": "set", "split": "test", "prompts": str(tmp_path / "p.json")},
        "two": {"type": "retrieval", "data": "set", "split": "test", "recall_at": [1, 2]},
    }


def test_a_split_that_tasks_share_is_opened_and_embedded_once(tasks):
    opened, embedded = [], []

    def open_examples(path, split):
        opened.append((path, split))
        return RECORDS

    def encode_images(images, *, names) -> np.ndarray:
        embedded.extend(images)
        return np.random.default_rng(0).normal(size=(4, 3))

    planned, absent = suite.plan_tasks(tasks)
    data = suite.open_data(planned, open_examples)
    assert embedded == []
    results = suite.evaluate(
        planned, data, encode_images=encode_images, encode_text=lambda texts: np.ones((len(texts), 3))
    )
    assert list(results) == ["one", "two"]
    assert absent == {}
    assert opened == [("set", "test")]
    assert embedded == [record.image for record in RECORDS]
    assert "text_to_image_recall@2" in results["two"].report["metrics"]
    for item in planned:  # what a task says of its metrics before it is run
        said, found = set(item.task.metric_names(item.config)), set(results[item.name].report["metrics"])
        assert found <= said
        assert said - found <= {"ece"}  # a model without a known scale has no confidences


def test_several_models_read_the_images_once_and_get_each_their_own_result(tasks):
    planned, _ = suite.plan_tasks(tasks)
    data = suite.open_data(planned, lambda path, split: RECORDS)
    features = np.random.default_rng(1).normal(size=(2, 4, 3))
    texts = np.random.default_rng(2).normal(size=(2, 8, 3))
    read = []

    def encode_images(images, *, names) -> np.ndarray:
        read.extend(images)
        return features

    encode_texts = [lambda given, model=model: texts[model, : len(given)] for model in range(2)]
    both = suite.evaluate_models(
        planned, data, encode_images=encode_images, encode_texts=encode_texts, logit_scales=[None, None]
    )
    assert read == [record.image for record in RECORDS]
    for model, found in enumerate(both):
        alone = suite.evaluate(
            planned, data, encode_images=lambda *_, one=features[model], **__: one, encode_text=encode_texts[model]
        )
        assert {name: result.rows for name, result in found.items()} == {name: r.rows for name, r in alone.items()}
    assert both[0]["one"].rows != both[1]["one"].rows


def test_a_task_without_data_is_absent_and_says_what_to_do(tasks):
    tasks["two"]["data"] = ""
    planned, absent = suite.plan_tasks(tasks)
    assert [item.name for item in planned] == ["one"]
    assert "--config.tasks.two.data=DIR" in absent["two"]


def test_an_unnamed_split_is_none(tasks):
    tasks["one"]["split"] = ""
    seen = []
    planned, _ = suite.plan_tasks({"one": tasks["one"]})
    suite.open_data(planned, lambda path, split: seen.append(split) or RECORDS)
    assert seen == [None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "zeroshot"}, r"config\.tasks\.one: unknown task type 'zeroshot'"),
        ({"promts": "x"}, r"config\.tasks\.one: .*did you mean prompts"),
    ],
)
def test_a_wrong_task_is_named(tasks, changes, message):
    with pytest.raises(EvaluationError, match=message):
        suite.plan_tasks({"one": tasks["one"] | changes})
    del tasks["one"]["split"]
    with pytest.raises(EvaluationError, match=r"config\.tasks\.one: .* split not there"):
        suite.plan_tasks(tasks)


@pytest.mark.parametrize(("prompts", "message"), [("kather", "not classes of the prompts"), ("kathr", "did you mean")])
def test_a_task_that_does_not_fit_its_data_is_named(tasks, prompts, message):
    tasks["one"]["prompts"] = prompts
    planned, _ = suite.plan_tasks(tasks)
    with pytest.raises(EvaluationError, match=f"task one .set test.: .*{message}"):
        suite.open_data(planned, lambda path, split: RECORDS)
