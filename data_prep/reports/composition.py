"""What the kept pairs are, in numbers: for the page of the funnel and the datasheet."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from data_prep.curation.pair import Pair
from data_prep.seen_ids import SeenIds

TOP_HASHTAGS = 32
"""As many as OpenPath was collected by and is shown by (Huang et al. 2023)."""

_MONTH = re.compile(r"[0-9]{4}-[0-9]{2}")


@dataclasses.dataclass(frozen=True)
class Composition:
    """Counts over the kept pairs.

    Attributes:
        splits: Pairs by split and source.
        words: By source: how many captions have so many words, separated by white space as the paper counts.
        hashtags: Pairs by hashtag, the `TOP_HASHTAGS` most frequent; spellings that differ in case are one tag, shown
            in its most frequent spelling.
        distinct_hashtags: How many there are in all.
        months: Pairs by "2021-03"; under "" where the time is not known.
        licences: Pairs by licence; "" is not known to us, "unknown" is what a source says.
        images: Different stored images.
        authors: Different authors of texts, where they are known.
    """

    splits: Mapping[str, Mapping[str, int]]
    words: Mapping[str, Mapping[int, int]]
    hashtags: Mapping[str, int]
    distinct_hashtags: int
    months: Mapping[str, int]
    licences: Mapping[str, int]
    images: int
    authors: int

    @property
    def pairs(self) -> int:
        """All kept pairs."""
        return sum(sum(sources.values()) for sources in self.splits.values())


def measure_composition(pairs: Iterable[Pair]) -> Composition:
    """Count over kept pairs, read once in any order; memory is 8 bytes an image and an author."""
    splits: dict[str, Counter[str]] = {}
    words: dict[str, Counter[int]] = {}
    spellings: dict[str, Counter[str]] = {}
    months: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    images, authors = SeenIds(), SeenIds()
    num_images = num_authors = 0
    for pair in pairs:
        splits.setdefault(pair.split, Counter())[pair.source] += 1
        words.setdefault(pair.source, Counter())[len(pair.caption.split())] += 1
        for hashtag in {tag.casefold(): tag for tag in reversed(pair.hashtags)}.values():  # once a pair
            spellings.setdefault(hashtag.casefold(), Counter())[hashtag] += 1
        month = pair.created_at[:7]
        months[month if _MONTH.fullmatch(month) else ""] += 1
        licences[pair.licence] += 1
        num_images += images.add(pair.clean_digest)
        num_authors += bool(pair.author) and authors.add(pair.author)
    hashtags = Counter({_ranked(counts)[0][0]: counts.total() for counts in spellings.values()})
    return Composition(
        splits={split: dict(_ranked(splits[split])) for split in sorted(splits)},
        words={source: dict(sorted(words[source].items())) for source in sorted(words)},
        hashtags=dict(_ranked(hashtags)[:TOP_HASHTAGS]),
        distinct_hashtags=len(hashtags),
        months=dict(sorted(months.items())),
        licences=dict(_ranked(licences)),
        images=num_images,
        authors=num_authors,
    )


def median_of(counts: Mapping[int, int]) -> float:
    """Return the median of values that occur so many times; the mean of the middle two where they are even in number.

    Raises:
        ValueError: There are none.
    """
    total = sum(counts.values())
    if not total:
        raise ValueError("no values to take the median of")
    middle = ((total - 1) // 2, total // 2)
    found: list[int] = []
    passed = 0
    for value in sorted(counts):
        passed += counts[value]
        found += [value for place in middle[len(found) :] if place < passed]
    return sum(found) / 2


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """The most frequent first, then by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
