"""Finds everything that requests take along: posts, pairs, their copies, what is left without either.

What has a tombstone of an earlier takedown goes as well: a later run may have met a copy under another address, and the
post that it leaves with nothing must go as a whole. Reads the rows of all stages again and again until nothing is
added: three or four times, for a copy of a copy is in the same duplicate group. Memory grows with what is removed, not
with the dataset. The rules are `removal`.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data_prep.curation.pair import STAGES, Decision, Pair
from data_prep.curation.rows import part_files, read_part
from data_prep.removing.byte_scan import image_needles
from data_prep.removing.decision_table import read_decision_table
from data_prep.removing.removal import (
    TAKEDOWN,
    Has,
    decision_goes,
    has_owner,
    has_post,
    image_goes,
    is_about_others,
    pair_goes,
    post_goes,
    source_of,
    text_goes,
)
from data_prep.removing.run_facts import platform_post, read_platforms
from data_prep.removing.takedown_requests import Request
from data_prep.removing.tombstones import NEAR_BITS, Tombstones
from data_prep.sources.post import Post

Row = Post | Pair | Decision

_REPOST_MARK = re.compile(r"^RT @\w+:\s*")
_REPOST_LEAST = 20  # characters of a removed text that a repost must begin with; ours


@dataclasses.dataclass(frozen=True)
class Found:
    """What a takedown removes, in the clear: it is held in memory and never written.

    Attributes:
        targets: Values by kind, see `data_prep.removing.tombstones.KINDS`.
        counts: What there is of it: "posts" (rows of posts that pass the source), "pairs", "images" (different ones, as
            fetched), "rows" (in all stages and in the datasets' decisions).
        needles: What only removed rows say: ids, addresses, texts, digests; for the byte scan afterwards.
        images: Pieces of the removed images' files, likewise.
        repeated: How many "ids and texts" of removed posts are said by "rows" that stay, which nothing tells to go.
        unmatched: Of the requests, those that are about nothing there is.
    """

    targets: dict[str, set[str]]
    counts: dict[str, int]
    needles: frozenset[str]
    images: tuple[tuple[bytes, ...], ...] = ()
    repeated: dict[str, int] = dataclasses.field(default_factory=dict)
    unmatched: tuple[Request, ...] = ()


def stage_folders(work: Path) -> Iterator[tuple[Path, type[Row]]]:
    """Yield each folder of rows in a work folder and what its rows are."""
    for stage in STAGES:
        folder = work / "stages" / stage
        yield folder / "kept", Post if stage == "source" else Pair
        yield folder / "dropped", Decision


def find_targets(work: Path, requests: Iterable[Request], outs: Sequence[Path] = ()) -> Found:
    """Return all that the requests take along, and what of earlier takedowns came back.

    Args:
        work: The work folder.
        requests: What is asked for.
        outs: Records folders whose decisions are searched too: the work folder may have forgotten their posts.
    """
    search = _Search(work, outs)
    requests = tuple(requests)
    for request in requests:
        search.add(request.kind, request.value)
    search.asked_phashes = frozenset(int(phash, 16) for phash in search.targets["phash"])
    while True:
        before = search.size()
        for row in search.rows():
            search.absorb(row)
        if search.size() == before and not search.add_orphans():
            break
    return search.found(requests)


class _Search:
    """Grows the sets of what is removed, row by row."""

    def __init__(self, work: Path, outs: Sequence[Path]) -> None:
        self.targets: collections.defaultdict[str, set[str]] = collections.defaultdict(set)
        self.asked_phashes: frozenset[int] = frozenset()
        self._work = work
        self._outs = outs
        self._known = Tombstones.load(work)
        self._platforms = read_platforms(work)
        self._groups: set[str] = set()
        self._posts_of_pairs: dict[str, tuple[str, str]] = {}
        self._texts: dict[str, set[str]] = collections.defaultdict(set)
        self._unowned: dict[str, set[tuple[str, str]]] = collections.defaultdict(set)

    def rows(self) -> Iterator[Row]:
        """Yield the rows of all stages, and those of the decisions of the records folders."""
        for folder, kind in stage_folders(self._work):
            for path in part_files(folder):
                yield from read_part(path, kind)
        for out in self._outs:
            yield from read_decision_table(out)

    def has(self, kind: str, value: str) -> bool:
        """Say whether a value is removed by this takedown or was by an earlier one."""
        if not value:
            return False
        wide = platform_post(value, self._platforms) if kind == "post" else ""
        return value in self.targets[kind] or wide in self.targets[kind] or self._known.has(kind, value)

    def size(self) -> int:
        return sum(map(len, self.targets.values())) + len(self._groups)

    def absorb(self, row: Row) -> None:
        """Add what a row says if it goes."""
        if isinstance(row, Post):
            self._absorb_post(row)
        elif isinstance(row, Pair):
            self._absorb_pair(row)
        elif row.pair is not None:
            # A later run refused it for a copy of what was removed before.
            self._absorb_pair(row.pair, is_copy=row.reason == TAKEDOWN)
        elif decision_goes(row, self.has) and row.post_id:
            self.add("post", row.id, f"{row.source}:{row.post_id}")

    def _absorb_post(self, post: Post) -> None:
        if not post_goes(post, self.has) and not self._repeats_removed(post):
            return
        self.add("post", f"{post.source}:{post.id}")
        if post.first_version:
            self.add("post", f"{post.source}:{post.first_version}")
        self.add("url", *(media.url for media in post.media if not is_about_others(post)))
        for text in post.captions:
            self._texts[text[:_REPOST_LEAST]].add(text)

    def _repeats_removed(self, post: Post) -> bool:
        if post.kind != "repost":
            return False
        texts = (_REPOST_MARK.sub("", caption).rstrip("\u2026") for caption in post.captions)
        return any(
            len(text) >= _REPOST_LEAST and any(whole.startswith(text) for whole in self._texts[text[:_REPOST_LEAST]])
            for text in texts
        )

    def _absorb_pair(self, pair: Pair, *, is_copy: bool = False) -> None:
        text, image = text_goes(pair, self.has), is_copy or image_goes(pair, self.has) or self._is_copy(pair)
        if not (text or image or self.has("pair", pair.id)):
            return
        self.add("pair", pair.id)
        self._posts_of_pairs[pair.id] = (source_of(pair), pair.post_id)
        if text:
            self.add("post", f"{source_of(pair)}:{pair.post_id}")
        if not image and not has_owner(pair):
            self._unowned[pair.id].update(_image_of(pair))
        if image:
            self.add("url", pair.url)
            self.add("image", pair.digest, pair.clean_digest)
            self.add("phash", pair.phash)
            self._groups.update([pair.duplicate_group] if pair.duplicate_group else [])

    def _is_copy(self, pair: Pair) -> bool:
        if pair.duplicate_group in self._groups:
            return True
        bits = int(pair.phash, 16) if pair.phash and self.asked_phashes else None
        return bits is not None and any((bits ^ asked).bit_count() <= NEAR_BITS for asked in self.asked_phashes)

    def add(self, kind: str, *values: str) -> None:
        """Remove values; a post from all sources of its platform."""
        wide = [platform_post(value, self._platforms) for value in values] if kind == "post" else []
        self.targets[kind].update(value for value in (*values, *wide) if value)

    def add_orphans(self) -> bool:
        """Add the posts all of whose pairs are removed, and images without an owner that nothing else shows.

        Returns:
            Whether there were any.
        """
        candidates = {key for key in self._posts_of_pairs.values() if not has_post(self.has, *key)}
        shown: set[tuple[str, str]] = set()
        for row in self.rows() if candidates or self._unowned else ():
            pair = row if isinstance(row, Pair) else row.pair if isinstance(row, Decision) else None
            if pair is not None and not pair_goes(pair, self.has):
                candidates.discard((source_of(pair), pair.post_id))
                shown.update(_image_of(pair) if self._unowned else ())
        images = {one for image in self._unowned.values() if image.isdisjoint(shown) for one in image}
        images = {(kind, value) for kind, value in images if kind != "group" and not self.has(kind, value)}
        self._unowned.clear()
        self.add("post", *(f"{source}:{post_id}" for source, post_id in candidates))
        for kind, value in images:
            self.add(kind, value)
        return bool(candidates or images)

    def found(self, requests: Sequence[Request]) -> Found:
        """Count the rows that go, and collect what they say and no other row does."""
        counts = {"posts": 0, "pairs": 0, "images": 0, "rows": 0}
        pairs, digests, own, others = set(), set(), set(), set()
        asked = {(request.kind, request.value) for request in requests}
        matched = set()
        for row in self.rows():
            if not goes(row, self.has):
                continue
            counts["rows"] += 1
            counts["posts"] += isinstance(row, Post)
            for needle, is_own in _needles(row, self.has):
                (own if is_own else others).add(needle)
            matched.update(self._requested(row, asked))
            pair = row if isinstance(row, Pair) else row.pair if isinstance(row, Decision) else None
            if pair is not None:
                pairs.add(pair.id)
                digests.update([pair.digest] if self.has("image", pair.digest) else [])
        repeated, repeating = set(), 0
        for row in self.rows() if own or others else ():
            if not goes(row, self.has):
                said = {needle for needle, _ in _needles(row, self.has)}
                others -= said
                repeated |= said & own
                repeating += not said.isdisjoint(own)
        counts |= {"pairs": len(pairs), "images": len(digests)}
        return Found(
            {kind: set(values) for kind, values in self.targets.items()},
            counts,
            # Of a text that others say, its cleaned form is found in theirs.
            frozenset(needle for needle in own | others if not any(needle in text for text in repeated)),
            tuple(_image_pieces(self._work, digests)),
            {"ids and texts": len(repeated), "rows": repeating} if repeated else {},
            tuple(request for request in requests if (request.kind, request.value) not in matched),
        )

    def _requested(self, row: Row, asked: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Yield those of the requests that a row that goes is about."""
        for kind, value in _said(row):
            names = [value]
            if kind == "post":
                source, _, post_id = value.partition(":")
                platform = self._platforms.get(source)
                names += [
                    f":{post_id}",
                    *(f"{name}:{post_id}" for name, one in self._platforms.items() if one == platform),
                ]
            if kind == "phash" and value:
                bits = int(value, 16)
                names = [f"{one:016x}" for one in self.asked_phashes if (one ^ bits).bit_count() <= NEAR_BITS]
            yield from {(kind, name) for name in names} & asked


def goes(row: Row, has: Has) -> bool:
    """Say whether a row is removed, by the rule of its kind."""
    if isinstance(row, Post):
        return post_goes(row, has)
    return pair_goes(row, has) if isinstance(row, Pair) else decision_goes(row, has)


def _image_of(pair: Pair) -> set[tuple[str, str]]:
    image = (("url", pair.url), ("image", pair.digest), ("image", pair.clean_digest), ("group", pair.duplicate_group))
    return {(kind, value) for kind, value in image if value}


def _said(row: Row) -> Iterator[tuple[str, str]]:
    """Yield all that a request can name of a row: kind and value."""
    if isinstance(row, Decision) and row.pair is not None:
        row = row.pair
    if isinstance(row, Post):
        yield from (("post", f"{row.source}:{one}") for one in (row.id, row.first_version, row.reply_to) if one)
        yield from (("url", media.url) for media in row.media)
    elif isinstance(row, Pair):
        yield from (("post", f"{source_of(row)}:{one}") for one in (row.post_id, row.image_post_id) if one)
        yield from (("url", row.url), ("author", row.image_author), ("phash", row.phash))
        yield from (("image", row.digest), ("image", row.clean_digest))
    else:
        yield from (("post", f"{row.source}:{row.post_id}"), ("post", row.id))
    yield from (("author", row.author), ("url", row.permalink))


def _needles(row: Row, has: Has) -> Iterator[tuple[str, bool]]:
    """What a row says that must not be found once it is gone; short values, which are everywhere, are passed over.

    Yields:
        The value, and whether it is the removed post's own (id, page, text): what is left of a post whose image alone
        was removed stays by right, and so does another's equal cleaned caption.
    """
    if isinstance(row, Decision):
        if row.pair is not None:
            yield from _needles(row.pair, has)
            return
        values, ids, texts, is_own = [], [row.id, row.post_id, row.permalink], [], True
    elif isinstance(row, Post):
        values, ids, texts, is_own = [one.url for one in row.media], [row.id, row.permalink], row.captions, True
    else:
        values, ids = [row.url, row.digest, row.clean_digest], [row.id, row.post_id, row.permalink]
        texts, is_own = [row.raw_text], text_goes(row, has)
        yield from ((text, False) for text in [row.caption] if len(text) >= _LEAST_TEXT)
    # The image of a removed reply stays with the post that it was about.
    yield from ((value, False) for value in values if has("url", value) or has("image", value))
    yield from ((value, is_own) for value in ids if len(value) >= _LEAST_ID)
    yield from ((text, is_own) for text in texts if len(text) >= _LEAST_TEXT)


_LEAST_ID = 8  # characters: a shorter id is found in any number; ours
_LEAST_TEXT = 20  # characters; ours
_LEAST_BYTES = 16  # different ones in a piece of an image: a blank area has few, and looks like any other; ours


def _image_pieces(work: Path, digests: Iterable[str]) -> Iterator[tuple[bytes, ...]]:
    """Yield what to look for of each image's file, read before it is gone; nothing of one that is not there."""
    for digest in sorted(digests):
        path = work / "store" / "originals" / digest[:2] / digest
        pieces = image_needles(path.read_bytes()) if path.is_file() else ()
        if telling := tuple(piece for piece in pieces if len(set(piece)) >= _LEAST_BYTES):
            yield telling
