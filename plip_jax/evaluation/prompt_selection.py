"""Which prompts are scored: the published ones, one chosen on validation, or all; never the best on test.

A variant is a whole prompt file (its class names and templates ensembled) or one template alone with a file's class
names. Scores differ more between variants than between many models, so what all of them give is reported as a median
with its minimum and maximum.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.prompts_file import Prompts, check_template, is_template, load_prompt_sets

SELECTIONS = ("published", "validation", "all")


@dataclasses.dataclass(frozen=True)
class Variant:
    """Prompts that can be scored by themselves.

    Attributes:
        name: its own among the variants of a task.
        kind: "file", or "template" for one alone.
        prompts: classes in the order of the task's own prompt file.
    """

    name: str
    kind: str
    prompts: Prompts

    def to_dict(self) -> dict[str, str]:
        """Name, kind and hash, fit for JSON."""
        return {"name": self.name, "kind": self.kind, "hash": self.prompts.hash}


def make_variants(published: Prompts, candidates: Sequence[str]) -> tuple[Variant, ...]:
    """Every prompt file as a whole, and every template of each alone.

    Args:
        published: the task's own prompt file; as a whole it comes first.
        candidates: other prompt files (a CONCH file's numbered sets are one each) and templates, which take the class
            names of the task's own file.

    Returns:
        Those that differ; whole files come first, then templates.

    Raises:
        PromptError: a file or template that cannot be read.
        EvaluationError: a file of other classes.
    """
    files = [published]
    templates = []
    for candidate in candidates:
        if is_template(candidate):
            check_template(candidate)
            templates.append((candidate, dataclasses.replace(published, templates=(candidate,))))
        else:
            files += [_in_order(prompts, published) for prompts in load_prompt_sets(candidate)]
    alone = [
        (f"{prompts.name}: {template}", dataclasses.replace(prompts, templates=(template,)))
        for prompts in files
        for template in prompts.templates
    ]
    found: dict[str, Variant] = {}
    for kind, named in (("file", [(p.name, p) for p in files]), ("template", [*alone, *templates])):
        for name, prompts in named:
            found.setdefault(prompts.hash, Variant(name, kind, prompts))
    return _with_own_names(list(found.values()))


def choose(scores: Sequence[float]) -> int:
    """The variant with the highest validation score; of equal ones the first."""
    return int(np.argmax(scores))


def sensitivity(
    variants: Sequence[Variant],
    metrics: Sequence[Mapping[str, float]],
    median_intervals: Mapping[str, Sequence[float] | None] | None = None,
) -> dict[str, Any]:
    """What all variants give, as a report's ``prompt_sensitivity``.

    Args:
        variants: V of them.
        metrics: of each.
        median_intervals: of the median over the variants, by metric, where they were made.

    Returns:
        ``num_variants``; ``metrics``, the median, minimum and maximum of each metric that every variant has; and
        ``variants`` with the metrics of each.
    """
    shared = [name for name in metrics[0] if all(name in found for found in metrics)]
    spread: dict[str, dict[str, Any]] = {}
    for name in shared:
        values = [found[name] for found in metrics]
        spread[name] = {"median": float(np.median(values)), "minimum": min(values), "maximum": max(values)}
        if median_intervals and name in median_intervals:
            spread[name]["median_interval"] = median_intervals[name]
    return {
        "num_variants": len(variants),
        "metrics": spread,
        "variants": [
            {**variant.to_dict(), "metrics": dict(found)} for variant, found in zip(variants, metrics, strict=True)
        ],
    }


def _in_order(prompts: Prompts, published: Prompts) -> Prompts:
    if set(prompts.labels) != set(published.labels):
        raise EvaluationError(
            f"candidates: expected prompts for the classes of {published.name} ({', '.join(published.labels)}), got "
            f"{prompts.name} with {', '.join(prompts.labels)}"
        )
    names_of = dict(zip(prompts.labels, prompts.class_names, strict=True))
    return dataclasses.replace(
        prompts, labels=published.labels, class_names=tuple(names_of[label] for label in published.labels)
    )


def _with_own_names(variants: list[Variant]) -> tuple[Variant, ...]:
    """Two files of one name are told apart by their hashes."""
    names = [variant.name for variant in variants]
    return tuple(
        variant
        if names.count(variant.name) == 1
        else dataclasses.replace(variant, name=f"{variant.name} ({variant.prompts.hash[:8]})")
        for variant in variants
    )
