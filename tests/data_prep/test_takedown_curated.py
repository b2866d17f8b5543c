"""Takedowns between runs of a real curation: of two dumps, of a run that was killed, and of what comes back later."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from curation_week import Week
from image_server import ImageServer
from week_dumps import week_config
from week_images import DistinctImages, simulated_images
from write_x import flat_v2

from data_prep import curate as program
from data_prep import takedown
from data_prep.curation import engine
from data_prep.curation.authors import load_author_key, make_author_key
from data_prep.curation.config import CurationConfig
from data_prep.curation.pair import Pair
from data_prep.curation.rows import read_rows
from data_prep.removing.purge_records import record_ids
from data_prep.reports.decisions import read_decisions
from data_prep.sources.post import Post

SOURCE = "twitter"


@dataclasses.dataclass(frozen=True)
class Desk:
    """A curated dump of a few posts, and the server of its images."""

    folder: Path
    week: Week

    def post(self, *images: bytes) -> Post:
        return self.week.post(SOURCE, *(self.week.image(image or None) for image in images or (b"",)))

    def write(self, name: str, posts: list[Post]) -> Path:
        path = self.folder / name / "posts.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{json.dumps(flat_v2(post))}\n" for post in posts))
        return path.parent

    def curate(self, dump: Path, out: str = "out", **changes: object) -> None:
        config: Any = week_config({SOURCE: dump})
        with config.unlocked():
            config.split.holdouts = (("val", 2),)
            config.engine.partitions = 2
            config.shards.shards = 2
            for name, value in changes.items():
                config.text[name] = value
        work = self.folder / "work"
        key = load_author_key(self.folder / "key", work=work, out=self.folder / out)
        values = CurationConfig.read(config)
        program.curate(values, work, self.folder / out, key, overwrite=True, acknowledge_missing=True)

    def remove(self, *posts: Post, outs: tuple[str, ...] = ("out",)) -> int:
        asked = self.folder / "asked.jsonl"
        asked.write_text("".join(json.dumps({"kind": "post", "value": post.id}) + "\n" for post in posts))
        folders = [option for out in outs for option in ("--out", str(self.folder / out))]
        return takedown.main(["--work", str(self.folder / "work"), *folders, "--requests", str(asked)])

    def kept(self, out: str = "out") -> set[str]:
        return {name.split(":")[1] for split in ("train", "val") for name in record_ids(self.folder / out, split)}

    def decided(self, out: str = "out") -> set[str]:
        return {row.post_id for row in read_decisions(self.folder / out / "decisions.parquet") if row.stage == "kept"}


@pytest.fixture(scope="module")
def server() -> Iterator[ImageServer]:
    with ImageServer() as running:
        yield running


@pytest.fixture
def desk(server: ImageServer, tmp_path: Path) -> Desk:
    make_author_key(tmp_path / "key")
    return Desk(tmp_path, Week(tmp_path / "dumps", server, DistinctImages(simulated_images())))


@pytest.mark.slow  # seconds of Beam; one of four is in the quick tests
def test_two_dumps_of_one_work_folder(desk: Desk, capsys: pytest.CaptureFixture[str]):
    first, second = [desk.post() for _ in range(6)], [desk.post() for _ in range(6)]
    desk.curate(desk.write("first", first), "one")
    desk.curate(desk.write("second", second), "two")
    assert desk.remove(first[0], outs=("one", "two")) == 0
    assert desk.kept("one") == desk.decided("one") == {post.id for post in first[1:]}
    assert desk.kept("two") == {post.id for post in second}
    assert "one: its reports still count what was removed" in capsys.readouterr().err
    assert desk.remove(second[0], outs=("one", "two")) == 0
    assert desk.decided("one") == {post.id for post in first[1:]}
    assert desk.kept("two") == desk.decided("two") == {post.id for post in second[1:]}
    funnel = json.loads((desk.folder / "two" / "funnel.json").read_text())
    assert funnel["totals"]["pair"][-1]["kept"] == 5


def test_a_run_that_was_killed_does_not_lock_the_folder(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    posts = [desk.post() for _ in range(8)]
    dump = desk.write("dump", posts[:6])
    desk.curate(dump)
    desk.write("dump", posts)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(program, "hydrate", killed)
        with pytest.raises(KeyboardInterrupt):
            desk.curate(dump, min_words=2)  # the stages are of two runs now
    assert desk.remove(posts[2]) == 0
    assert not takedown.is_pending(desk.folder / "work")
    assert posts[2].id not in desk.kept()
    desk.curate(dump, min_words=2)
    assert desk.kept() == desk.decided() == {post.id for post in posts if post is not posts[2]}


@pytest.mark.slow  # seconds of Beam; one of four is in the quick tests
def test_a_run_that_was_killed_in_the_split_ends_after_a_takedown(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    posts = [desk.post(b"", b"") for _ in range(12)]
    dump = desk.write("dump", posts)
    write_rows, parts = engine.write_rows, iter(range(100))

    def killed(folder: Path, part: int, rows: object) -> object:
        if folder.parts[-2:] == ("split", "kept") and next(parts) == 1:
            raise KeyboardInterrupt
        return write_rows(folder, part, rows)  # type: ignore[arg-type] # what is passed on is what came

    with monkeypatch.context() as patch:
        patch.setattr(engine, "write_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            desk.curate(dump)
    work = desk.folder / "work"
    held = sorted({pair.post_id for pair in read_rows(work / "stages" / "split" / "kept", Pair) if pair.split == "val"})
    gone = next(post for post in posts if post.id in (held or [posts[0].id]))
    assert desk.remove(gone, outs=()) == 0
    desk.curate(dump)
    assert desk.kept() == {post.id for post in posts if post is not gone}


@pytest.mark.slow  # seconds of Beam; one of four is in the quick tests
def test_what_comes_back_later_stays_out_and_its_post_goes(desk: Desk):
    image, near = desk.week.images.near_copies()
    gone = desk.post(image)
    posts = [desk.post() for _ in range(6)]
    dump = desk.write("dump", [gone, *posts])
    desk.curate(dump)
    assert desk.remove(gone) == 0
    again = [desk.post(image), desk.post(near)]
    desk.write("dump", [gone, *posts, *again])
    desk.curate(dump)
    assert desk.kept() == {post.id for post in posts}
    assert desk.remove(posts[0]) == 0
    assert desk.kept() == desk.decided() == {post.id for post in posts[1:]}
    shutil.rmtree(desk.folder / "work" / "stages")
    desk.curate(dump)
    assert desk.kept() == {post.id for post in posts[1:]}
