"""Prompt files: class names and templates as JSON, their order and their hash.

``{"name": ..., "source": ..., "classes": {label: [class name, ...], ...}, "templates": ["An image of {}.", ...]}``.
The order of ``classes`` is the order of the classes in every score, matrix and table: it never comes from the data.

CONCH's files (https://github.com/mahmoodlab/CONCH, ``prompts/*.json``) are read as they are: ``{"0": {"classnames":
{label: [...]}, "templates": ["an image of CLASSNAME."]}}``, one or more numbered sets in a file; ``FILE.json#1`` names
one of several. That prompts stay as they were when the first test score was seen is `prompts_lock`'s.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "prompts"
_KEYS = ("name", "source", "classes", "templates")
_CONCH_KEYS = ("classnames", "templates")
PLACEHOLDERS = ("{}", "CLASSNAME")
"""Where the class name stands in a template: ours, and CONCH's."""
_ONE_PLACE = f"expected exactly one {' or '.join(PLACEHOLDERS)} for the class name"


class PromptError(ValueError):
    """A prompt file is missing or malformed; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Prompts:
    """A prompt file as read.

    Attributes:
        name: of the file, for reports.
        source: where the prompts were published.
        labels: the classes as the data name them, in class order.
        class_names: for each label, the words that stand in a template.
        templates: each with one ``{}`` or ``CLASSNAME``.
    """

    name: str
    source: str
    labels: tuple[str, ...]
    class_names: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of what scores depend on: labels, class names and templates, in order."""
        content = {"classes": list(zip(self.labels, self.class_names, strict=True)), "templates": self.templates}
        return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()

    def texts(self, label: str) -> list[str]:
        """Every class name of a label in every template."""
        names = self.class_names[self.labels.index(label)]
        return [_fill(template, name) for name in names for template in self.templates]

    def to_dict(self) -> dict[str, Any]:
        """The file's own form, fit for JSON."""
        classes = {label: list(names) for label, names in zip(self.labels, self.class_names, strict=True)}
        return {"name": self.name, "source": self.source, "classes": classes, "templates": list(self.templates)}


def known_prompts() -> list[str]:
    """Names of the prompt files that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load_prompts(name_or_path: str) -> Prompts:
    """Read a prompt file that comes with the package (by name) or any other (by path).

    Args:
        name_or_path: a known name, ``FILE.json``, or ``FILE.json#N`` for one of CONCH's numbered sets.

    Raises:
        PromptError: no such file or set (the known ones are listed), every way in which it is malformed, or a file of
            several sets without a number.
    """
    first, *others = load_prompt_sets(name_or_path)
    if others:
        names = ", ".join(f"{name_or_path}#{prompts.name.rpartition('#')[2]}" for prompts in (first, *others))
        raise PromptError(f"{name_or_path} holds {1 + len(others)} sets of prompts; name one: {names}")
    return first


def load_prompt_sets(name_or_path: str) -> tuple[Prompts, ...]:
    """As `load_prompts`, but every set of a file that holds several.

    Raises:
        PromptError: as `load_prompts`.
    """
    file, number = name_or_path, ""
    if ".json#" in name_or_path:
        file, _, number = name_or_path.rpartition("#")
    path = Path(file) if file.endswith(".json") else _FOLDER / f"{file}.json"
    if not path.is_file():
        near = difflib.get_close_matches(file, known_prompts(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        known = ", ".join(known_prompts())
        raise PromptError(f"no prompt file {file!r}{hint}; give a path that ends in .json, or one of {known}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_refuse_repeats)
    except ValueError as error:  # covers bad JSON, bad UTF-8 and a repeated key
        raise PromptError(f"{path}: {error}") from error
    sets = _conch_sets(content, path) if _is_conch(content) else {"": content}
    problems = [f"set {key}: {problem}" if key else problem for key in sets for problem in _problems(sets[key])]
    if problems:
        raise PromptError(f"{path}: " + "; ".join(problems))
    if number and number not in sets:
        raise PromptError(
            f"{path}: no set {number!r}; there is {', '.join(filter(None, sets)) or 'one without a number'}"
        )
    return tuple(_read(content) for key, content in sets.items() if number in ("", key))


def is_template(text: str) -> bool:
    """Whether a setting is a template and not the name of a prompt file."""
    return any(placeholder in text for placeholder in PLACEHOLDERS)


def check_template(template: str) -> None:
    """Raise PromptError unless the class name has exactly one place."""
    if sum(template.count(placeholder) for placeholder in PLACEHOLDERS) != 1:
        raise PromptError(f"template {template!r}: {_ONE_PLACE}")


def _fill(template: str, name: str) -> str:
    for placeholder in PLACEHOLDERS:
        if placeholder in template:
            return template.replace(placeholder, name)
    raise AssertionError(f"{template!r} was not checked")


def _read(content: Mapping[str, Any]) -> Prompts:
    return Prompts(
        name=content["name"],
        source=content["source"],
        labels=tuple(content["classes"]),
        class_names=tuple(tuple(names) for names in content["classes"].values()),
        templates=tuple(content["templates"]),
    )


def _is_conch(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(one, dict) and set(one) == set(_CONCH_KEYS) for one in content.values())
    )


def _conch_sets(content: Mapping[str, Mapping[str, Any]], path: Path) -> dict[str, dict[str, Any]]:
    """Numbered sets in our form; a lone one keeps the file's name."""
    return {
        key: {
            "name": path.stem if len(content) == 1 else f"{path.stem}#{key}",
            "source": f"set {key} of {path.name}, in the layout of CONCH's prompt files",
            "classes": one["classnames"],
            "templates": one["templates"],
        }
        for key, one in content.items()
    }


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON keeps the last of two equal keys silently: a class would vanish."""
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is there twice")
    return content


def _problems(content: Any) -> list[str]:
    if not isinstance(content, dict) or set(content) != set(_KEYS):
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        return [f"expected an object with exactly {', '.join(_KEYS)}, got {got}"]
    problems = [f"{key}: expected a string" for key in ("name", "source") if not isinstance(content[key], str)]
    classes, templates = content["classes"], content["templates"]
    if not isinstance(classes, dict) or len(classes) < 2:
        return [*problems, "classes: expected an object of two or more labels, each with a list of class names"]
    for label, names in classes.items():
        if not label or not _is_list_of_text(names):
            problems.append(
                f"classes[{label!r}]: expected a label and a list of one or more class names, got {names!r}"
            )
    if not _is_list_of_text(templates):
        return [*problems, f"templates: expected a list of one or more strings, got {templates!r}"]
    places = {t: sum(t.count(placeholder) for placeholder in PLACEHOLDERS) for t in templates}
    return problems + [f"template {t!r}: {_ONE_PLACE}" for t, count in places.items() if count != 1]


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text.strip() for text in value)
