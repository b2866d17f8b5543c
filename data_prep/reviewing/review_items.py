"""What a person is shown of the pairs that a run kept, dropped at a gate or holds for review.

Owns which pairs those are (`GROUPS`), the sample, and their small images. Reads the work folder, writes nothing.
"""

import dataclasses
import hashlib
import heapq
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from data_prep.curation.pair import STAGES, Decision, Pair
from data_prep.curation.rows import read_rows
from data_prep.curation.verdicts import IMAGE_PREFIX
from plip_jax.data.image import ImageError, decode_image

# Score of being unsafe from which on no copy of an image is written anywhere (LAION's own cut of punsafe).
_MAX_SAFETY = 0.5


class ReviewError(ValueError):
    """There is nothing to review, or no place for it. The message says what was expected, and what to do."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A pair to look at.

    Attributes:
        pair: As far as it came.
        reason: Why it was dropped or is held; empty where it is kept.
        image: Of its stored, stripped image.
    """

    pair: Pair
    reason: str
    image: Path


def _held(work: Path) -> Iterator[tuple[Pair, str]]:
    """Held pairs, whichever of the two stages wrote them down."""
    for stage in ("gate", "verdict"):
        yield from _dropped(work, stage, "held_")


def _below_gate(work: Path) -> Iterator[tuple[Pair, str]]:
    return _dropped(work, "gate", "not_")


def _dropped(work: Path, stage: str, prefix: str) -> Iterator[tuple[Pair, str]]:
    for decision in read_rows(work / "stages" / stage / "dropped", Decision):
        if decision.pair is not None and decision.reason.startswith(prefix):
            yield decision.pair, decision.reason


def _kept(work: Path) -> Iterator[tuple[Pair, str]]:
    """What the last finished stage kept, once images are stored."""
    for stage in reversed(STAGES[STAGES.index("image") :]):
        if (work / "stages" / stage / "DONE.json").is_file():
            yield from ((pair, "") for pair in read_rows(work / "stages" / stage / "kept", Pair))
            return


GROUPS: dict[str, Callable[[Path], Iterator[tuple[Pair, str]]]] = {
    "held": _held,
    "gate": _below_gate,
    "kept": _kept,
}
"""By the name of the group: a work folder to pairs with the reason why they are there."""


def sample_items(work: Path, group: str, count: int, seed: int) -> tuple[list[Item], int]:
    """Draw pairs of a group; the same for the same rows, whatever their order.

    Args:
        work: The work folder.
        group: One of `GROUPS`.
        count: Most pairs to draw.
        seed: Another one draws others.

    Returns:
        The items, in the order of the draw, and how many pairs there are in the group. Those whose image is no longer
        stored, or scored unsafe, are in neither.

    Raises:
        ReviewError: No work folder, or no pairs in the group.
    """
    if not (work / "stages").is_dir():
        raise ReviewError(f"{work} has no folder `stages`: expected the --work folder of `python -m data_prep.curate`")
    total = 0

    def shown() -> Iterator[Item]:
        nonlocal total
        for pair, reason in GROUPS[group](work):
            image = work / "store" / "clean" / pair.clean_digest[:2] / pair.clean_digest
            if (pair.safety is None or pair.safety < _MAX_SAFETY) and pair.clean_digest and image.is_file():
                total += 1
                yield Item(pair, reason, image)

    items = heapq.nsmallest(count, shown(), key=lambda item: (_draw(seed, item.pair.id), item.pair.id))
    if not items:
        raise ReviewError(
            f"{work}: no pair with a stored image in the group {group!r}; other groups: {', '.join(GROUPS)}"
        )
    return items, total


def _draw(seed: int, one: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{one}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


def small_image(item: Item, side: int) -> Image.Image | None:
    """The image of an item within a square, pixels; None where it cannot be read."""
    try:
        image = decode_image(item.image.read_bytes(), name=item.pair.id)
    except (ImageError, OSError):
        return None
    image.thumbnail((side, side))
    return image


def image_id(pair: Pair) -> str:
    """What a verdict calls the stored image of a pair."""
    return IMAGE_PREFIX + pair.clean_digest


def describe_scores(pair: Pair) -> str:
    """Scores of the gates in one line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in sorted(pair.scores.items()))
