"""The cache of smaller images: nothing but the pixels changes, and those only as said."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_models import make_tokenizer

from data_prep import resize
from data_prep.resize import Smaller, map_ahead, resize_records
from data_prep.shards import RecordsWriter
from data_prep.verify import find_problems
from plip_jax.data.image import ImageError
from plip_jax.data.pipeline import DataConfig, SourceConfig, make_train_iterator
from plip_jax.data.records import Record, open_records, read_manifest

# Short sides above, below and equal to the 73 pixels that PLIP's views of 32 px resize to.
SIZES = [(200, 100), (100, 130), (73, 90), (90, 60), (151, 149), (300, 80), (75, 75), (74, 200)]
SHORT_SIDE = round(32 * 512 / 224)


def encoded(width: int, height: int, seed: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "large"
    with RecordsWriter(path, max_shard_bytes=20_000) as writer:
        for i in range(16):
            image = encoded(*SIZES[i % len(SIZES)], seed=i, kind="PNG" if i % 5 == 0 else "JPEG")
            captions = tuple(f"{i} {word}" for word in ("a", "b")[: 1 + i % 2])
            record = Record(
                f"r{i}", image, captions, group_id=f"g{i // 3}", source="here", label="ADI" if i % 2 else ""
            )
            writer.write(record, "test" if i % 7 == 3 else "train")
        writer.add_file("build_report.json", '{"read": 16}\n')
    return path


def size_of(data: bytes) -> tuple[tuple[int, int], str | None]:
    with Image.open(io.BytesIO(data)) as image:
        return image.size, image.format


@pytest.mark.parametrize(("kind", "workers"), [("png", 1), ("jpeg", 2)])
def test_only_the_images_change_and_only_the_large_ones(records, tmp_path, kind, workers, monkeypatch):
    monkeypatch.setattr(resize, "_RECORDS_A_TASK", 3)
    out = tmp_path / "small"
    assert resize_records(records, out, Smaller(SHORT_SIDE, kind), workers=workers) == {"train": 14, "test": 2}
    assert list(find_problems(out)) == []  # sound for us, and TFDS opens it
    reduced = 0
    for split in ("train", "test"):
        before, after = open_records(records, split), open_records(out, split)
        for old, new in zip(before, after, strict=True):
            for field in ("id", "captions", "group_id", "source", "label"):
                assert getattr(new, field) == getattr(old, field)
            width, height = size_of(old.image)[0]
            if min(width, height) <= SHORT_SIDE:
                assert new.image == old.image
                continue
            long_side = int(SHORT_SIDE * max(width, height) / min(width, height))
            size = (SHORT_SIDE, long_side) if width <= height else (long_side, SHORT_SIDE)
            assert size_of(new.image) == (size, kind.upper())
            reduced += 1
    assert reduced == 12
    report = json.loads((out / "resize_report.json").read_text())
    assert (report["short_side"], report["format"], report["reduced"]) == (SHORT_SIDE, kind, reduced)
    assert report["from"]["train"] == open_records(records).fingerprint
    assert json.loads((out / "build_report.json").read_text()) == {"read": 16}
    assert read_manifest(out).name == "small"


def test_plips_views_are_the_same_to_the_bit_from_png_and_near_from_jpeg(records, tmp_path):
    batches = {}
    for kind in ("original", "png", "jpeg"):
        path = records if kind == "original" else tmp_path / kind
        if kind != "original":
            resize_records(records, path, Smaller(SHORT_SIDE, kind))
        config = DataConfig((SourceConfig(str(path)),), global_batch_size=14, image_size=32, seed=1, prefetch=0)
        iterator = make_train_iterator(config, make_tokenizer())
        batches[kind] = [next(iterator) for _ in range(3)]
    for original, png, jpeg in zip(*batches.values(), strict=True):
        np.testing.assert_array_equal(png["index"], original["index"])
        np.testing.assert_array_equal(png["image"], original["image"])
        difference = np.abs(jpeg["image"].astype(int) - original["image"])
        assert 0 < difference.mean() < 2  # quality 95 without subsampling; 0.8 on real micrographs


def test_one_split_can_be_chosen_and_an_older_folder_replaced(records, tmp_path, capsys):
    out = tmp_path / "small"
    arguments = ["--records", str(records), "--out", str(out), "--short-side", "40", "--workers", "1"]
    assert resize.main([*arguments, "--split", "test"]) == 0
    assert set(read_manifest(out).splits) == {"test"}
    assert "wrote 2 (test 2)" in capsys.readouterr().out
    assert resize.main(arguments) == 1
    assert "already holds records" in capsys.readouterr().err
    assert resize.main([*arguments, "--overwrite"]) == 0
    assert set(read_manifest(out).splits) == {"test", "train"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--records": "nowhere"}, "No records in"),
        ({"--split": "dev"}, r"has no split 'dev'; it has \['test', 'train'\]"),
        ({"--short-side": "0"}, "--short-side: expected a positive"),
        ({"--quality": "101"}, "--quality: expected 1 to 100, got 101"),
        ({"--workers": "0"}, "--workers: expected a positive"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(records, tmp_path, changes, message, capsys):
    settings = {"--records": str(records), "--out": str(tmp_path / "out"), "--short-side": "40", "--workers": "1"}
    settings |= changes
    assert resize.main([part for pair in settings.items() for part in pair]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_that_is_read_is_never_written(records):
    before = open_records(records).fingerprint
    with pytest.raises(ValueError, match="the folder that is read"):
        resize_records(records, records, Smaller(40), overwrite=True)
    with pytest.raises(ValueError, match="the folder that is read"):
        resize_records(records / "1.0.0", records, Smaller(40), overwrite=True)
    assert open_records(records).fingerprint == before


def test_a_damaged_image_is_named_and_nothing_is_published(tmp_path):
    with RecordsWriter(tmp_path / "bad") as writer:
        for i in range(4):
            image = encoded(60, 50, i)
            writer.write(Record(f"r{i}", image[:400] if i == 2 else image, ("a",)))
    for workers in (1, 2):
        with pytest.raises(ImageError, match=r"record 'r2' \(.*bad-train.*record 2\)"):
            resize_records(tmp_path / "bad", tmp_path / "out", Smaller(40), workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_results_keep_their_order_and_few_wait():
    begun = []

    def tasks():
        for number in range(40):
            begun.append(number)
            yield number

    results = map_ahead(abs, tasks(), workers=2)
    assert next(results) == 0
    assert len(begun) <= 9  # four for each process, and the one that was given out
    assert list(results) == list(range(1, 40))
