"""What each stage of curation does with the rows of one part: the plain functions, wired to their settings.

A task takes the rows of a part, sorted, and yields rows that go on and decisions. None of them knows Beam, a clock or a
random number; the network and the order of the stages are `data_prep.curate`'s.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.curation.authors import AuthorKey, hash_author, hash_place
from data_prep.curation.config import SourceConfig
from data_prep.curation.conversations import conversation_of, find_conversations, tell_apart
from data_prep.curation.deletions import Deletions, judge_gone
from data_prep.curation.engine import KeyedRow
from data_prep.curation.pair import Decision, Pair, drop
from data_prep.curation.rows import encode_row, partition_of, read_part
from data_prep.curation.threads import pair_thread
from data_prep.curation.verdicts import Verdicts, VerdictSettings, awaits_person, judge, read_verdicts
from data_prep.fetching.adopt import adopt
from data_prep.fetching.hydration_settings import HydrationSettings
from data_prep.fetching.hydration_state import PERMANENT, HydrationState, Outcome
from data_prep.fetching.store import Store
from data_prep.images.clean_image import CleanImage, ImageFault, ImageSettings, clean_image
from data_prep.images.embeddings import ImageEncoder, embed, plip_encoder
from data_prep.images.gates import GateSettings, apply_gates, held_by, load_gates, scores_of
from data_prep.removing.purge import stand_in
from data_prep.removing.removal import TAKEDOWN, decision_goes
from data_prep.removing.tombstones import Tombstones
from data_prep.sources.fields import encodable
from data_prep.sources.post import UNSAFE_REASONS, Drop, Post
from data_prep.sources.table import SOURCES
from data_prep.text.clean_text import TextSettings, clean_text


@dataclasses.dataclass(frozen=True)
class Item:
    """What a source told: a post, or a decision about what could not be read."""

    id: str
    post: Post | None = None
    decision: Decision | None = None


def read_items(
    place: tuple[str, Path], *, sources: Mapping[str, SourceConfig], key: AuthorKey, partitions: int
) -> Iterator[KeyedRow]:
    """Read one file of a source; authors become keyed hashes here."""
    name, path = place
    source = sources[name]
    for read in SOURCES[source.kind].read(path, source.settings, source=name):
        found = encodable(read)
        if isinstance(found, Drop):
            decision = _unreadable(found, name, key)
            item, place_key = Item(decision.id, decision=decision), decision.id
        else:
            author = hash_author(key, source.platform, found.author) if found.author else ""
            post = dataclasses.replace(found, author=author)
            place_key = f"{name}:{post.id}"
            item = Item(place_key, post=post)
        yield partition_of(place_key, partitions), encode_row(item)


def _unreadable(found: Drop, name: str, key: AuthorKey) -> Decision:
    """The decision about what could not be read or may not be taken; its id does not tell the place."""
    is_unsafe = found.reason in UNSAFE_REASONS
    return Decision(
        "post",
        f"{name}:{hash_place(key, found.where)}",
        name,
        "source",
        found.reason,
        "" if is_unsafe else found.detail,
        where="" if is_unsafe else found.where,
    )


def judge_items(
    part: int, items: list[Item], *, tombstones: Tombstones, sources: Mapping[str, SourceConfig]
) -> Iterator[Post | Decision]:
    """Leave out what was taken down: such a post comes to no row but one that says so, with a salted hash.

    All items of an id are in one part, so different rows of a table that share one are told apart here.
    """
    posts: dict[str, list[Post]] = {}
    for item in items:
        if item.decision is not None:
            goes = len(tombstones) and decision_goes(item.decision, tombstones.has)
            yield stand_in(item.decision, tombstones.salt) if goes else item.decision
        elif item.post is not None:
            posts.setdefault(item.post.source, []).append(item.post)
    for source, group in posts.items():
        for post in group if sources[source].has_versions else tell_apart(group):
            yield stand_in(post, tombstones.salt) if tombstones.covers(post) else tombstones.redact(post)


def find_all_conversations(posts: Iterable[Post]) -> dict[str, str]:
    """Find the conversations that posts do not state themselves: "SOURCE:POST_ID" to the conversation."""
    by_source: dict[str, list[Post]] = {}
    for post in posts:
        by_source.setdefault(post.source, []).append(_bare(post))
    return {
        f"{source}:{post_id}": conversation
        for source, bare in by_source.items()
        for post_id, conversation in find_conversations(bare).items()
    }


def _bare(post: Post) -> Post:
    """No more of a post than what conversations are found by."""
    return Post(post.id, conversation_id=post.conversation_id, first_version=post.first_version, reply_to=post.reply_to)


def conversation_key(post: Post) -> str:
    """What the posts of a conversation share."""
    return f"{post.source}:{conversation_of(post)}"


def read_by_conversation(path: Path, *, found: Mapping[str, str], partitions: int) -> Iterator[KeyedRow]:
    """Read kept posts, each to the part of its conversation, which is filled in where only other posts tell it."""
    for post in read_part(path, Post):
        conversation = found.get(f"{post.source}:{post.id}")
        stated = dataclasses.replace(post, conversation_id=conversation) if conversation else post
        yield partition_of(conversation_key(stated), partitions), encode_row(stated)


def pair_conversations(
    part: int, posts: list[Post], *, sources: Mapping[str, SourceConfig], deletions: Mapping[str, Deletions]
) -> Iterator[Pair | Decision]:
    """Turn whole conversations into pairs, without what any dump of their platform says is gone."""
    for _, group in itertools.groupby(sorted(posts, key=conversation_key), key=conversation_key):
        conversation = list(group)
        source = sources[conversation[0].source]
        if source.platform in deletions:
            judged = [judge_gone(post, deletions[source.platform]) for post in conversation]
            yield from (one for one in judged if isinstance(one, Decision))
            conversation = [one for one in judged if isinstance(one, Post)]
        pairs, decisions = pair_thread(conversation, source.threads)
        yield from pairs
        yield from decisions


def clean_texts(part: int, pairs: list[Pair], *, sources: Mapping[str, SourceConfig]) -> Iterator[Pair | Decision]:
    """Clean the caption of each pair, or end it."""
    for pair in pairs:
        settings = sources[source_of(pair)].text_of(pair.source)
        text = clean_text(pair.raw_text, settings, language=pair.language, hashtags=pair.hashtags)
        if text.reason:
            yield drop(dataclasses.replace(pair, text_notes=text.notes), "text", text.reason, text.detail)
        else:
            yield dataclasses.replace(pair, caption=text.caption, text_notes=text.notes)


def source_of(pair: Pair) -> str:
    """The configured source of a pair, with which its id begins; `Pair.source` may be another name, of its role."""
    return pair.id.partition(":")[0]


def find_images(
    part: int,
    pairs: list[Pair],
    *,
    sources: Mapping[str, SourceConfig],
    settings: HydrationSettings,
    store: Store,
    state: HydrationState,
    tombstones: Tombstones,
) -> Iterator[Pair | Decision]:
    """Give each pair the digest of its image's bytes, or end it with the reason why there are none.

    A removed image that came back is deleted, and what led to it is forgotten.
    """
    for pair in pairs:
        if pair.url:
            found = state.lookup(pair.url)
            digest, reason = (found.digest, found.reason) if found else ("", "not_fetched")
        else:
            digest, reason = _adopt(sources[source_of(pair)].images, pair.path, settings, store)
        if tombstones.covers_image(digest):
            if pair.url:
                state.record(Outcome(pair.url, PERMANENT, TAKEDOWN))
            store.delete(digest)
            digest, reason = "", TAKEDOWN
        if digest:
            yield dataclasses.replace(pair, digest=digest)
        else:
            yield drop(_without_image(pair) if reason == TAKEDOWN else pair, "hydrate", reason)


def _without_image(pair: Pair) -> Pair:
    """Return a pair that does not say which image it was about, nor where it was."""
    return dataclasses.replace(pair, url="", path="", digest="", clean_digest="", phash="")


def _adopt(images: Path, name: str, settings: HydrationSettings, store: Store) -> tuple[str, str]:
    """Take a local file into the store; returns its digest, or the reason why not."""
    folder = os.path.abspath(images)
    path = Path(os.path.normpath(os.path.join(folder, name)))  # a name may be a whole path: Instaloader's are
    if not path.is_relative_to(folder):
        return "", "outside_images"
    (adopted,) = adopt([path], store, settings)
    return adopted.digest, adopted.reason


def read_by_digest(path: Path, *, partitions: int) -> Iterator[KeyedRow]:
    """Read pairs, each to the part of its image: an image is read once, however many texts it has."""
    for pair in read_part(path, Pair):
        yield partition_of(pair.digest, partitions), encode_row(pair)


def clean_images(
    part: int, pairs: list[Pair], *, settings: ImageSettings, work: Path, tombstones: Tombstones
) -> Iterator[Pair | Decision]:
    """Judge and strip each image once, and give what was found to all of its pairs."""
    originals, clean = Store(work / "store" / "originals"), Store(work / "store" / "clean")
    for digest, group in itertools.groupby(sorted(pairs, key=_digest_of), key=_digest_of):
        result = clean_image(originals.read(digest), settings)
        found: dict[str, Any] = {}
        if isinstance(result, CleanImage):
            # The hash of a flat image is noise.
            phash = "" if result.is_flat else result.phash
            if tombstones.covers_image(digest, phash) or tombstones.covers_image(result.sha256):
                result = ImageFault(TAKEDOWN, "")
            else:
                clean.put(result.data)
                found = {"clean_digest": result.sha256, "width": result.width, "height": result.height, "phash": phash}
        for pair in group:
            if isinstance(result, CleanImage):
                yield dataclasses.replace(pair, **found)
            else:
                known = _without_image(pair) if result.reason == TAKEDOWN else pair
                yield drop(known, "image", result.reason, result.detail)


def _digest_of(pair: Pair) -> str:
    return pair.digest


def apply_all_gates(
    part: int,
    pairs: list[Pair],
    *,
    settings: GateSettings,
    verdicts: VerdictSettings,
    contents: tuple[str, ...],
    work: Path,
) -> Iterator[Pair | Decision]:
    """Score the images of a part, end what the required gates refuse, and hold what the others find."""
    gates = load_gates(settings)
    if not gates:
        yield from pairs
        return
    clean = Store(work / "store" / "clean")
    images = {pair.clean_digest: clean.path(pair.clean_digest) for pair in pairs}
    encoder = _encoder(settings.checkpoint, settings.batch_size)
    features = embed(encoder, images, work / "vectors" / f"part-{part:05d}")
    scores = dict(zip(images, scores_of(gates, features, fingerprint=encoder.fingerprint), strict=True))
    known = _verdicts(verdicts, contents)
    for pair in pairs:
        judged = apply_gates(pair, scores[pair.clean_digest], gates)
        if isinstance(judged, Pair):
            held = held_by(judged, gates)
            if held and awaits_person(known.of(judged)):
                judged = judge(judged, known, held)
        yield judged


def apply_verdicts(
    part: int,
    pairs: list[Pair],
    *,
    settings: VerdictSettings,
    contents: tuple[str, ...],
    sources: Mapping[str, SourceConfig],
) -> Iterator[Pair | Decision]:
    """Let what people and language models said about a pair decide."""
    known = _verdicts(settings, contents)
    for pair in pairs:
        text = sources[source_of(pair)].text_of(pair.source)

        def clean(caption: str, text: TextSettings = text, language: str = text.language) -> str:
            return clean_text(caption, text, language=language).caption

        yield judge(pair, known, require_verdict=settings.require_verdict, clean_caption=clean)


@functools.cache
def _encoder(checkpoint: str, batch_size: int) -> ImageEncoder:
    return plip_encoder(checkpoint, batch_size=batch_size)


@functools.lru_cache(maxsize=1)
def _verdicts(settings: VerdictSettings, contents: tuple[str, ...]) -> Verdicts:
    """The verdicts, read once by a process; `contents` are hashes of the files, which may be written anew meanwhile."""
    del contents
    return read_verdicts([Path(file) for file in settings.files])


def read_same(path: Path) -> Iterator[KeyedRow]:
    """Read rows that stay in their part."""
    part = int(path.stem.removeprefix("part-"))
    for line in path.read_text(encoding="ascii").splitlines():
        yield part, line
