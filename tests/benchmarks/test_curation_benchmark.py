"""The benchmark of curation, at a size that takes seconds: it measures what it says it measures."""

import io
import itertools
import json

import pytest
from PIL import Image

pytest.importorskip("imagehash", reason="it comes with the extra for tests")
pytest.importorskip("apache_beam", reason="it comes with the extra for data")

from benchmarks import curation as benchmark  # behind the checks, because it imports both


def test_the_posts_come_through_the_stages_that_need_no_image():
    measured = benchmark.measure_metadata(250, 1)
    # 25 of the 250 are reposts, and as many replies, each the most-liked of what it answers.
    assert measured["rows"] == {"source": 250, "thread": 250, "text": 225}
    assert measured["seconds"].keys() == {"source", "thread", "text"}
    assert measured["posts_per_second"] == pytest.approx(250 / sum(measured["seconds"].values()))


def test_drawn_images_are_kept_and_hold_something_to_strip():
    images = list(itertools.islice(benchmark.draw_images(128), 3))
    assert len(set(images)) == 3
    with Image.open(io.BytesIO(images[0])) as image:
        assert (image.size, image.format, len(image.getexif())) == ((128, 128), "JPEG", 1)
    lines = benchmark.measure_images(images, repeats=1)
    assert [line["program"].split(":")[0] for line in lines] == ["Pillow", "Pillow", "ours", "ours"]
    assert lines[0]["times_pillow"] == 1
    assert all(line["images_per_second"] > 0 for line in lines)


def test_only_images_of_a_folder_are_timed(tmp_path):
    [data] = itertools.islice(benchmark.draw_images(128), 1)
    (tmp_path / "a.jpg").write_bytes(data)
    (tmp_path / "b.jpg").write_bytes(b"no image")
    assert benchmark.read_images(tmp_path, 5) == [data]
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(SystemExit, match="found none"):
        benchmark.read_images(tmp_path, 5)


@pytest.mark.slow  # two processes are started, each of which imports jax and Beam
def test_the_results_are_written(tmp_path, capsys):
    out = tmp_path / "curation.json"
    sizes = ["--posts", "200", "--processes", "1", "--images", "32", "--side", "128", "--captions", "60"]
    sizes += ["--hashes", "2000", "--imagehash-hashes", "100", "--repeats", "1"]
    assert benchmark.main([*sizes, "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert [(one["images"], one["kept"]) for one in written["memory"]] == [(8, 8), (32, 32)]
    assert all(one["peak_mib"] >= one["start_mib"] > 100 for one in written["memory"])  # jax alone takes more
    assert [one["hashes"] for one in written["duplicates"]] == [2000, 2000, 100, 100]
    assert written["duplicates"][2]["groups_sha256"] == written["duplicates"][3]["groups_sha256"]
    assert all(one["captions_per_second"] > 0 for one in written["captions"])
    assert written["config"]["images_from"] == "drawn"
    assert {"apache-beam", "pillow", "py3langid"} <= set(written["machine"]["versions"])
    assert str(tmp_path) not in json.dumps({**written, "machine": {}})
    assert str(out) in capsys.readouterr().out
