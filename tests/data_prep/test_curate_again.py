"""Curating more than once: the same key, what was taken down, and files that changed under their name."""

import dataclasses
import hashlib
import json
import shutil

import pytest
from curated_week import Curated, dataset_bytes
from curation_week import KEPT, Week
from image_server import ImageServer, Response
from week_dumps import week_config
from week_images import DistinctImages, caption_texts, jpeg, simulated_images
from write_x import flat_v2

from data_prep import verify
from data_prep.curate import curate, main
from data_prep.curation.authors import AuthorKeyError, load_author_key, make_author_key
from data_prep.curation.config import CurationConfig
from data_prep.curation.output import rebuild_reports
from data_prep.removing.byte_scan import byte_scan, image_needles, text_needles
from data_prep.removing.takedown_requests import Request
from data_prep.reports.decisions import read_decisions
from data_prep.sources.post import Post
from data_prep.takedown import Hooks, take_down


def test_the_key_is_not_made_where_it_must_not_be(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--work", str(tmp_path / "work"), "--out", str(out), "--author-key", str(out / "key")]
    config = ["--config", "configs/data/openpath.py", f"--config.sources.twitter.path={tmp_path}"]
    assert main([*arguments, *config, "--make-author-key", "--acknowledge-missing"]) == 1
    assert "keep the key of the authors elsewhere" in capsys.readouterr().err
    assert not out.exists()


def test_another_key_is_refused_for_the_same_work_folder(curated, tmp_path):
    make_author_key(tmp_path / "key")
    other = dataclasses.replace(curated, folder=tmp_path)
    with pytest.raises(AuthorKeyError, match="made with another key"):
        other.again(curated.folder / "work", tmp_path / "out")


def write_lines(week: Week, name: str, posts: list[Post]) -> None:
    week.folder.mkdir(exist_ok=True)
    (week.folder / name).write_text("".join(f"{json.dumps(flat_v2(post))}\n" for post in posts))


@pytest.fixture
def small(tmp_path):
    """Five posts of one source, curated, and how to curate more."""
    images = DistinctImages(simulated_images())
    with ImageServer() as server:
        week = Week(tmp_path / "dumps", server, images)
        pictures = [next(images) for _ in range(5)]
        write_lines(week, "first.jsonl", [week.post("twitter", week.image(jpeg(picture))) for picture in pictures])
        config = week_config({"twitter": week.folder})
        with config.unlocked():
            config.split.holdouts, config.engine.partitions, config.shards.shards = (), 2, 1
        make_author_key(tmp_path / "key")
        curated = Curated(week, CurationConfig.read(config), tmp_path)
        curated.again(tmp_path / "work", tmp_path / "out")
        yield curated, pictures


def test_an_image_that_was_taken_down_comes_back_under_no_address_and_in_no_copy(small):
    curated, pictures = small
    week, work, out = curated.week, curated.folder / "work", curated.folder / "out"
    original = jpeg(pictures[3])
    digest = hashlib.sha256(original).hexdigest()
    take_down(work, [out], [Request("image", digest)], hooks=Hooks(rebuild_reports=rebuild_reports))
    # the same bytes, its pixels with other metadata, and two other images
    again = [original, jpeg(pictures[3], comment=b"another file"), jpeg(next(week.images)), jpeg(next(week.images))]
    posts = [week.post("twitter", week.image(data)) for data in again]
    write_lines(week, "later.jsonl", posts)
    curated.again(work, out)
    rows = {row.post_id: (row.stage, row.reason) for row in read_decisions(out / "decisions.parquet")}
    ends = [("hydrate", "takedown"), ("hydrate", "takedown"), KEPT, KEPT]
    assert [rows[post.id] for post in posts] == ends
    names = [hashlib.sha256(data).hexdigest() for data in again[:2]]
    needles = {name: text_needles(name) for name in names} | {f"{n} bytes": image_needles(again[n]) for n in range(2)}
    assert byte_scan([work, out], needles) == []
    assert verify.main([str(out)]) == 0
    before = {path: path.stat().st_mtime_ns for path in (work / "stages").rglob("part-*")}
    asked = len(week.server.asked)
    curated.again(work, out)
    assert {path: path.stat().st_mtime_ns for path in (work / "stages").rglob("part-*")} == before
    assert len(week.server.asked) == asked


def test_neighbours_that_were_found_again_are_taken_instead(tmp_path):
    """The file of rows has the same name: what is in it counts."""
    images, texts = DistinctImages(simulated_images()), caption_texts()
    rows_file = tmp_path / "rows.csv"
    (tmp_path / "table").mkdir()
    with ImageServer() as server:
        urls = [server.add(f"/{n}.jpg", Response(jpeg(next(images)))) for n in range(4)]
        lines = "".join(f'{url},"{next(texts)}",0.1\n' for url in urls)
        (tmp_path / "table" / "part.csv").write_text(f"URL,TEXT,punsafe\n{lines}")
        config = week_config({}, f"sources.laion.path={tmp_path / 'table'}", "gate.acknowledge_no_gate=True")
        with config.unlocked():
            config.split.holdouts, config.engine.partitions, config.shards.shards = (), 1, 1
            config.sources.laion.settings.rows_file = str(rows_file)
        make_author_key(tmp_path / "key")
        curated = Curated(Week(tmp_path, server, images), CurationConfig.read(config), tmp_path)
        kept = []
        for wanted in ((0, 1), (2, 3)):
            rows_file.write_text("row\n" + "".join(f"{row}\n" for row in wanted))
            curated.again(tmp_path / "work", tmp_path / "out")
            kept.append({row.post_id for row in read_decisions(tmp_path / "out" / "decisions.parquet")})
    ids = [hashlib.sha256(url.encode()).hexdigest()[:32] for url in urls]
    assert kept == [set(ids[:2]), set(ids[2:])]


def test_a_local_image_that_comes_later_is_taken_and_a_takedown_does_nothing_again(tmp_path):
    table, images = tmp_path / "table", DistinctImages(simulated_images())
    table.mkdir()
    texts, pictures = caption_texts(), [jpeg(next(images)) for _ in range(3)]
    rows = "".join(f'{n}.jpg,"{next(texts)}"\n' for n in range(3))
    (table / "posts.csv").write_text(f"image,caption\n{rows}")
    for number in (0, 1):
        (table / f"{number}.jpg").write_bytes(pictures[number])
    config = week_config({}, f"sources.csv.path={table}")
    with config.unlocked():
        config.split.holdouts, config.engine.partitions, config.shards.shards = (), 1, 1
    make_author_key(tmp_path / "key")
    work, out = tmp_path / "work", tmp_path / "out"
    with ImageServer() as server:  # which nobody asks
        curated = Curated(Week(tmp_path, server, images), CurationConfig.read(config), tmp_path)
        curated.again(work, out)
        ends = {row.post_id: (row.stage, row.reason) for row in read_decisions(out / "decisions.parquet")}
        assert ends == {"0.jpg": KEPT, "1.jpg": KEPT, "2.jpg": ("hydrate", "missing_file")}
        (table / "2.jpg").write_bytes(pictures[2])
        curated.again(work, out)
        assert {row.stage for row in read_decisions(out / "decisions.parquet")} == {"kept"}
        take_down(work, [out], [Request("post", "csv:0.jpg")], hooks=Hooks(rebuild_reports=rebuild_reports))
        before = {path: path.stat().st_mtime_ns for path in (work / "stages").rglob("part-*")}
        curated.again(work, out)
        assert {path: path.stat().st_mtime_ns for path in (work / "stages").rglob("part-*")} == before
    kept = {row.post_id for row in read_decisions(out / "decisions.parquet") if row.stage == "kept"}
    assert kept == {"1.jpg", "2.jpg"}


def test_a_file_of_verdicts_that_was_written_anew_counts_as_it_is(small, tmp_path, capsys):
    curated, _ = small
    first, second = (post.id for post in curated.week.posts["twitter"][:2])
    pairs = {row.post_id: row.id for row in read_decisions(curated.out / "decisions.parquet")}
    verdicts = tmp_path / "human.jsonl"
    settings = dataclasses.replace(curated.config.verdicts, files=(str(verdicts),))
    judged = dataclasses.replace(curated, config=dataclasses.replace(curated.config, verdicts=settings))
    for rejected in (first, second):
        line = {"id": pairs[rejected], "keep": False, "source": "human:ab"}
        verdicts.write_text(f"{json.dumps(line)}\nnot a verdict\n" + json.dumps({**line, "id": "nobody:1:0"}) + "\n")
        judged.again(curated.work, curated.out)
        ends = {row.post_id: row.reason for row in read_decisions(curated.out / "decisions.parquet")}
        assert [post_id for post_id, reason in ends.items() if reason == "rejected_human"] == [rejected]
    said = capsys.readouterr().err
    assert "human.jsonl line 2: not JSON" in said
    assert "1 are about no pair there is, the first 'nobody:1:0'" in said


def test_a_run_killed_while_it_publishes_goes_on_without_being_told_to_replace(small, monkeypatch):
    curated, _ = small
    key = load_author_key(curated.folder / "key", work=curated.work, out=curated.out)
    shutil.rmtree(curated.out)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.curate.record_fingerprints", killed)
        with pytest.raises(KeyboardInterrupt):
            curate(curated.config, curated.work, curated.out, key, acknowledge_missing=True)
    published = dataset_bytes(curated.out)
    curate(curated.config, curated.work, curated.out, key, acknowledge_missing=True)
    assert dataset_bytes(curated.out) == published
    with pytest.raises(FileExistsError, match="already holds records"):
        curate(curated.config, curated.work, curated.out, key, acknowledge_missing=True)
