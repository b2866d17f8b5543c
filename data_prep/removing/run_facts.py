"""What a work folder's `run.json` says that a takedown needs: the platforms of its sources, and files outside of it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.sources.table import SOURCES

_RUN_NAME = "run.json"  # of data_prep.curation.config, which brings Beam along
_ALIASES = {"twitter": "x"}
_ROW = re.compile(r"#\d+$")  # of data_prep.sources.openpath_csv: another row about the same post
_PLATFORMS = {source.platform: source.platform for source in SOURCES.values() if source.platform}


def read_platforms(work: Path | None = None) -> dict[str, str]:
    """Return the platform by each name that a request may use: of a platform, of a source of the last run, or an alias.

    Args:
        work: The work folder; None, or one that no curation has filled, knows the platforms alone.
    """
    known = _ALIASES | _PLATFORMS
    for name, block in _run(work).get("sources", {}).items():
        if (kind := block.get("kind")) in SOURCES:
            known[name] = SOURCES[kind].platform or name
    return known


def platform_post(post: str, platforms: Mapping[str, str]) -> str:
    """Return how a post "SOURCE:ID" is called in all sources of its platform; empty where the platform is not known."""
    source, _, post_id = post.partition(":")
    if (platform := platforms.get(source, "")) not in _PLATFORMS:
        return ""
    post_id = _ROW.sub("", post_id)
    # The space keeps it apart from the names of sources.
    return f"platform {platform}:{post_id}" if post_id else ""


def verdict_files(work: Path) -> list[Path]:
    """Return the files of verdicts that the last run was configured with, wherever they are."""
    return [Path(file) for file in _run(work).get("verdicts", {}).get("files", ())]


def _run(work: Path | None) -> Mapping[str, Any]:
    if work is None or not (work / _RUN_NAME).exists():
        return {}
    return json.loads((work / _RUN_NAME).read_text(encoding="utf-8"))
