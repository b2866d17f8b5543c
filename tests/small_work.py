"""A work folder and the records built from it, by hand: rows of all stages, store, databases, pages; for takedowns.

Twenty-two posts are planted to be removed, one or more of each way to ask for it; the others refer to them in every
way that a row can, and stay.
"""

import base64
import dataclasses
import hashlib
import io
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.curation.pair import KEPT, STAGES, Decision, Pair
from data_prep.curation.rows import partition_of, write_part
from data_prep.shards import RecordsWriter
from data_prep.sources.post import Media, Post
from plip_jax.data.records import Record

PARTS = 4
_FILLED = {  # the fields of a pair, by the stage that fills them
    "text": ("caption",),
    "hydrate": ("digest",),
    "image": ("clean_digest", "phash", "width", "height"),
    "duplicate": ("duplicate_group",),
    "split": ("split", "group_id"),
}


def post_id(number: int) -> str:
    return str(1460000000000000000 + 7919 * number)


def make_image(seed: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A post and what became of it: its pair at the end, and where it was dropped."""

    name: str
    post: Post
    original: bytes = b""
    clean: bytes = b""
    pair: Pair | None = None
    stage: str = KEPT
    reason: str = ""
    detail: str = ""

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be found once it is removed."""
        urls = tuple(media.url for media in self.post.media)
        pair = (self.pair.caption, self.pair.digest, self.pair.clean_digest) if self.pair is not None else ()
        return tuple(text for text in (self.post.id, self.post.permalink, *self.post.captions, *urls, *pair) if text)


def entry(
    name: str,
    number: int,
    *,
    author: str = "",
    stage: str = KEPT,
    reason: str = "",
    detail: str = "",
    answers: Entry | None = None,
    copies: Entry | None = None,
    same_bytes: bool = False,
    group: str = "",
    text: str = "",
    kind: str = "original",
    first_version: str = "",
    thread: str = "",
) -> Entry:
    """Make an entry; one that answers another is a reply about its image, one that copies another has its image."""
    own, where = post_id(number), f"twitter:{post_id(number)}"
    caption = f"Caption {name}: keratin pearls of case {number * 991}, näher beschrieben"
    author = author or hashlib.md5(name.encode()).hexdigest()
    original, clean = make_image(number, "JPEG"), make_image(number)
    phash = f"{int.from_bytes(hashlib.md5(name.encode()).digest()[:8], 'big'):016x}"
    media = (Media(f"3_{own}", f"https://pbs.example/media/{name}-{number}.jpg"),)
    if copies is not None and copies.pair is not None:
        phash = f"{int(copies.pair.phash, 16) ^ 1:016x}"
        group = copies.pair.duplicate_group
        if same_bytes:
            original, clean, phash = copies.original, copies.clean, copies.pair.phash
    post = Post(
        own,
        () if answers else media,
        (text or f"{caption} #pathology \N{MICROSCOPE} <b>",),
        "twitter",
        f"page.json line {number}",
        "reply" if answers else kind,
        conversation_id=thread or (answers.post.id if answers else own),
        reply_to=answers.post.id if answers else "",
        author=author,
        first_version=first_version,
        permalink=f"https://x.example/{name}/status/{own}",
    )
    shown = answers or Entry("", post, original, clean)
    key = shown.post.media[0].key
    pair = Pair(
        id=f"{where}:{key}",
        source="twitter_reply" if answers else "twitter",
        post_id=own,
        image_post_id=shown.post.id,
        media_key=key,
        conversation_id=f"twitter:{post.conversation_id}",
        author=author,
        image_author=shown.post.author,
        permalink=post.permalink,
        url=shown.post.media[0].url,
        raw_text=post.captions[0],
        caption=caption,
        digest=hashlib.sha256(shown.original).hexdigest(),
        clean_digest=hashlib.sha256(shown.clean).hexdigest(),
        phash=answers.pair.phash if answers and answers.pair else phash,
        width=24,
        height=20,
        duplicate_group=group or (answers.pair.duplicate_group if answers and answers.pair else f"{where}:{key}"),
        group_id=f"g{number:016x}",
        split="test" if number % 5 == 0 else "train",
    )
    no_pair = stage in ("source", "thread")
    return Entry(name, post, shown.original, shown.clean, None if no_pair else pair, stage, reason, detail)


def planted() -> dict[str, Entry]:
    """The posts that go, by name."""
    found = {f"post{i}": entry(f"post{i}", i) for i in range(6)}
    found |= {f"author{i}": entry(f"author{i}", 10 + i, author="a" * 32) for i in range(3)}
    found |= {name: entry(name, 20 + i) for i, name in enumerate(("url", "page", "sha", "phash", "file"))}
    found["copy"] = entry("copy", 30, copies=found["post0"], stage="duplicate", reason="near_copy", detail="of another")
    found["same"] = entry("same", 31, copies=found["post1"], same_bytes=True, stage="duplicate", reason="same_bytes")
    found["reply"] = entry("reply", 32, answers=found["post2"])
    text = "RT @someone: " + found["post3"].post.captions[0][:40] + "\u2026"
    found["repost"] = entry("repost", 33, kind="repost", text=text, stage="thread", reason="repost")
    found["refused"] = entry("refused", 34, stage="source", reason="sensitive")
    found["threadless"] = entry("threadless", 35, stage="thread", reason="no_hashtag")
    found["old"] = entry("old", 36, first_version=post_id(36), stage="thread", reason="superseded")
    found["new"] = entry("new", 37, first_version=post_id(36))
    return found


def remark(answered: Entry) -> Entry:
    """A reply that goes by itself: the image it is about stays with its author's own text."""
    return entry("remark", 38, answers=answered)


def staying(gone: dict[str, Entry]) -> dict[str, Entry]:
    """The posts that stay; some refer to what goes."""
    found = {f"stay{i}": entry(f"stay{i}", 50 + i) for i in range(6)}
    # Its group has the name of the remark's pair, which goes.
    found["answered"] = entry("answered", 60, group=f"twitter:{post_id(38)}:3_{post_id(60)}")
    found["unchosen"] = dataclasses.replace(
        entry("unchosen", 61, answers=gone["post4"]),
        pair=None,
        stage="thread",
        reason="not_most_liked",
        detail=f"{gone['post4'].post.id} is",
    )
    found["guest"] = entry("guest", 62, thread=gone["post5"].post.id)
    quoting = f"As seen in {gone['post0'].post.permalink} and at https://lab.example/atlas, a fine case of it"
    found["quoting"] = entry("quoting", 63, text=quoting)
    short = entry("short", 64, stage="text", reason="too_short", detail="2 words")
    found["short"] = short
    return found


def write_world(work: Path, out: Path, entries: Sequence[Entry]) -> None:
    """Write everything that a build leaves behind."""
    write_stages(work, entries)
    pairs = [one for one in entries if one.pair is not None and one.stage != "text"]
    for one in pairs:
        for folder, data in (("originals", one.original), ("clean", one.clean)):
            digest = hashlib.sha256(data).hexdigest()
            path = work / "store" / folder / digest[:2] / digest
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    _write_databases(work, pairs)
    _write_pages(work, pairs)
    _write_records(out, [one for one in entries if one.stage == KEPT])
    _write_decisions(out, entries)


def _partly(pair: Pair, stage: str) -> Pair:
    """A pair as it is behind a stage."""
    later = [name for s in STAGES[STAGES.index(stage) + 1 :] for name in _FILLED.get(s, ())]
    blank = {name: 0 if name in ("width", "height") else "" for name in later}
    return dataclasses.replace(pair, **blank)


def decision(one: Entry) -> Decision:
    if one.pair is None:
        post = one.post
        about = ("twitter", one.stage, one.reason, one.detail)
        return Decision("post", f"twitter:{post.id}", *about, None, post.id, post.author, post.permalink)
    pair = one.pair if one.stage == KEPT else _partly(one.pair, one.stage)
    return Decision("pair", pair.id, pair.source, one.stage, one.reason, one.detail, pair)


def write_stages(work: Path, entries: Sequence[Entry]) -> None:
    for stage in STAGES:
        at = STAGES.index(stage)
        reach = [one for one in entries if one.stage == KEPT or STAGES.index(one.stage) >= at]
        dropped = [decision(one) for one in reach if one.stage == stage]
        passing = [one for one in reach if one.stage != stage]
        pairs = [_partly(one.pair, stage) for one in passing if one.pair is not None]
        kept = [one.post for one in passing] if stage == "source" else pairs
        for name, rows in (("kept", kept), ("dropped", dropped)):
            for part in range(PARTS):
                of_part = [row for row in rows if partition_of(row.id, PARTS) == part]
                write_part(work / "stages" / stage / name, part, of_part)
        counts = {"read": len(kept) + len(dropped), "kept": len(kept), "dropped": len(dropped)}
        if stage == "thread":
            counts["read"] = sum(1 for one in entries if one.stage != "source")
        done = json.dumps({"fingerprint": "f" * 8, "counts": counts}, indent=2, sort_keys=True) + "\n"
        (work / "stages" / stage / "DONE.json").write_text(done)


def _write_databases(work: Path, pairs: Sequence[Entry]) -> None:
    database = sqlite3.connect(work / "hydration.sqlite")
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE urls (url TEXT PRIMARY KEY, status TEXT, digest TEXT)")
    rows = dict.fromkeys((one.pair.url, "done", one.pair.digest) for one in pairs if one.pair)
    database.executemany("INSERT INTO urls VALUES (?, ?, ?)", rows)
    # A row that moves leaves its old bytes in a free page.
    database.execute("UPDATE urls SET status = status || hex(zeroblob(2000))")
    database.commit()
    database.close()
    (work / "vectors").mkdir()
    digests = list(dict.fromkeys(one.pair.clean_digest for one in pairs if one.pair))
    np.save(work / "vectors" / "clip.npy", np.arange(len(digests) * 3, dtype=np.float32).reshape(-1, 3))
    (work / "vectors" / "clip.json").write_text(json.dumps({"model": "clip", "digests": digests}))


def _write_pages(work: Path, pairs: Sequence[Entry]) -> None:
    (work / "thumbnails").mkdir()
    figures, lines, table = [], [], ["name,id"]
    for one in pairs:
        assert one.pair is not None
        (work / "thumbnails" / f"{one.pair.clean_digest}.jpg").write_bytes(one.clean)
        data = base64.b64encode(one.clean).decode()
        figures.append(f'<img data-digest="{one.pair.clean_digest}" src="data:image/png;base64,{data}">')
        lines.append(json.dumps({"id": one.pair.id, "keep": True, "caption": one.pair.caption, "source": "human"}))
        table.append(f"{one.name},{one.pair.id}")
    (work / "verdicts").mkdir()
    (work / "verdicts" / "human.jsonl").write_text("not a verdict\n" + "\n".join(lines) + "\n")
    (work / "review").mkdir()
    (work / "review" / "all.html").write_text("\n".join(figures))
    (work / "review" / "sheet.csv").write_text("\n".join(table))
    (work / "review" / "sheet-1.png").write_bytes(pairs[0].clean)
    (work / "notes.json").write_text('{"settings": {"seed": 0}}\n')
    leftover = work / "stages" / "text" / "kept" / ".part-00000.jsonl.4711-0badcafe"
    leftover.write_text(pairs[0].pair.raw_text if pairs[0].pair else "")


def _write_records(out: Path, kept: Sequence[Entry]) -> None:
    with RecordsWriter(out, max_shard_bytes=8_000) as writer:
        for one in kept:
            assert one.pair is not None
            pair = one.pair
            record = Record(pair.id, one.clean, (pair.caption,), pair.group_id, pair.source)
            writer.write(record, pair.split)
        shown = kept[0].pair
        assert shown is not None
        image = base64.b64encode(kept[0].clean).decode()
        page = f'<img data-digest="{shown.clean_digest}" src="data:image/png;base64,{image}"> {shown.caption}'
        writer.add_file("funnel.html", page)
        writer.add_file("datasheet.md", "# A datasheet\n")


def _write_decisions(out: Path, entries: Sequence[Entry]) -> None:
    columns = ("id", "source", "post_id", "image_post_id", "author", "digest", "clean_digest", "phash")
    rows = []
    for one in entries:
        end = decision(one)
        said = dataclasses.asdict(end.pair) if end.pair else dataclasses.asdict(end)
        row = {name: said.get(name) or "" for name in (*columns, "duplicate_group")}
        rows.append({**row, "unit": end.unit, "stage": end.stage, "reason": end.reason, "detail": end.detail})
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"plip_jax.versions": "{}"})
    pq.write_table(table, out / "decisions.parquet")
