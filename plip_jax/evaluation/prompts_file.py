"""Prompt files: class names and templates as JSON, their order and their hash.

``{"name": ..., "source": ..., "classes": {label: [class name, ...], ...}, "templates": ["An image of {}.", ...]}``.
The order of ``classes`` is the order of the classes in every score, matrix and table: it never comes from the data.
"""

import dataclasses
import difflib
import hashlib
import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "prompts"
_KEYS = ("name", "source", "classes", "templates")


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
        templates: each with one ``{}``.
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
        return [template.replace("{}", name) for name in names for template in self.templates]

    def to_dict(self) -> dict[str, Any]:
        """The file's own form, fit for JSON."""
        classes = {label: list(names) for label, names in zip(self.labels, self.class_names, strict=True)}
        return {"name": self.name, "source": self.source, "classes": classes, "templates": list(self.templates)}


def known_prompts() -> list[str]:
    """Names of the prompt files that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load_prompts(name_or_path: str) -> Prompts:
    """Read a prompt file that comes with the package (by name) or any other (by path).

    Raises:
        PromptError: no such file (the known names are listed), or every way in which it is malformed.
    """
    path = Path(name_or_path) if name_or_path.endswith(".json") else _FOLDER / f"{name_or_path}.json"
    if not path.is_file():
        near = difflib.get_close_matches(name_or_path, known_prompts(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        known = ", ".join(known_prompts())
        raise PromptError(f"no prompt file {name_or_path!r}{hint}; give a path that ends in .json, or one of {known}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_refuse_repeats)
    except ValueError as error:  # covers bad JSON, bad UTF-8 and a repeated key
        raise PromptError(f"{path}: {error}") from error
    problems = _problems(content)
    if problems:
        raise PromptError(f"{path}: " + "; ".join(problems))
    return Prompts(
        name=content["name"],
        source=content["source"],
        labels=tuple(content["classes"]),
        class_names=tuple(tuple(names) for names in content["classes"].values()),
        templates=tuple(content["templates"]),
    )


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
    problems += [
        f"template {t!r}: expected exactly one {{}} for the class name" for t in templates if t.count("{}") != 1
    ]
    return problems


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text.strip() for text in value)
