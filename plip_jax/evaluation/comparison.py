"""Models against each other: every pair on each task's first metric, paired, corrected over each kind of task.

One metric a task, chosen by the task and not by its result, so that the table is not a search for what differs.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from plip_jax.evaluation import significance
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.suite import PlannedTask
from plip_jax.evaluation.task import TaskResult
from plip_jax.evaluation.units import choose_units


def compare_models(
    planned: Sequence[PlannedTask],
    results: Mapping[str, Mapping[str, TaskResult]],
    data: Mapping[tuple[str, str], Examples],
) -> list[dict[str, Any]]:
    """Compare every pair of models.

    Args:
        planned: the tasks, in the order of the table.
        results: by model and task.
        data: the examples by source, for their units.

    Returns:
        A row for each task and pair that both models have intervals for, with ``task``, ``a``, ``b``, ``metric``,
        ``unit``, what `significance.paired_difference` finds (a less b), ``p_holm`` over the rows of its kind of task,
        and ``mcnemar`` of classifiers.
    """
    rows: list[dict[str, Any]] = []
    for item in planned:
        metric = item.task.metric_names(item.config)[0]
        with_it = {name: found[item.name] for name, found in results.items() if item.name in found}
        for (a, first), (b, second) in itertools.combinations(with_it.items(), 2):
            if metric not in first.replicates or metric not in second.replicates:
                continue
            row = {"task": item.name, "a": a, "b": b, "metric": metric, "unit": first.report["bootstrap"]["unit"]}
            row |= significance.compare_results(first, second)[metric]
            if first.correct is not None and second.correct is not None:
                units = choose_units(data[item.source])
                row["mcnemar"] = significance.mcnemar(first.correct, second.correct, units)
            rows.append(row)
    # A table is the tasks of one kind: over all kinds at once nothing could be significant, as no p-value of a
    # bootstrap is below 2 / (resamples + 1).
    adjusted: dict[str, float | None] = {}
    kind_of = {item.name: item.type_name for item in planned}
    for kind in dict.fromkeys(kind_of.values()):
        of_kind = {str(n): row["p_value"] for n, row in enumerate(rows) if kind_of[row["task"]] == kind}
        adjusted |= significance.holm(of_kind)
    return [{**row, "p_holm": adjusted[str(number)]} for number, row in enumerate(rows)]


def compare_over_seeds(
    planned: Sequence[PlannedTask], results: Mapping[str, Mapping[str, TaskResult]]
) -> list[dict[str, Any]]:
    """Student's t between models over the seeds of tasks that are run with several, as the papers print it.

    Args:
        planned: the tasks.
        results: by model and task; a report with ``seed_scores`` (setting -> a score a seed) is compared.

    Returns:
        A row for each task, setting and pair, with ``task``, ``a``, ``b``, ``setting`` and what
        `significance.student_t_over_seeds` finds.
    """
    rows: list[dict[str, Any]] = []
    for item in planned:
        with_it = {
            name: found[item.name].report["seed_scores"]
            for name, found in results.items()
            if item.name in found and found[item.name].report.get("seed_scores")
        }
        for (a, first), (b, second) in itertools.combinations(with_it.items(), 2):
            for setting in first.keys() & second.keys():
                if min(len(first[setting]), len(second[setting])) > 1:
                    found = significance.student_t_over_seeds(first[setting], second[setting])
                    rows.append({"task": item.name, "a": a, "b": b, "setting": setting, **found})
    return sorted(rows, key=lambda row: (row["task"], row["setting"], row["a"], row["b"]))
