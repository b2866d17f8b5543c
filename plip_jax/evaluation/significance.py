"""Whether two models differ: paired bootstrap, McNemar's exact test, Holm's correction over a table.

The paired bootstrap is the comparison; McNemar's test stands beside it where its assumption holds, and Student's t over
seeds only because the papers print it. Every function gives JSON-able numbers, and says so where it gives none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from plip_jax.evaluation.bootstrap import interval
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.task import TaskResult
from plip_jax.evaluation.units import Units

# What two results must share for the rows of their replicates to be the same draws of the same examples.
_PAIRED_BY = ("unit", "num_units", "resamples", "seed", "level")
# Of scores in [-1, 1]: below it they differ by rounding.
_NO_SPREAD = 1e-12
AS_PUBLISHED = "as published: not a comparison of models"


def compare_results(first: TaskResult, second: TaskResult) -> dict[str, dict[str, Any]]:
    """Compare two models on one task, metric by metric.

    Args:
        first: of a task, with intervals.
        second: of the same task on the same split, with intervals.

    Returns:
        `paired_difference` (first less second) of each metric that both have replicates of.

    Raises:
        EvaluationError: other examples, or draws that are not the same.
    """
    for result in (first, second):
        if "bootstrap" not in result.report:
            raise EvaluationError("expected results with intervals to compare, got one without a bootstrap")
    splits = [result.report["hashes"].get("split") for result in (first, second)]
    if splits[0] != splits[1]:
        raise EvaluationError(f"expected results on the same split to compare, got splits {splits[0]} and {splits[1]}")
    blocks = [result.report["bootstrap"] for result in (first, second)]
    differ = {key: [block[key] for block in blocks] for key in _PAIRED_BY if blocks[0][key] != blocks[1][key]}
    if differ:
        raise EvaluationError(f"expected the same draws for both models, got other {differ}; evaluate them together")
    metrics = [result.report["metrics"] for result in (first, second)]
    return {
        name: paired_difference(
            first.replicates[name], second.replicates[name], metrics[0][name], metrics[1][name], blocks[0]["level"]
        )
        for name in first.replicates
        if name in second.replicates and name in metrics[0] and name in metrics[1]
    }


def paired_difference(
    first: np.ndarray, second: np.ndarray, first_value: float, second_value: float, level: float = 0.95
) -> dict[str, Any]:
    """Paired bootstrap of a difference.

    The p-value is two-sided: twice the smaller share of resamples in which the difference is not above, or not below,
    zero, with one added above and below the line, so that it is never 0 (Davison & Hinkley 1997, section 4.2.3).

    Args:
        first: replicates, float64 [R]; NaN where not defined.
        second: replicates from the same draws.
        first_value: the metric itself.
        second_value: that of the other model.
        level: of the interval.

    Returns:
        ``difference`` (first less second), ``interval``, ``p_value`` (both None where more than half of the resamples
        do not define it), ``resamples`` and ``undefined_resamples``.

    Raises:
        ValueError: replicates of different numbers of resamples.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"expected replicates of the same resamples, got {first.shape} and {second.shape}")
    differences = first - second
    defined = differences[np.isfinite(differences)]
    found = interval(differences, level)
    tail = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return {
        "difference": first_value - second_value,
        "interval": None if found is None else list(found),
        "p_value": None if found is None else min(1.0, 2 * (tail + 1) / (len(defined) + 1)),
        "resamples": len(differences),
        "undefined_resamples": len(differences) - len(defined),
    }


def mcnemar(first_correct: np.ndarray, second_correct: np.ndarray, units: Units) -> dict[str, Any]:
    """McNemar's exact test of two models' answers to the same examples (McNemar 1947; binomial, two-sided).

    It counts examples as independent, so it is made only where each of them is known to be a unit of its own.

    Args:
        first_correct: whether each example was right, bool [N].
        second_correct: the same of the other model.
        units: of the N examples.

    Returns:
        ``p_value``, ``only_first`` and ``only_second`` (examples that one model alone has right) and ``refused``, which
        is None or says why there is no p-value.

    Raises:
        ValueError: lengths differ.
    """
    first, second = np.asarray(first_correct, bool), np.asarray(second_correct, bool)
    if not first.shape == second.shape == units.of_item.shape:
        raise ValueError(
            f"expected the answers of two models to the same examples and their units, got {first.shape}, "
            f"{second.shape} and {units.of_item.shape}"
        )
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    refused = _dependence(units)
    p_value = None
    if refused is None:
        discordant = only_first + only_second
        p_value = float(stats.binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    return {"p_value": p_value, "only_first": only_first, "only_second": only_second, "refused": refused}


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down correction over a table (Holm 1979): each p-value adjusted for all of them.

    Args:
        p_values: by name; None for a comparison that was not made, which does not count as one.

    Returns:
        Adjusted p-values by name, in the order given.

    Raises:
        ValueError: a p-value outside [0, 1].
    """
    made = {name: p for name, p in p_values.items() if p is not None}
    wrong = {name: p for name, p in made.items() if not 0 <= p <= 1}
    if wrong:
        raise ValueError(f"expected p-values in [0, 1], got {wrong}")
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(made, key=made.__getitem__)):
        largest = max(largest, min(1.0, (len(made) - rank) * made[name]))
        adjusted[name] = largest
    return {name: adjusted.get(name) for name in p_values}


def student_t_over_seeds(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Student's t-test between scores of several seeds, as the papers print it.

    Seeds of one split share their test examples: the test tells whether training is noisy, not whether a model is
    better on other patients. So the result carries that label.

    Args:
        first: a score a seed.
        second: those of the other model.

    Returns:
        ``statistic``, ``p_value`` (two-sided, equal variances; None where no score varies), ``seeds`` and ``label``.

    Raises:
        ValueError: fewer than two seeds on a side.
    """
    if len(first) < 2 or len(second) < 2:
        raise ValueError(f"expected two or more seeds a model, got {len(first)} and {len(second)}")
    found = {"statistic": None, "p_value": None, "seeds": [len(first), len(second)], "label": AS_PUBLISHED}
    spreads = [float(np.std(scores, ddof=1)) for scores in (first, second)]
    if max(spreads) < _NO_SPREAD:
        return found
    # From means and spreads: scipy's other form warns where the scores of one side do not vary.
    test: Any = stats.ttest_ind_from_stats(  # scipy gives its results' fields no types
        np.mean(first), spreads[0], len(first), np.mean(second), spreads[1], len(second)
    )
    return {**found, "statistic": float(test.statistic), "p_value": float(test.pvalue)}


def _dependence(units: Units) -> str | None:
    """Why examples cannot be counted as independent; None where they can."""
    if units.kind == "patch":
        return (
            "no patient, slide or group is known, so nothing says that the examples are independent; patches of one "
            "slide are not"
        )
    if units.count < len(units.of_item):
        return (
            f"{len(units.of_item)} examples come from {units.count} {units.kind} units and are not independent; "
            "the paired bootstrap resamples those"
        )
    return None
