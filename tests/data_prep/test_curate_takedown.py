"""Twenty posts of a curated week are taken down: nothing of them is found, nothing else changes, they do not return."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from curated_week import Curated, assert_reconciles, kept_captions, rows_of
from curation_week import KEPT, LOADER, MOBILE, REDDIT, WEB, X1, X
from week_tables import FOLDER, LAION, OPENPATH, TABLE

from data_prep import takedown, verify
from data_prep.curation.authors import hash_author, load_author_key
from data_prep.removing.byte_scan import byte_scan, image_needles, text_needles
from data_prep.sources.post import Post
from plip_jax.data.records import Record, open_records, read_manifest

REPORTS = ("funnel.html", "funnel.json", "datasheet.md", "decisions.parquet")
PLATFORMS = {X: "x", X1: "x", WEB: "instagram", LOADER: "instagram", MOBILE: "instagram", REDDIT: "reddit"}


@dataclasses.dataclass(frozen=True)
class Asked:
    """A line of the requests, and the posts that go because of it."""

    line: dict
    gone: list[Post]


def first_kept(curated: Curated, source: str, images: int = 1) -> Iterator[Post]:
    """Plain posts of a source that are kept."""
    connected = {post.id for groups in curated.week.together.values() for group in groups for post in group}
    for post in curated.week.ended(source, *KEPT):
        is_plain = not post.reply_to and not post.group_id and post.id not in connected
        if is_plain and len(post.media) == images == len(image_bytes(curated, post)):
            yield post


def image_bytes(curated: Curated, post: Post) -> list[bytes]:
    """The images of a post as its source has them; none where they are not simply there."""
    week = curated.week
    places = [f"{post.source}/{media.path}" for media in post.media if media.path] or [f"{post.source}/{post.id}.jpg"]
    found = [week.files.get(place) for place in places] + [week.served.get(media.url) for media in post.media]
    return [data for data in found if data]


def plan_requests(curated: Curated) -> list[Asked]:
    """Of every kind, from every kind of source: twenty posts are asked for."""
    week = curated.week
    kept = {source: first_kept(curated, source) for source in week.posts}
    copies, versions, threads = (week.together[what][0] for what in ("copies", "versions", "threads"))
    carousel = next(first_kept(curated, X, images=3))
    question = next(week.ended(X, "text", "question"))
    missing = next(week.ended(TABLE, "hydrate", "missing_file"))

    def by_post(post: Post, *others: Post) -> Asked:
        return Asked({"kind": "post", "source": post.source, "value": post.id}, [post, *others])

    def by_author(source: str) -> Asked:
        post = next(kept[source])
        return Asked({"kind": "author", "platform": PLATFORMS[source], "value": post.author}, [post])

    def by_url(source: str) -> Asked:
        post = next(post for post in kept[source] if post.media[0].url)
        return Asked({"kind": "url", "value": post.media[0].url}, [post])

    def by_image(post: Post) -> Asked:
        return Asked({"kind": "image", "value": hashlib.sha256(image_bytes(curated, post)[0]).hexdigest()}, [post])

    deleted, streamed, left = next(kept[X]), next(kept[X1]), next(kept[X])
    later_copy = week.together["copies"][1]
    return [
        by_post(*copies),
        by_post(*versions),
        by_post(*threads),
        by_post(carousel),
        by_post(question),
        by_post(missing),
        by_post(next(kept[FOLDER])),
        *map(by_author, (X, WEB, MOBILE, REDDIT)),
        *map(by_url, (WEB, LAION, OPENPATH)),
        *(by_image(next(kept[source])) for source in (TABLE, LOADER)),
        # A copy is asked for, and what it was copied from goes with it.
        Asked(by_image(later_copy[1]).line, later_copy),
        Asked({"id": deleted.id, "action": "delete", "created_at": "2024-05-01T00:00:00Z"}, [deleted]),
        Asked({"delete": {"status": {"id": int(streamed.id), "id_str": streamed.id}}}, [streamed]),
        Asked({"user_delete": {"user": {"id": left.author}, "event_at": "2024-05-01T00:00:00Z"}}, [left]),
    ]


def needles_of(curated: Curated, posts: list[Post]) -> dict[str, tuple[bytes, ...]]:
    """What must be found of a post before and not after: its id, author, addresses, texts, digests and images."""
    key = load_author_key(curated.folder / "key", work=curated.work, out=curated.out)
    needles = {}
    for post in posts:
        name = f"{post.source}:{post.id}"
        texts = {"id": name, "caption": post.captions[0]}
        if post.source in PLATFORMS:
            texts["author"] = hash_author(key, PLATFORMS[post.source], post.author)
        texts |= {f"url {media.key}": media.url for media in post.media if media.url and "expired" not in media.url}
        reached = curated.week.truth.get(f"{name}:{post.media[0].key}", ("", ""))[0] if post.media else ""
        if reached in ("kept", "duplicate"):
            for number, data in enumerate(image_bytes(curated, post)):
                texts[f"digest {number}"] = hashlib.sha256(data).hexdigest()
                needles[f"{name} image {number}"] = image_needles(data)
        needles |= {f"{name} {what}": text_needles(text) for what, text in texts.items()}
    return needles


def records_of(out: Path) -> dict[str, Record]:
    return {record.id: record for split in read_manifest(out).splits for record in open_records(out, split)}


@dataclasses.dataclass(frozen=True)
class Taken:
    """A week behind its takedown; `found`, `records` and `funnel` are of before."""

    curated: Curated
    asked: list[Asked]
    needles: dict[str, tuple[bytes, ...]]
    found: set[str]
    records: dict[str, Record]
    funnel: dict
    status: int

    @property
    def gone(self) -> list[Post]:
        """The posts that go."""
        return [post for one in self.asked for post in one.gone]

    @property
    def gone_pairs(self) -> set[str]:
        """Ids of their kept pairs."""
        prefixes = tuple(f"{post.source}:{post.id}:" for post in self.gone)
        return {one for one in self.curated.week.captions if one.startswith(prefixes)}


@pytest.fixture(scope="module")
def taken(curated, tmp_path_factory) -> Taken:
    copy = curated.copy(tmp_path_factory.mktemp("takedown"))
    asked = plan_requests(copy)
    requests = copy.folder / "requests.jsonl"
    requests.write_text("".join(json.dumps(one.line) + "\n" for one in asked))
    needles = needles_of(copy, [post for one in asked for post in one.gone])
    found = {hit.needle for hit in byte_scan([copy.work, copy.out], needles)}
    records, funnel = records_of(copy.out), json.loads((copy.out / "funnel.json").read_text())
    folders = ["--work", str(copy.work), "--out", str(copy.out), "--author-key", str(copy.folder / "key")]
    status = takedown.main([*folders, "--requests", str(requests)])
    return Taken(copy, asked, needles, found, records, funnel, status)


def test_twenty_requests_of_all_kinds_are_followed(taken):
    assert len(taken.asked) == 20
    assert len({(post.source, post.id) for post in taken.gone}) == len(taken.gone) == 24
    assert taken.status == 0  # the program's own scan found nothing


def test_everything_about_them_was_there_and_nothing_is(taken):
    assert taken.found == taken.needles.keys()
    assert byte_scan([taken.curated.work, taken.curated.out], taken.needles) == []


def test_the_other_pairs_are_what_they_were(taken):
    out = taken.curated.out
    assert len(taken.gone_pairs) >= 20
    assert records_of(out) == {one: record for one, record in taken.records.items() if one not in taken.gone_pairs}
    assert verify.main([str(out)]) == 0


def test_the_reports_are_there_again_without_them(taken):
    out = taken.curated.out
    assert [name for name in REPORTS if not (out / name).is_file()] == []
    funnel = assert_reconciles(out)
    came = {source: steps[0]["in"] for source, steps in funnel["units"]["post"].items()}
    assert came == {source: steps[0]["in"] for source, steps in taken.funnel["units"]["post"].items()}
    assert funnel["totals"]["pair"][-1]["kept"] == len(taken.records) - len(taken.gone_pairs)
    assert {row.id for row in rows_of(out) if row.stage == "kept"} == kept_captions(out).keys()


@pytest.mark.slow
def test_a_run_from_the_same_dumps_does_not_bring_them_back(taken, tmp_path):
    server = taken.curated.week.server
    again = taken.curated.copy(tmp_path)
    shutil.rmtree(again.work / "stages")  # every stage begins anew
    before = server.counts()
    again.again(again.work, again.out)
    gone = {media.url.removeprefix(server.url) for post in taken.gone for media in post.media if media.url}
    assert {path for path, asked in server.counts().items() if asked > before[path]} & gone == set()
    assert byte_scan([again.work, again.out], taken.needles) == []
    assert kept_captions(again.out) == kept_captions(taken.curated.out)
    funnel = assert_reconciles(again.out)
    stand_ins = sum(steps[0]["dropped"].get("takedown", 0) for steps in funnel["units"]["post"].values())
    assert stand_ins == len(taken.gone)
    assert verify.main([str(again.out)]) == 0
