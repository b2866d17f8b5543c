"""Prompts frozen by their hash before a test label is read, and held to it afterwards.

A zero-shot score depends on its prompts so much that prompts tried until a test score looks good are a fit to the test
set. So the hashes of all prompts of a task are written to a file before its scores are; whoever then changes a prompt,
or tries another one, is told, and has to say so by starting a new report.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from plip_jax.evaluation.prompts_file import PromptError, check_template, is_template, load_prompt_sets

Locked = Mapping[str, Mapping[str, str]]
"""Task -> prompt file, set or template, as the config names it -> SHA-256."""


def freeze(names: Iterable[str]) -> dict[str, str]:
    """Hash prompts as they are now.

    Args:
        names: of shipped prompt files, paths (with or without ``#N``), and templates.

    Returns:
        The SHA-256 (hex) of what scores depend on, by name; a file of several sets has a line for each.

    Raises:
        PromptError: as `prompts_file.load_prompts`, or a template without a place for the class name.
    """
    found: dict[str, str] = {}
    for name in names:
        if is_template(name):
            check_template(name)
            found[name] = hashlib.sha256(name.encode()).hexdigest()
            continue
        sets = load_prompt_sets(name)
        for prompts in sets:
            found[name if len(sets) == 1 else f"{name}#{prompts.name.rpartition('#')[2]}"] = prompts.hash
    return found


def check_lock(path: Path, hashes: Locked) -> None:
    """Refuse prompts that are not those of a task's first test scores.

    Args:
        path: of the lock; where there is none, nothing was seen yet.
        hashes: by task, of `freeze`. A task that the lock does not hold is new and welcome.

    Raises:
        PromptError: a task's prompts were changed, added or left out (each is named), or a lock that cannot be read.
    """
    locked = _read(path)
    problems = []
    for task in hashes.keys() & locked.keys():
        before, now = locked[task], hashes[task]
        changed = [name for name in before.keys() & now.keys() if before[name] != now[name]]
        for what, names in (
            ("changed", changed),
            ("new", now.keys() - before.keys()),
            ("left out", before.keys() - now.keys()),
        ):
            problems += [f"task {task}: {name!r} is {what}" for name in sorted(names)]
    if problems:
        raise PromptError(
            f"prompts differ from those that test scores were already computed with ({path}): "
            + "; ".join(sorted(problems))
            + ". Choose prompts on validation (selection=validation) or report all of them (selection=all). To go on, "
            "put the old prompts back, or write into another folder and report both"
        )


def write_lock(path: Path, hashes: Locked) -> None:
    """Write the lock, beside the tasks that it already holds; call it before test labels are read.

    Raises:
        PromptError: as `check_lock`.
    """
    check_lock(path, hashes)
    content = {task: dict(found) for task, found in (_read(path) | dict(hashes)).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_text(json.dumps({"prompts": content}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {task: dict(found) for task, found in content["prompts"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PromptError(
            f"{path}: expected a lock of prompts, got something else ({error}); delete it only if no test score was "
            "computed with them"
        ) from error
