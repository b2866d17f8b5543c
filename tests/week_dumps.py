"""Writes a week of posts as the dumps of every raw format, and the configuration that reads them."""

import gzip
import json
import lzma
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zstandard
from curation_week import LOADER, MOBILE, REDDIT, WEB, X1, Week, X
from ml_collections import ConfigDict
from week_tables import FIGURES, FOLDER, IPATH, LAION, OPENPATH, TABLE, write_tables
from write_instagram import graphql_page, instaloader_node, mobile_page
from write_tables import reddit_submission
from write_x import flat_v2, v1_status, v2_page

from data_prep.sources.post import Post
from plip_jax.config_file import load_config

_PAGE = 12  # tweets a file
KINDS = {
    X: "x_v2",
    X1: "x_v1",
    WEB: "instagram",
    LOADER: "instaloader",
    MOBILE: "instagram_mobile",
    REDDIT: "reddit",
    LAION: "laion",
    OPENPATH: "openpath_csv",
    FIGURES: "figures",
    TABLE: "csv",
    FOLDER: "folder",
    IPATH: "ipath",
}
"""By the name of a source in a week: its kind."""

_WITHOUT_HASHTAGS = (REDDIT, FIGURES, TABLE, FOLDER, IPATH)  # which were found by something else
_UNDATED = (FIGURES, TABLE, FOLDER, IPATH)


def write_dumps(week: Week) -> dict[str, Path]:
    """Write every source in its format, with lines that cannot be read; returns the folder of each."""
    folders = {source: week.folder / source for source in week.posts if source in WRITERS}
    for source, folder in folders.items():
        folder.mkdir(parents=True)
        WRITERS[source](folder, week.posts[source], week)
    folders |= write_tables(week)
    for path, data in week.files.items():
        (week.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (week.folder / path).write_bytes(data)
    return folders


def _write_x(folder: Path, posts: Sequence[Post], week: Week) -> None:
    """Pages and flattened lines, packed and not; replies and second copies are in other files than what they answer."""
    once = list({id(post): post for post in posts}.values())
    tweets = [*sorted(once, key=lambda post: post.kind == "reply"), *_again(posts)]
    for number, start in enumerate(range(0, len(tweets), _PAGE)):
        page = tweets[start : start + _PAGE]
        if number % 3:
            content = json.dumps(v2_page(page), ensure_ascii=False).encode()
            packed = number % 3 == 1
            name = folder / (f"page{number}.json.gz" if packed else f"page{number}.json")
            name.write_bytes(gzip.compress(content, mtime=0) if packed else content)
        else:
            lines = [json.dumps(flat_v2(post)) for post in page]
            content = ("\n".join([*lines[:1], '{"id": "7', *lines[1:]]) + "\n").encode()
            packed = number % 2 == 1
            name = folder / (f"flat{number}.jsonl.zst" if packed else f"flat{number}.jsonl")
            name.write_bytes(zstandard.compress(content) if packed else content)
            week.unreadable[X, "malformed"] += 1


def _again(posts: Sequence[Post]) -> list[Post]:
    """The posts that are planted a second time."""
    times = Counter(map(id, posts))
    return list({id(post): post for post in posts if times[id(post)] > 1}.values())


def _write_x1(folder: Path, posts: Sequence[Post], week: Week) -> None:
    """A stream and pages of a search."""
    lines = [*(json.dumps(v1_status(post)) for post in posts[::2]), '{"limit": {"track": 5}}']
    (folder / "stream.jsonl").write_text("\n".join(lines) + "\n")
    week.unreadable[X1, "not_a_post"] += 1
    found = {"statuses": [v1_status(post) for post in posts[1::2]], "search_metadata": {"count": 100}}
    _write_json(folder / "search.json", found)


def _write_web(folder: Path, posts: Sequence[Post], week: Week) -> None:
    for number, start in enumerate(range(0, len(posts), 20)):
        _write_json(folder / f"page{number}.json", graphql_page(posts[start : start + 20]))


def _write_instaloader(folder: Path, posts: Sequence[Post], week: Week) -> None:
    for post in posts:
        content = json.dumps(instaloader_node(post)).encode()
        if int(post.id) % 2:
            (folder / f"{post.id}.json.xz").write_bytes(lzma.compress(content))
        else:
            (folder / f"{post.id}.json").write_bytes(content)


def _write_mobile(folder: Path, posts: Sequence[Post], week: Week) -> None:
    _write_json(folder / "items.json", mobile_page(posts))


def _write_reddit(folder: Path, posts: Sequence[Post], week: Week) -> None:
    lines = [json.dumps(reddit_submission(post)) for post in posts]
    content = ("\n".join(["not json", *lines]) + "\n").encode()
    (folder / "RS_2021-03.zst").write_bytes(zstandard.compress(content))
    week.unreadable[REDDIT, "malformed"] += 1


WRITERS = {
    X: _write_x,
    X1: _write_x1,
    WEB: _write_web,
    LOADER: _write_instaloader,
    MOBILE: _write_mobile,
    REDDIT: _write_reddit,
}
"""By source: writes its dump into a folder, and says in the week what of it cannot be read."""


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def loopback() -> dict[str, Any]:
    """Settings of the hydration with limits that suit a server on this machine."""
    return {
        "ports": (),
        "private_networks": ("127.0.0.0/8",),
        "requests_per_second": 0.0,
        "host_concurrency": 8,
        "max_attempts": 2,
        "backoff_seconds": 0.05,
        "read_seconds": 1.0,
        "total_seconds": 1.5,
        "max_bytes": 1_000_000,
    }


def week_config(folders: dict[str, Path], *overrides: str) -> ConfigDict:
    """OpenPath's configuration for the dumps of a week."""
    config = load_config("configs/data/openpath.py", overrides)
    with config.unlocked():
        for source, folder in folders.items():
            block = config.sources.get(source) or ConfigDict({"settings": {}, "threads": {}, "text": {}, "images": ""})
            block.kind, block.path = KINDS[source], str(folder)
            if source in _WITHOUT_HASHTAGS:
                block.threads.hashtags = ()
            if source in _UNDATED:
                block.threads.start_date = block.threads.end_date = ""
            if source == OPENPATH:
                block.settings.image_path = "{hashtag}/{media_id}.jpg"
                block.settings.cleaned_release = True
            config.sources[source] = block
        config.hydration = ConfigDict(loopback())
        config.split.test_from = config.split.train_until = config.split.test_until = ""
        config.split.holdouts = (("val", 10),)
        config.shards.shards = 4
        config.gate.acknowledge_no_gate = True
        config.engine.partitions = 4
    return config
