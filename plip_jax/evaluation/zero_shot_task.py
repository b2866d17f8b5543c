"""The task of zero-shot classification: prompts and labels checked first, then scored against the prompts' classes."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plip_jax.evaluation import bootstrap, calibration, prompt_selection, statistics, zero_shot
from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.calibration import FittedScale
from plip_jax.evaluation.embeddings import EvaluationError, normalized
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.holdout import hold_out
from plip_jax.evaluation.prompt_selection import SELECTIONS, Variant
from plip_jax.evaluation.prompts_file import Prompts, load_prompts
from plip_jax.evaluation.task import TEST, Inputs, Task, TaskResult
from plip_jax.evaluation.units import Units, choose_units
from plip_jax.evaluation.zero_shot_answers import Answers, LabelScores

# Of a training split, for choosing, where there is no validation split: the share PLIP's fine-tuning takes.
_HELD_OUT = 0.3


@dataclasses.dataclass(frozen=True)
class ZeroShotConfig:
    """Settings of zero-shot classification.

    Attributes:
        prompts: name of a shipped prompt file, or path of one.
        missing_classes: "error", or "allow" where the data lack some of the prompt file's classes.
        top_k: cut-offs of top-k accuracy; those of 1 and of as many as there are classes say nothing new and are left
            out.
        graded: the order of the classes is that of grades; adds quadratic kappa.
        multi_label: examples have sets of labels; each label is scored by itself.
        by: name of an attribute (organ, magnification) to report each value of; "" for none.
        selection: "published" scores ``prompts``; "validation" chooses among them and ``candidates`` on validation
            data; "all" scores ``prompts`` and reports how far the scores of all others spread.
        candidates: prompt files and templates besides ``prompts``; each template of a file is one, too.
        val_split: of the same data, for choosing prompts and a temperature; "" for none.
        train_split: a part of it is held out where there is no ``val_split``; "" for none.
    """

    prompts: str
    missing_classes: str = "error"
    top_k: tuple[int, ...] = (1, 3, 5)
    graded: bool = False
    multi_label: bool = False
    by: str = ""
    selection: str = "published"
    candidates: tuple[str, ...] = ()
    val_split: str = ""
    train_split: str = ""

    def __post_init__(self) -> None:
        if self.missing_classes not in ("error", "allow"):
            raise EvaluationError(f"missing_classes: expected error or allow, got {self.missing_classes!r}")
        if self.selection not in SELECTIONS:
            raise EvaluationError(f"selection: expected one of {', '.join(SELECTIONS)}, got {self.selection!r}")
        if any(not isinstance(k, int) or k < 1 for k in self.top_k):
            raise EvaluationError(f"top_k: expected cut-offs of 1 or more, got {self.top_k}")
        if self.candidates and self.selection == "published":
            raise EvaluationError(
                "candidates: nothing reads them with selection=published; set selection to validation or all"
            )
        if self.selection == "validation" and not self.val_split and not self.train_split:
            raise EvaluationError(
                "selection=validation: expected val_split or train_split, the data to choose prompts on; or report all "
                "with selection=all"
            )
        if self.multi_label and self.graded:
            raise EvaluationError("graded: expected one label an example, got multi_label=true too")


@dataclasses.dataclass(frozen=True)
class _Checked:
    """What a task is about to do.

    Attributes:
        variants: the prompts in play; the first are the published ones.
        truth: by role, label ids int64 [N] or a label table bool [N, K].
    """

    variants: tuple[Variant, ...]
    truth: Mapping[str, np.ndarray]


def check_zero_shot(config: ZeroShotConfig, data: Mapping[str, Examples]) -> _Checked:
    """Read the prompts, and number the labels in their order; both sides are named where they do not fit.

    Raises:
        EvaluationError: labels and prompts that do not fit, or settings that the data cannot follow.
        PromptError: a prompt file is missing or malformed.
    """
    if config.selection == "validation" and set(data) == {TEST}:
        raise EvaluationError("selection=validation: the data have neither val_split nor train_split")
    prompts = load_prompts(config.prompts)
    variants = prompt_selection.make_variants(prompts, config.candidates)
    if config.selection == "published":
        variants = variants[:1]
    elif len(variants) == 1:
        raise EvaluationError(
            f"selection={config.selection}: {prompts.name} has one template and there are no candidates; name some"
        )
    examples = data[TEST]
    if config.by and config.by not in examples.attributes:
        known = ", ".join(examples.attributes) or "none"
        raise EvaluationError(f"by: the data have no attribute {config.by!r}; there is {known}")
    for role, other in data.items():
        if role != TEST and other.hash == examples.hash:
            raise EvaluationError(f"{role}_split: expected other examples than the test split, got the same ones")
    allow = {role: role != TEST or config.missing_classes == "allow" for role in data}
    if config.multi_label:
        truth = {r: zero_shot.label_table(e.label_sets, prompts, allow_missing=allow[r]) for r, e in data.items()}
    else:
        truth = {r: zero_shot.label_ids(e.labels, prompts, allow_missing=allow[r]) for r, e in data.items()}
    return _Checked(variants, truth)


def run_zero_shot(config: ZeroShotConfig, inputs: Inputs) -> TaskResult:
    """Classify each image by the prompts of each class."""
    examples = inputs.test
    checked = check_zero_shot(config, inputs.data)
    assert inputs.model.encode_text is not None  # the suite asks for it: Task.needs
    classes = zero_shot.class_embeddings_of([v.prompts for v in checked.variants], inputs.model.encode_text)
    chosen, fitted, selection = _use_validation(config, inputs, checked, classes)
    prompts = checked.variants[chosen].prompts
    images = inputs.embed()
    scores = zero_shot.class_scores(normalized(images), classes[chosen])
    found = _measured(config, prompts, scores, checked.truth[TEST], inputs.model.logit_scale, fitted)
    units = choose_units(examples)
    report = {
        "type": "zero_shot_multi_label" if config.multi_label else "zero_shot",
        "num_examples": len(images),
        "metrics": _in_order(config, found.metrics()),
        **found.report(),
        "prompts": prompts.to_dict(),
        "missing_classes": [
            label for k, label in enumerate(prompts.labels) if not _has_class(checked.truth[TEST], k).any()
        ],
        "selection": selection,
        "hashes": {"prompts": prompts.hash, "split": examples.hash, **_other_hashes(config, inputs, checked)},
    }
    if isinstance(found, Answers) and units.kind == "patient":
        report["patient_recognition_rate"] = _patient_recognition_rate(found, units)
        report["notes"] = [
            f"patient-level recognition rate (mean over {units.count} patients of the share of their images that is "
            f"right): {report['patient_recognition_rate']:.3f}."
        ]
    if config.by:
        report["by"] = _strata(config, examples, found, units, inputs.bootstrap)
    if config.selection == "all":
        report["prompt_sensitivity"] = _sensitivity(config, inputs, checked, classes, normalized(images), units)
    replicates: dict[str, np.ndarray] = {}
    if inputs.bootstrap is not None:
        replicates = _in_order(config, found.replicates(units, inputs.bootstrap))
        report["bootstrap"] = bootstrap.summarize(replicates, units, inputs.bootstrap)
        _add_class_intervals(report, found, units, inputs.bootstrap)
    correct = found.predicted == found.label_ids if isinstance(found, Answers) else None
    return TaskResult(report, _rows(examples, prompts, found), replicates=replicates, correct=correct)


def _measured(
    config: ZeroShotConfig,
    prompts: Prompts,
    scores: np.ndarray,
    truth: np.ndarray,
    scale: float | None = None,
    fitted: FittedScale | None = None,
) -> Answers | LabelScores:
    if config.multi_label:
        return LabelScores(prompts.labels, scores, truth)
    cut_offs = _cut_offs(config, prompts)
    return Answers(prompts.labels, scores, truth, scale, fitted, graded=config.graded, top_k=cut_offs)


def _use_validation(
    config: ZeroShotConfig, inputs: Inputs, checked: _Checked, classes: Sequence[np.ndarray]
) -> tuple[int, FittedScale | None, dict[str, Any]]:
    """Choose prompts and fit a temperature, where the settings ask for it; no test example is looked at.

    Returns:
        The number of the variant to score, the fitted scale, and the report's ``selection``.
    """
    selection: dict[str, Any] = {"mode": config.selection}
    role = next((role for role in ("val", "train") if role in inputs.data), None)
    if role is None or (config.multi_label and config.selection != "validation"):
        return 0, None, selection
    examples, truth = inputs.data[role], checked.truth[role]
    if role == "train":
        _, held = hold_out(examples, _HELD_OUT, seed=0)
        examples, truth = examples.subset(held), truth[held]
    features = normalized(inputs.model.embed(examples))
    chosen = 0
    if config.selection == "validation":
        criterion = zero_shot_metric_names(config)[0]
        tried = [
            _measured(config, v.prompts, zero_shot.class_scores(features, c), truth).metrics().get(criterion)
            for v, c in zip(checked.variants, classes, strict=True)
        ]
        if any(score is None for score in tried):
            raise EvaluationError(f"selection=validation: {criterion} is not defined on the validation examples")
        chosen = prompt_selection.choose([float(score) for score in tried if score is not None])
        selection |= {
            "criterion": criterion,
            "chosen": checked.variants[chosen].name,
            "candidates": [
                {**v.to_dict(), "validation": score} for v, score in zip(checked.variants, tried, strict=True)
            ],
        }
    selection |= {"num_validation_examples": len(examples), "validation_hash": examples.hash}
    scores = zero_shot.class_scores(features, classes[chosen])
    fitted = None if config.multi_label else calibration.fit_scale(scores, truth)
    return chosen, fitted, selection


def _patient_recognition_rate(found: Answers, units: Units) -> float:
    """Mean over the patients of the share of their images that is right (Spanhol et al. 2016, eq. 1 and 2)."""
    right = np.bincount(units.of_item, weights=found.predicted == found.label_ids, minlength=units.count)
    return float((right / np.bincount(units.of_item, minlength=units.count)).mean())


def _strata(
    config: ZeroShotConfig,
    examples: Examples,
    found: Answers | LabelScores,
    units: Units,
    intervals: BootstrapConfig | None,
) -> dict[str, Any]:
    """The metrics of each value of an attribute, as a report's ``by``."""
    values = np.asarray(examples.attributes[config.by])
    strata: dict[str, Any] = {}
    for value in sorted(set(values.tolist())):
        rows = np.flatnonzero(values == value)
        part = found.take(rows)
        strata[value or "unknown"] = {
            "num_examples": len(rows),
            "metrics": _in_order(config, part.metrics()),
            "constant_class": part.baseline(),
        }
        if intervals is not None:
            of_part = units.take(rows)
            replicates = _in_order(config, part.replicates(of_part, intervals))
            strata[value or "unknown"]["bootstrap"] = bootstrap.summarize(replicates, of_part, intervals)
    return {"attribute": config.by, "strata": strata}


def _sensitivity(
    config: ZeroShotConfig,
    inputs: Inputs,
    checked: _Checked,
    classes: Sequence[np.ndarray],
    features: np.ndarray,
    units: Units,
) -> dict[str, Any]:
    """Score every variant on test; none of them is singled out by it."""
    every, replicates = [], []
    for variant, own in zip(checked.variants, classes, strict=True):
        scores = zero_shot.class_scores(features, own)
        found = _measured(config, variant.prompts, scores, checked.truth[TEST], inputs.model.logit_scale)
        every.append(_in_order(config, found.metrics()))
        if inputs.bootstrap is not None:
            replicates.append(found.quick_replicates(units, inputs.bootstrap))
    intervals = None
    if inputs.bootstrap is not None:
        medians = {name: np.median([one[name] for one in replicates], axis=0) for name in replicates[0]}
        intervals = bootstrap.summarize(medians, units, inputs.bootstrap)["intervals"]
    return prompt_selection.sensitivity(checked.variants, every, intervals)


def _add_class_intervals(
    report: dict[str, Any], found: Answers | LabelScores, units: Units, config: BootstrapConfig
) -> None:
    if isinstance(found, LabelScores):
        for label, intervals in found.label_intervals(units, config).items():
            report["per_label"][label] |= {k: None if v is None else list(v) for k, v in intervals.items()}
        return
    for label, ends in zip(found.labels, found.f1_intervals(units, config), strict=True):
        report["per_class"][label]["f1_interval"] = None if ends is None else list(ends)


def _rows(examples: Examples, prompts: Prompts, found: Answers | LabelScores) -> tuple[dict[str, Any], ...]:
    scores = [
        {f"score_{label}": float(value) for label, value in zip(prompts.labels, row, strict=True)}
        for row in found.scores
    ]
    if isinstance(found, LabelScores):
        return tuple(
            {"id": name, "labels": ";".join(labels)} | row
            for name, labels, row in zip(examples.ids, examples.label_sets, scores, strict=True)
        )
    return tuple(
        {"id": name, "label": label, "predicted": prompts.labels[k]} | row
        for name, label, k, row in zip(examples.ids, examples.labels, found.predicted, scores, strict=True)
    )


def _has_class(truth: np.ndarray, k: int) -> np.ndarray:
    return truth[:, k] if truth.ndim == 2 else truth == k


def _other_hashes(config: ZeroShotConfig, inputs: Inputs, checked: _Checked) -> dict[str, str]:
    found = {role: examples.hash for role, examples in inputs.data.items() if role != TEST}
    if config.selection != "published":
        every = "".join(variant.prompts.hash for variant in checked.variants)
        found["candidates"] = hashlib.sha256(every.encode()).hexdigest()
    return found


def _cut_offs(config: ZeroShotConfig, prompts: Prompts) -> tuple[int, ...]:
    return tuple(k for k in dict.fromkeys(config.top_k) if 1 < k < len(prompts.labels))


def _in_order(config: ZeroShotConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in zero_shot_metric_names(config) if name in found}


def zero_shot_metric_names(config: ZeroShotConfig) -> tuple[str, ...]:
    """Weighted F1, the score PLIP reports, and the others; AUROC and mAP where examples have several labels.

    A report leaves out what its data do not define (AUROC with one class), and ``ece`` for a model without a scale.
    """
    if config.multi_label:
        return "auroc", "map"
    prompts = load_prompts(config.prompts)
    names = ["weighted_f1"]
    names += [field.name for field in dataclasses.fields(statistics.ClassificationMetrics) if field.name not in names]
    names += ["quadratic_kappa"] * config.graded
    names += [f"top{k}_accuracy" for k in _cut_offs(config, prompts)]
    names += ["auroc", "auprc"]
    names += ["sensitivity_at_95_specificity"] * (len(prompts.labels) == 2)
    return *names, "ece", *["ece_temperature"] * bool(config.val_split or config.train_split)


def prompts_to_freeze(config: ZeroShotConfig) -> tuple[str, ...]:
    """Every prompt file and template that a task may score, for `prompts_lock.freeze`."""
    return config.prompts, *(name for name in config.candidates if name != config.prompts)


def zero_shot_splits(config: ZeroShotConfig) -> dict[str, str]:
    """The validation split, or the training split to hold a part of out; none where no setting names one."""
    if config.val_split:
        return {"val": config.val_split}
    return {"train": config.train_split} if config.train_split else {}


ZERO_SHOT = Task(
    ZeroShotConfig,
    check_zero_shot,
    run_zero_shot,
    zero_shot_metric_names,
    splits=zero_shot_splits,
    needs=frozenset({"text"}),
    # Without them there is no temperature; prompts that are to be chosen need them, and the check says so.
    optional=frozenset({"train", "val"}),
    prompts=prompts_to_freeze,
)
