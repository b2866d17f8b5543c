"""What a week has in tables and folders of images: LAION, OpenPath's release, figures, any CSV, any folder, IPATH."""

import csv
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from write_tables import laion_table

from data_prep.sources.fields import hashed_id
from data_prep.sources.post import Media, Post

if TYPE_CHECKING:
    from curation_week import Week  # which plants these

LAION, OPENPATH, FIGURES, TABLE, FOLDER, IPATH = "laion", "openpath", "figures", "table", "folder", "ipath"
_NO_IMAGE = b"this is no image, whatever it is called"
_ROLES = {"tweet": "Twitter", "reply": "Twitter reply", "laion": "PathLAION"}

Plant = Callable[[], object]


def plant_tables(week: "Week") -> list[Plant]:
    """A few of each: what is kept, and what each format can say or do wrong."""
    tables = (_laion, _openpath, _figures, _table, _folder, _ipath)
    return [plant for plants in tables for plant in plants(week)]


def _laion(week: "Week") -> list[Plant]:
    def row(url: str, **fields: object) -> Post:
        post_id = hashlib.sha256(url.encode()).hexdigest()[:32]
        return week.post(LAION, url, id=post_id, role="laion", **{"safety": 0.1, **fields})

    def question() -> None:
        text = f"What does section {week.number()} of this colon show?"
        week.keep(row(week.image(), captions=(text,)), caption=text)

    def unsafe(safety: float | None) -> Plant:
        def plant() -> None:
            row(week.image(), safety=safety)
            week.unsafe.append(week.posts[LAION].pop())
            week.unreadable[LAION, "unsafe_score"] += 1

        return plant

    return [lambda: week.keep(row(week.image())), question, unsafe(0.5), unsafe(None)]


def _openpath(week: "Week") -> list[Plant]:
    def row(role: str, *, with_file: bool = True, **fields: object) -> Post:
        key = f"3_{week.number()}"
        path = f"GIPath/{key}.jpg"
        if with_file:
            week.file(f"{OPENPATH}/{path}")
        return week.post(OPENPATH, media=(Media(key, path=path),), role=role, **fields)

    def from_laion() -> None:
        week.keep(week.post(OPENPATH, week.image(), id=str(week.number()), role="laion", hashtags=()))

    return [
        from_laion,
        lambda: week.keep(row("tweet")),
        lambda: week.keep(row("reply")),
        lambda: week.end(row("tweet", captions=()), "text", "empty"),
        lambda: week.end(row("tweet", with_file=False), "hydrate", "missing_file"),
        lambda: week.refuse(OPENPATH, "unknown_source", "Mastodon", "GIPath", "", "17", "", "A text about an image"),
    ]


def _figures(week: "Week") -> list[Plant]:
    def row(file: str = "", url: str = "", **fields: object) -> Post:
        media = Media(path=file) if file else Media(url=url)
        article = f"PMC{week.number()}"
        post_id = f"{article}-2-a"
        return week.post(FIGURES, id=post_id, media=(media,), group_id=article, licence="CC BY", **fields)

    def file() -> str:
        return week.file(f"{FIGURES}/{week.number()}.jpg")

    return [
        lambda: week.keep(row(file())),
        lambda: week.keep(row(url=week.image())),
        lambda: week.end(row("nowhere.jpg"), "hydrate", "missing_file"),
        lambda: week.end(row(file(), captions=("Is this a benign lesion of the skin?",)), "text", "question"),
        lambda: week.refuse(FIGURES, "malformed", "PMC1", "1", "a", "A text about no image", "", "", ""),
    ]


def _table(week: "Week") -> list[Plant]:
    def row(file: str) -> Post:
        return week.post(TABLE, id=file, media=(Media(path=file),))

    def again() -> None:
        post = row(week.file(f"{TABLE}/{week.number()}.jpg"))
        week.keep(post)
        week.refuse(TABLE, "duplicate_row", post.media[0].path, post.captions[0])

    def outside() -> None:
        name = week.file(f"elsewhere/{week.number()}.jpg")
        week.end(row(f"../elsewhere/{name}"), "hydrate", "outside_images")

    return [
        again,
        lambda: week.end(row(f"{week.number()}.jpg"), "hydrate", "missing_file"),
        outside,
        lambda: week.end(row(week.file(f"{TABLE}/{week.number()}.jpg", _NO_IMAGE)), "hydrate", "not_an_image"),
        lambda: week.refuse(TABLE, "wrong_number_of_fields", "1.jpg", "a text", "and", "more"),
    ]


def _folder(week: "Week") -> list[Plant]:
    def image(data: bytes | None = None, **fields: object) -> Post:
        name = week.file(f"{FOLDER}/slide{week.number()}/he.jpg", data)
        return week.post(FOLDER, id=hashed_id(name), media=(Media(path=name),), **fields)

    def beside(post: Post, suffix: str, content: str) -> None:
        week.file(f"{FOLDER}/{Path(post.media[0].path).with_suffix(suffix)}", content.encode())

    def with_text(data: bytes | None = None) -> Post:
        post = image(data)
        beside(post, ".txt", post.captions[0])
        return post

    def with_json() -> None:
        post = image()
        beside(post, ".json", json.dumps({"caption": post.captions[0], "stain": "HE"}))
        week.keep(post)

    def damaged() -> None:
        beside(image(), ".json", '{"caption": ')
        week.posts[FOLDER].pop()
        week.unreadable[FOLDER, "malformed"] += 1

    return [
        lambda: week.keep(with_text()),
        with_json,
        lambda: week.end(image(captions=()), "text", "empty"),
        lambda: week.end(with_text(_NO_IMAGE), "hydrate", "not_an_image"),
        damaged,
    ]


def _ipath(week: "Week") -> list[Plant]:
    def row(group: str = "") -> Post:
        name = week.file(f"{IPATH}/images/{week.number()}.jpg")
        return week.post(IPATH, id=hashed_id(name), media=(Media(path=name),), group_id=group)

    def two_of_a_post() -> None:
        group = f"C{week.number()}"
        for post in (row(group), row(group)):
            week.keep(post)

    def again() -> None:
        post = row()
        week.posts[IPATH].append(post)
        week.keep(post)
        week.end(post, "thread", "repeated")

    return [two_of_a_post, again]


def write_tables(week: "Week") -> dict[str, Path]:
    """Write the tables and folders of images; returns the folder of each."""
    folders = {source: week.folder / source for source in (*ROWS, LAION, FOLDER) if source in week.posts}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    for source, (header, row_of) in ROWS.items():
        if source in folders:
            rows = [header, *(row_of(post) for post in week.posts[source]), *week.broken.get(source, [])]
            text = io.StringIO()
            csv.writer(text).writerows(rows)
            (folders[source] / "table.csv").write_text(text.getvalue(), encoding="utf-8")
    if LAION in folders:
        rows = [
            {"URL": post.media[0].url, "TEXT": post.captions[0], "punsafe": post.safety, "LICENSE": "CC0"}
            for post in [*week.posts[LAION], *week.unsafe]
        ]
        laion_table(folders[LAION] / "part-0.parquet", sorted(rows, key=lambda row: row["URL"]))
    return folders


def _openpath_row(post: Post) -> list[str]:
    (media,) = post.media
    link = media.url or f"https://twitter.com/someone/status/{post.id}"
    hashtag = post.hashtags[0] if post.hashtags else "----"
    key = media.key if media.path else "nan"
    return [_ROLES[post.role], hashtag, link, post.id, key, post.captions[0] if post.captions else "nan"]


def _figure_row(post: Post) -> list[str]:
    article, figure, letter = post.id.split("-")
    return [article, figure, letter, post.captions[0], post.licence, post.media[0].path, post.media[0].url]


ROWS: dict[str, tuple[list[str], Callable[[Post], list[str]]]] = {
    OPENPATH: (["source", "hashtag", "weblink", "id", "media ID", "caption"], _openpath_row),
    FIGURES: (["pmcid", "figure_id", "letter", "caption", "license", "file_name", "url"], _figure_row),
    TABLE: (["image", "caption"], lambda post: [post.media[0].path, post.captions[0]]),
    IPATH: (["image", "caption", "post_id"], lambda post: [post.media[0].path, post.captions[0], post.group_id]),
}
"""By source: the header of its table, and the row of a post."""
