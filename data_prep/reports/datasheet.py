"""`datasheet.md`: what the dataset is, where it comes from, what was done to it, and who answers for it.

The sections are those of Gebru et al., "Datasheets for Datasets" (Communications of the ACM 64(12), 2021). Counts and
settings are filled in from the run; what only people can say is in `DatasheetSettings`, and what of it is required and
not said is named at the top.
"""

import dataclasses
import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.curation.rows import write_atomically
from data_prep.reports.composition import TOP_HASHTAGS, Composition, median_of
from data_prep.reports.flat_rows import flat_rows, settings_rows
from data_prep.reports.funnel import Funnel

DATASHEET_NAME = "datasheet.md"
REQUIRED = ("lawful_basis", "source_terms", "source_terms_date", "ethics_reference", "contact")


class DatasheetError(ValueError):
    """Required fields of the datasheet are missing, and nobody said that this is known."""


@dataclasses.dataclass(frozen=True)
class DatasheetSettings:
    """What only people can say, as text.

    Attributes:
        title: Name of the dataset.
        motivation: Why it was made.
        creators: Who made it, and for whom.
        funding: Who paid.
        lawful_basis: On which basis personal data is processed (e.g. GDPR Art. 6(1)(e) and 9(2)(j)). Required.
        source_terms: Under which terms the raw data was obtained and may be used. Required.
        source_terms_date: Day of the version of these terms, "2022-11-15". Required.
        ethics_reference: Number of the ethics approval, or of the waiver. Required.
        contact: Where people ask, and ask to be removed: an address that is read. Required.
        licence: Of the annotations that are ours; images and texts keep their own.
        intended_use: What it is for.
        prohibited_use: What it must not be used for.
        retention: How long raw data and the dataset are kept.
        distribution: To whom it is given, and how.
        limitations: Known errors, biases and gaps.
    """

    title: str = "Pathology image-text pairs"
    motivation: str = ""
    creators: str = ""
    funding: str = ""
    lawful_basis: str = ""
    source_terms: str = ""
    source_terms_date: str = ""
    ethics_reference: str = ""
    contact: str = ""
    licence: str = ""
    intended_use: str = "Research on image-text models of pathology."
    prohibited_use: str = (
        "Diagnosis, treatment or any other clinical use; finding out who the people behind posts or images are."
    )
    retention: str = ""
    distribution: str = ""
    limitations: str = ""


def missing_fields(settings: DatasheetSettings) -> tuple[str, ...]:
    """Return the names of required fields that say nothing, or no day where a day is asked for."""
    missing = [name for name in REQUIRED if not getattr(settings, name).strip()]
    try:
        datetime.date.fromisoformat(settings.source_terms_date)
    except ValueError:
        missing.append("source_terms_date")
    return tuple(name for name in REQUIRED if name in missing)


def check_datasheet(settings: DatasheetSettings, *, acknowledge_missing: bool) -> None:
    """Make sure, before anything is built, that the required fields are there or that their absence is known.

    Raises:
        DatasheetError: Fields are missing and that was not acknowledged.
    """
    missing = missing_fields(settings)
    if missing and not acknowledge_missing:
        raise DatasheetError(
            f"the datasheet lacks {', '.join(missing)}: fill them in (settings of the datasheet; source_terms_date is "
            "a day like 2022-11-15), or pass --acknowledge-missing, and the datasheet names them at its top"
        )


def write_datasheet(
    path: Path,
    settings: DatasheetSettings,
    *,
    funnel: Funnel,
    composition: Composition,
    proof: Mapping[str, Any],
    run_settings: Mapping[str, Any],
) -> None:
    """Write the datasheet as Markdown; equal input gives equal bytes.

    Args:
        path: Replaced where it is there.
        settings: What people say.
        funnel: What was dropped, where and why.
        composition: Of the kept pairs.
        proof: What the splits share, from `split.prove_disjoint`.
        run_settings: All settings of the run with their values, and versions; nested as they are.
    """
    parts = [
        f"# Datasheet: {_inline(settings.title)}",
        *_missing(settings),
        'The questions are those of Gebru et al., "Datasheets for Datasets" (Communications of the ACM 64(12), 2021).',
        "## Motivation",
        _answers(settings, ("motivation", "creators", "funding")),
        "## Composition",
        *_composition(composition, proof),
        "## Collection",
        *_collection(settings, composition),
        "## Preprocessing",
        *_preprocessing(funnel, run_settings),
        "## Uses",
        "For research only; not for clinical use.",
        _answers(settings, ("intended_use", "prohibited_use", "limitations")),
        "## Distribution",
        _answers(settings, ("distribution", "licence")),
        "The release mode (`python -m data_prep.release`) gives ids and addresses only, no images and no captions.",
        "## Maintenance",
        _answers(settings, ("contact", "retention")),
        "People can have their posts and images removed. Each copy, also of duplicates, is removed by\n\n"
        "```\npython -m data_prep.takedown --work WORK --out OUT --requests FILE\n```\n\n"
        "which rewrites the shards that held them and lists the models that were trained on them. Later runs leave out "
        "what was taken down.",
    ]
    write_atomically(path, ("\n\n".join(part for part in parts if part) + "\n").encode(errors="replace"))


_QUESTIONS = {
    "motivation": "Why was it made?",
    "creators": "Who made it?",
    "funding": "Who paid?",
    "lawful_basis": "On which lawful basis is personal data processed?",
    "source_terms": "Under which terms was the raw data obtained?",
    "source_terms_date": "Of which day are these terms?",
    "ethics_reference": "Ethics approval or waiver",
    "contact": "Whom to ask, and to ask for removal",
    "licence": "Licence of what is ours",
    "intended_use": "What is it for?",
    "prohibited_use": "What must it not be used for?",
    "retention": "How long is it kept?",
    "distribution": "To whom is it given, and how?",
    "limitations": "Known errors, biases and gaps",
}


def _missing(settings: DatasheetSettings) -> list[str]:
    missing = missing_fields(settings)
    if not missing:
        return []
    lines = "\n".join(f"> - `{name}`: {_QUESTIONS[name]}" for name in missing)
    return [f"> **Required and missing.** Whoever built this acknowledged it:\n>\n{lines}"]


def _answers(settings: DatasheetSettings, names: Sequence[str]) -> str:
    return "\n".join(f"- *{_QUESTIONS[name]}* {_inline(getattr(settings, name)) or '**not said**'}" for name in names)


def _composition(composition: Composition, proof: Mapping[str, Any]) -> list[str]:
    sources = sorted(composition.words)
    rows = [
        (split, sum(counts.values()), *(counts.get(source, 0) for source in sources))
        for split, counts in composition.splits.items()
    ]
    words = [
        (source, sum(counts.values()), f"{median_of(counts):g}") for source, counts in sorted(composition.words.items())
    ]
    total: Counter[int] = Counter()
    for counts in composition.words.values():
        total.update(counts)
    if total:
        words.append(("all", total.total(), f"{median_of(total):g}"))
    unknown = sum(count for licence, count in composition.licences.items() if licence in ("", "unknown"))
    return [
        f"{composition.pairs:,} pairs of an image and a text about it, with {composition.images:,} different images "
        f"and texts of {composition.authors:,} known authors, of whom only keyed hashes are held.",
        _table("Pairs by split and source", ("split", "pairs", *sources), rows),
        _table("Words per caption, separated by white space", ("source", "captions", "median"), words),
        _table(
            f"Pairs per hashtag, the {TOP_HASHTAGS} most frequent of {composition.distinct_hashtags:,}",
            ("hashtag", "pairs"),
            composition.hashtags.items(),
        ),
        f"The licence of {unknown:,} of {composition.pairs:,} pairs is unknown.",
        _table(
            "Pairs by licence",
            ("licence", "pairs"),
            [(licence or "(the source says nothing)", count) for licence, count in composition.licences.items()],
        ),
        _table("What the splits share", ("what", "found"), flat_rows(proof)),
    ]


def _collection(settings: DatasheetSettings, composition: Composition) -> list[str]:
    months = [month for month in composition.months if month]
    undated = composition.months.get("", 0)
    return [
        "Built from dumps of posts and tables that were held already; nothing was scraped.",
        f"The posts are of {min(months)} to {max(months)}; {undated:,} pairs have no date."
        if months
        else f"None of the {undated:,} pairs has a date.",
        _answers(settings, ("source_terms", "source_terms_date", "lawful_basis", "ethics_reference")),
    ]


def _preprocessing(funnel: Funnel, run_settings: Mapping[str, Any]) -> list[str]:
    rows = [
        (unit, step.stage, step.taken, step.kept, ", ".join(f"{reason} {count:,}" for reason, count in dropped) or "-")
        for unit in ("post", "pair")
        for step in funnel.totals(unit)
        for dropped in [step.dropped.items()]
    ]
    return [
        _table("Stages, with what they dropped", ("unit", "stage", "in", "kept", "dropped"), rows),
        "Authors' ids were replaced by keyed hashes before anything else was done. `decisions.parquet` says of each "
        "post and pair where it ended and why.",
        _table("All settings and versions", ("setting", "value"), settings_rows(run_settings)),
    ]


def _table(caption: str, head: Sequence[str], rows: Any) -> str:
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    if not lines:
        return f"{_inline(caption)}: none."
    top = "| " + " | ".join(_cell(cell) for cell in head) + " |"
    return "\n".join([f"{_inline(caption)}:\n", top, "|" + " --- |" * len(head), *lines])


def _cell(value: Any) -> str:
    return _inline(f"{value:,}" if isinstance(value, int) else str(value)).replace("|", "\\|")


def _inline(text: str) -> str:
    """Text on one line that brings no HTML along."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
