"""Judgements of single pairs by people and language models, read from JSON lines, and what they mean for a pair.

A line is `{"id", "keep", "caption", "reason", "source"}`. `id` is a pair's, or "sha256:DIGEST" of an image (as fetched
or as stored) and then holds for every pair of that image. `keep` is true or false. `caption` (optional, null or blank
for none) replaces the text. `reason` (optional) is for those who wrote it: it may quote the post, so it goes nowhere.
`source` says who: what begins with the word "human" is a person ("human:ab"), all else a model ("llm:NAME"). Further
fields are ignored. This is how IP-CLIP's "LLMs and manual filtering" is plugged in; its lines were not published.

Of several lines about one id a person's wins over a model's, then the later file over the earlier, then the later line;
a line wins as a whole, its caption with it. Of a pair's and its image's verdicts a person's wins too, and of two of
one kind the pair's.

What a gate holds (a face, a label) is released by a person alone: models are what the gate is there to check.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

from data_prep.curation.pair import Decision, Pair, drop

HUMAN, MODEL = "human", "llm"
IMAGE_PREFIX = "sha256:"
_PERSON = re.compile(r"human(?![a-z])", re.IGNORECASE)


class VerdictError(ValueError):
    """A file of verdicts cannot be read at all. The message says which and why."""


@dataclasses.dataclass(frozen=True)
class VerdictSettings:
    """What is done with verdicts; ours (IP-CLIP published none).

    Attributes:
        files: JSON lines, the later ones winning.
        require_verdict: Drop every pair that nobody judged.
    """

    files: tuple[str, ...] = ()
    require_verdict: bool = False


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was said about a pair or an image.

    Attributes:
        keep: Whether it belongs into the dataset.
        kind: `HUMAN` or `MODEL`.
        caption: The text to use; empty where the old one stays.
    """

    keep: bool
    kind: str
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """The winning verdicts, and what came up while they were read.

    Attributes:
        by_id: Of pairs by id and of images by "sha256:DIGEST".
        lines: Lines read, blank ones left out.
        repeats: Lines about an id that another line says the same of.
        conflicts: Lines about an id that another line says otherwise of (keep or caption).
        malformed: Place and fault of each line that says nothing: "FILE line N: fault", never its text.
    """

    by_id: dict[str, Verdict] = dataclasses.field(default_factory=dict)
    lines: int = 0
    repeats: int = 0
    conflicts: int = 0
    malformed: tuple[str, ...] = ()

    def of(self, pair: Pair) -> Verdict | None:
        """The verdict that counts for a pair, if there is one."""
        found = [self.by_id[one] for one in ids_of(pair) if one in self.by_id]
        return min(found, key=lambda verdict: verdict.kind != HUMAN, default=None)

    def unknown(self, ids: Container[str]) -> list[str]:
        """Ids of verdicts that are about nothing there is.

        Args:
            ids: Of all pairs, and of all images with the prefix "sha256:".
        """
        return sorted(one for one in self.by_id if one not in ids)


def ids_of(pair: Pair) -> tuple[str, ...]:
    """All ids under which a verdict may speak of a pair."""
    return (pair.id, *(IMAGE_PREFIX + digest for digest in (pair.digest, pair.clean_digest) if digest))


def awaits_person(verdict: Verdict | None) -> bool:
    """Say whether a held pair still waits for a person, given the verdict that counts for it."""
    return verdict is None or (verdict.keep and verdict.kind != HUMAN)


def read_verdicts(paths: Sequence[str | Path], *, only: Container[str] | None = None) -> Verdicts:
    """Read files of verdicts, the later ones winning.

    Args:
        paths: JSON lines in UTF-8.
        only: Ids to hold, those of one partition (`ids_of` its pairs); None holds all. Faults and counts other than
            `lines` and `malformed` are of these only.

    Raises:
        VerdictError: A file cannot be opened.
    """
    by_id: dict[str, Verdict] = {}
    lines, repeats, conflicts, malformed = 0, 0, 0, []
    for path in map(Path, paths):
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    lines += 1
                    parsed = _parse(line)
                    if isinstance(parsed, str):
                        malformed.append(f"{path.name} line {number}: {parsed}")
                        continue
                    one, verdict = parsed
                    if only is not None and one not in only:
                        continue
                    earlier = by_id.get(one)
                    if earlier is not None:
                        same = (earlier.keep, earlier.caption) == (verdict.keep, verdict.caption)
                        repeats, conflicts = repeats + same, conflicts + (not same)
                    if earlier is None or earlier.kind != HUMAN or verdict.kind == HUMAN:
                        by_id[one] = verdict
        except OSError as error:
            raise VerdictError(
                f"verdicts {path} cannot be read ({error}): correct the path, or leave it out"
            ) from error
    return Verdicts(by_id, lines, repeats, conflicts, tuple(malformed))


def _parse(line: bytes) -> tuple[str, Verdict] | str:
    """Id and verdict of a line, or what is wrong with it."""
    try:
        values: Any = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # not UTF-8 is a ValueError too
        return "not JSON in UTF-8"
    if not isinstance(values, dict):
        return "not an object"
    one, keep, caption, source = (values.get(name) for name in ("id", "keep", "caption", "source"))
    if not isinstance(one, str) or not one:
        return "no id"
    if not isinstance(keep, bool):
        return "keep is not true or false"
    if not isinstance(source, str) or not source:
        return "no source"
    if caption is not None and not isinstance(caption, str):
        return "caption is no text"
    kind = HUMAN if _PERSON.match(source) else MODEL
    if one.startswith(IMAGE_PREFIX):
        one = one.lower()
    return one, Verdict(keep, kind, (caption or "").strip())


def judge(
    pair: Pair,
    verdicts: Verdicts,
    held: Sequence[str] = (),
    *,
    require_verdict: bool = False,
    clean_caption: Callable[[str], str] = str.strip,
) -> Pair | Decision:
    """Apply the verdict about a pair.

    A rejected pair is dropped at the stage `verdict`. One that is kept may get another caption. A held pair that no
    person released stays out, at the stage `gate` that held it.

    Args:
        pair: The pair, scored.
        verdicts: From `read_verdicts`.
        held: Names of the gates that hold it, from `gates.held_by`.
        require_verdict: Drop what nobody judged.
        clean_caption: Masks and cleans a caption of a verdict; whoever wrote it may have seen the raw text.
    """
    verdict = verdicts.of(pair)
    if held and awaits_person(verdict):
        return drop(pair, "gate", f"held_{held[0]}", ", ".join(f"{name} {pair.scores[name]:g}" for name in held))
    if verdict is None:
        return drop(pair, "verdict", "no_verdict") if require_verdict else pair
    if not verdict.keep:
        return drop(pair, "verdict", f"rejected_{verdict.kind}")
    if not verdict.caption:
        return pair
    caption = clean_caption(verdict.caption)
    if not caption:
        return drop(pair, "verdict", "empty_caption")
    return dataclasses.replace(pair, caption=caption, text_notes={**pair.text_notes, "caption_from": verdict.kind})
