"""Nested settings as rows of names and values, for the tables of reports."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

NOTHING = "-"
EVERY_OTHER = "(every other)"
"""Stands for the sources that are not named beside it."""

_OF_A_SOURCE = re.compile(r"(.*\bsources\.)(\w+)(\..+)")


def flat_rows(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return dotted names with their values as texts; what is empty is shown as `NOTHING`."""
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flat_rows(value, f"{prefix}{name}.") or [(f"{prefix}{name}", NOTHING)]
        else:
            rows.append((f"{prefix}{name}", _shown(value)))
    return rows


def settings_rows(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of `flat_rows`, but say a setting that all sources have once, and again where it differs.

    "sources.(every other).text.min_words" holds for each source that has no such line of its own.
    """
    rows = flat_rows(settings)
    by_setting: dict[str, dict[str, str]] = {}
    for name, value in rows:
        if found := _OF_A_SOURCE.fullmatch(name):
            by_setting.setdefault(f"{found[1]}{EVERY_OTHER}{found[3]}", {})[found[2]] = value
    sources = {source for values in by_setting.values() for source in values}
    folded = []
    for name, value in rows:
        found = _OF_A_SOURCE.fullmatch(name)
        general = f"{found[1]}{EVERY_OTHER}{found[3]}" if found else ""
        values = by_setting.get(general, {})
        ((common, count),) = Counter(values.values()).most_common(1) or [("", 0)]
        if count < 2 or values.keys() != sources:
            folded.append((name, value))
            continue
        if found and found[2] == next(iter(values)):
            folded.append((general, common))
        if value != common:
            folded.append((name, value))
    return folded


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(one) for one in value) or NOTHING
    return NOTHING if value is None else str(value) or NOTHING
