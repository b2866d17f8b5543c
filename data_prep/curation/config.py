"""The configuration of a curation: each block of the file as its owner's dataclass, checked before anything is read."""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_prep.curated_shards import ShardSettings
from data_prep.curation.engine import EngineSettings
from data_prep.curation.rows import write_atomically
from data_prep.curation.threads import ROLES, ThreadSettings
from data_prep.curation.verdicts import VerdictSettings
from data_prep.fetching.hydration_settings import HydrationSettings
from data_prep.grouping.duplicates import DuplicateSettings
from data_prep.grouping.split import SplitSettings
from data_prep.images.clean_image import ImageSettings
from data_prep.images.gates import GateSettings
from data_prep.reports.datasheet import DatasheetSettings
from data_prep.sources.laion import LaionSettings
from data_prep.sources.table import SOURCES, find_source
from data_prep.text.clean_text import TextSettings

BLOCKS: dict[str, type[Any]] = {
    "threads": ThreadSettings,
    "text": TextSettings,
    "hydration": HydrationSettings,
    "image": ImageSettings,
    "gate": GateSettings,
    "verdicts": VerdictSettings,
    "duplicates": DuplicateSettings,
    "split": SplitSettings,
    "shards": ShardSettings,
    "datasheet": DatasheetSettings,
    "engine": EngineSettings,
}
"""The blocks of the file, but `sources`, and their owners. A source may change `threads` and `text` for itself."""

RUN_NAME = "run.json"
_WHOLE = BLOCKS.keys() - {"threads", "text"}
_SOURCE_FIELDS = ("kind", "path", "images", "settings", "threads", "text")
_TEXT_OF_LAION = {
    "questions": "keep"
}  # PLIP, Nature Medicine 2023, Methods; a source's own block `text` goes before it
_PATHS = ("require", "hold", "checkpoint", "files", "rows_file", "root")
"""Settings that are paths, in whichever block."""


class CurationError(ValueError):
    """The curation cannot be done as it is configured; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One raw source.

    Attributes:
        name: What the funnel counts by.
        kind: An entry of `SOURCES`.
        path: File or folder of the dump.
        images: Folder that paths of images are relative to.
        settings: Of the reader, its own dataclass.
        threads: Which posts and replies are taken.
        text: How its captions are cleaned.
        text_of_laion: How those of its pairs are that come from LAION, whose questions are kept.
    """

    name: str
    kind: str
    path: Path
    images: Path
    settings: Any
    threads: ThreadSettings
    text: TextSettings
    text_of_laion: TextSettings

    @property
    def platform(self) -> str:
        """What its author ids belong to: two dumps of one platform share them, two tables do not."""
        return SOURCES[self.kind].platform or self.name

    @property
    def has_versions(self) -> bool:
        """Whether two of its posts with one id are versions or copies of one; else see `conversations.tell_apart`."""
        return SOURCES[self.kind].has_versions

    def text_of(self, pair_source: str) -> TextSettings:
        """How the caption of a pair is cleaned, by its field `source`."""
        return self.text_of_laion if pair_source == ROLES["laion"] else self.text


@dataclasses.dataclass(frozen=True)
class CurationConfig:
    """The whole configuration; `values` is the file as it was read."""

    sources: tuple[SourceConfig, ...]
    hydration: HydrationSettings
    image: ImageSettings
    gate: GateSettings
    verdicts: VerdictSettings
    duplicates: DuplicateSettings
    split: SplitSettings
    shards: ShardSettings
    datasheet: DatasheetSettings
    engine: EngineSettings
    values: Mapping[str, Any]

    @classmethod
    def read(cls, config: Any) -> "CurationConfig":
        """Check every block.

        Args:
            config: ConfigDict of `configs/data/*.py`, or the same as nested mappings.

        Raises:
            CurationError: A block or field is missing, unknown or wrong, no source has a path, or images of LAION are
                taken without any gate.
        """
        blocks = _plain(config)
        _check_names("config", blocks, (*BLOCKS, "sources"), needed=("threads", "text", "sources"))
        owned = {name: _make(kind, (blocks.get(name, {}),), name) for name, kind in BLOCKS.items() if name in _WHOLE}
        sources = _read_sources(blocks)
        _check_gates(sources, owned["gate"])
        return cls(sources=sources, **owned, values=blocks)

    def save(self, work: Path) -> None:
        """Note in the work folder what it was last made with."""
        write_atomically(work / RUN_NAME, (json.dumps(self.values, indent=2) + "\n").encode())

    @classmethod
    def load(cls, work: Path) -> "CurationConfig":
        """Read what `save` wrote.

        Raises:
            CurationError: There is nothing, or no configuration.
        """
        path = work / RUN_NAME
        try:
            return cls.read(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError) as error:
            raise CurationError(f"{path} cannot be read ({error}): is {work} a work folder of curate?") from error

    def by_source(self) -> dict[str, SourceConfig]:
        """The sources by name."""
        return {source.name: source for source in self.sources}

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted name, JSON-able, for the report. Paths of this machine are not among them."""
        flat: dict[str, Any] = {}
        for block in ("hydration", "image", "gate", "verdicts", "duplicates", "split", "shards"):
            flat |= _flatten(block, getattr(self, block))
        for source in self.sources:
            flat[f"sources.{source.name}.kind"] = source.kind
            for block in ("settings", "threads", "text"):
                flat |= _flatten(f"sources.{source.name}.{block}", getattr(source, block))
            if source.text_of_laion != source.text:
                flat |= _flatten(f"sources.{source.name}.text_of_laion", source.text_of_laion)
        return flat


def _plain(value: Any) -> Any:
    """A configuration as nested dicts and tuples, whether it comes from a file of Python or of JSON."""
    if isinstance(value, Mapping | ConfigDict):
        return {name: _plain(one) for name, one in value.items()}
    return tuple(_plain(one) for one in value) if isinstance(value, list | tuple) else value


def _flatten(prefix: str, settings: Any) -> dict[str, Any]:
    return {f"{prefix}.{name}": _without_folders(name, value) for name, value in dataclasses.asdict(settings).items()}


def _without_folders(name: str, value: Any) -> Any:
    """Of a path no more than its last part: where it lies on this machine is nobody's business."""
    if name not in _PATHS:
        return value
    return tuple(Path(one).name for one in value) if isinstance(value, tuple) else Path(value).name


def _read_sources(blocks: Mapping[str, Any]) -> tuple[SourceConfig, ...]:
    sources = []
    for name, block in blocks["sources"].items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name.endswith("_reply"):
            raise CurationError(f"sources.{name}: expected a name of letters, digits and _, not ending in _reply")
        _check_names(f"config.sources.{name}", block, _SOURCE_FIELDS, needed=("kind", "path"))
        for field in ("kind", "path", "images"):
            _check_type(f"config.sources.{name}.{field}", block.get(field, ""), str)
        if block["path"]:
            sources.append(_read_source(name, block, blocks))
    if not sources:
        known = ", ".join(blocks["sources"]) or "none"
        raise CurationError(
            f"no source has a path (sources of this config: {known}): give one, e.g. --config.sources.NAME.path=DUMP"
        )
    return tuple(sources)


def _check_gates(sources: tuple[SourceConfig, ...], gate: GateSettings) -> None:
    """Refuse to take images that nobody looked at without any gate, unless that is said to be known."""
    if gate.require or gate.hold or gate.acknowledge_no_gate:
        return
    for source in sources:
        if source.kind == "laion" or (source.kind == "openpath_csv" and source.settings.cleaned_release):
            raise CurationError(
                f"sources.{source.name} takes images of LAION, which nobody chose, and no gate judges them: give the "
                "files of gates (config.gate.require, config.gate.hold; `python -m data_prep.gate` trains them), or "
                "set config.gate.acknowledge_no_gate=True"
            )


def _read_source(name: str, block: Mapping[str, Any], blocks: Mapping[str, Any]) -> SourceConfig:
    where = f"sources.{name}"
    kind = find_source(block["kind"])
    path = Path(block["path"])
    settings = _make(kind.settings, (block.get("settings", {}),), f"{where}.settings")
    if isinstance(settings, LaionSettings) and settings.rows_file and not settings.root and path.is_dir():
        # the row numbers run over all that is read, not over each of its folders
        settings = dataclasses.replace(settings, root=str(path))
    threads, text = (block.get(one, {}) for one in ("threads", "text"))
    return SourceConfig(
        name=name,
        kind=block["kind"],
        path=path,
        images=Path(block.get("images") or (path if path.is_dir() else path.parent)),
        settings=settings,
        threads=_make(ThreadSettings, (blocks["threads"], threads), f"{where}.threads"),
        text=_make(TextSettings, (blocks["text"], text), f"{where}.text"),
        text_of_laion=_make(TextSettings, (blocks["text"], _TEXT_OF_LAION, text), f"{where}.text"),
    )


def _make(kind: Any, layers: Iterable[Any], where: str) -> Any:
    """Make settings from blocks of which a later one overrides an earlier one."""
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for layer in layers:
        _check_names(f"config.{where}", layer, [field.name for field in dataclasses.fields(kind)])
        values |= layer
    for name, value in values.items():
        _check_type(f"config.{where}.{name}", value, hints[name])
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise CurationError(f"config.{where}: {error}") from error


def _check_names(where: str, block: Any, known: Iterable[str], needed: Iterable[str] = ()) -> None:
    known = list(known)
    if not isinstance(block, Mapping):
        raise CurationError(f"{where}: expected a block of fields, got {block!r}")
    for name in block:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)
            hint = f"; the nearest known one is {near[0]}" if near else "; it has no fields"
            raise CurationError(f"{where}: unknown field {name}{hint}")
    if missing := [name for name in needed if name not in block]:
        raise CurationError(f"{where}: expected {', '.join(missing)}, which it has not")


def _check_type(where: str, value: Any, hint: Any) -> None:
    if not _fits(value, hint):
        shown = hint.__name__ if isinstance(hint, type) else str(hint)
        raise CurationError(f"{where}: expected {shown}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    """Say whether a value is of a type that settings have: a plain one, a tuple, or one of several."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        if inner[-1] is Ellipsis:
            return isinstance(value, tuple) and all(_fits(one, inner[0]) for one in value)
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if isinstance(value, bool):  # Python counts it among the whole numbers
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
