"""The task of zero-shot classification: prompts and labels checked first, then scored against the prompts' classes."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from plip_jax.evaluation import statistics, zero_shot
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.prompts_file import Prompts, load_prompts
from plip_jax.evaluation.task import TEST, Inputs, Task, TaskResult


@dataclasses.dataclass(frozen=True)
class ZeroShotConfig:
    """Settings of zero-shot classification.

    Attributes:
        prompts: name of a shipped prompt file, or path of one.
        missing_classes: "error", or "allow" where the data lack some of the prompt file's classes.
    """

    prompts: str
    missing_classes: str = "error"

    def __post_init__(self) -> None:
        if self.missing_classes not in ("error", "allow"):
            raise EvaluationError(f"missing_classes: expected error or allow, got {self.missing_classes!r}")


def check_zero_shot(config: ZeroShotConfig, data: Mapping[str, Examples]) -> tuple[Prompts, np.ndarray]:
    """Read the prompts, and number the labels in their order; both sides are named where they do not fit."""
    examples = data[TEST]
    prompts = load_prompts(config.prompts)
    allow_missing = config.missing_classes == "allow"
    return prompts, zero_shot.label_ids(examples.labels, prompts, allow_missing=allow_missing)


def run_zero_shot(config: ZeroShotConfig, inputs: Inputs) -> TaskResult:
    """Classify each image by the prompts of each class."""
    examples = inputs.test
    prompts, label_ids = check_zero_shot(config, inputs.data)
    assert inputs.model.encode_text is not None  # the suite asks for it: Task.needs
    classes = zero_shot.class_embeddings(prompts, inputs.model.encode_text)
    images = inputs.embed()
    scores = zero_shot.class_scores(images.features, classes)
    predicted = zero_shot.predict(scores)

    counts = statistics.confusion_matrix(label_ids, predicted, len(prompts.labels))
    constant, constant_metrics = statistics.best_constant_class(counts)
    precision, recall, f1 = statistics.per_class_f1(counts)
    per_class = {
        label: {
            "examples": int(counts[k].sum()),
            "predicted": int(counts[:, k].sum()),
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": float(f1[k]),
        }
        for k, label in enumerate(prompts.labels)
    }
    report = {
        "type": "zero_shot",
        "num_examples": len(images),
        "metrics": statistics.classification_metrics(counts).to_dict(),
        "constant_class": {"label": prompts.labels[constant], "metrics": constant_metrics.to_dict()},
        "per_class": per_class,
        "confusion": {"labels": list(prompts.labels), "rows": "actual", "counts": counts.tolist()},
        "prompts": prompts.to_dict(),
        "missing_classes": [label for label in prompts.labels if not per_class[label]["examples"]],
        "hashes": {"prompts": prompts.hash, "split": examples.hash},
    }
    rows = tuple(
        {"id": name, "label": label, "predicted": prompts.labels[k]}
        | {f"score_{other}": float(value) for other, value in zip(prompts.labels, row, strict=True)}
        for name, label, k, row in zip(images.ids, examples.labels, predicted, scores, strict=True)
    )
    return TaskResult(report, rows, correct=predicted == label_ids)


def zero_shot_metric_names(config: ZeroShotConfig) -> tuple[str, ...]:
    """Weighted F1, the score PLIP reports, and the others."""
    names = (field.name for field in dataclasses.fields(statistics.ClassificationMetrics))
    return "weighted_f1", *(name for name in names if name != "weighted_f1")


ZERO_SHOT = Task(ZeroShotConfig, check_zero_shot, run_zero_shot, zero_shot_metric_names, needs=frozenset({"text"}))
