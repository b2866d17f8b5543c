"""Simulated tissue: the same on every run, held-out compositions are new, captions say what is drawn."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import plip_jax.evaluation
from data_prep import simulate as program
from data_prep.simulate import CLASSES, SPLITS, combinations, compose, simulate
from data_prep.tissue import LAYOUTS, TISSUES, draw_tile
from plip_jax.data.image import decode_image
from plip_jax.data.records import open_records
from plip_jax.data.tokenizer import train_tokenizer


def triples(split: str) -> set[tuple]:
    return {(tissue, variant, second) for tissue in TISSUES for variant, second in combinations(tissue, split)}


def test_held_out_compositions_are_new_and_their_parts_are_not():
    train, test = triples("train"), triples("test")
    assert not train & test
    assert 0.15 < len(test) / len(train | test) < 0.25
    assert {(tissue, variant) for tissue, variant, _ in test} <= {(tissue, variant) for tissue, variant, _ in train}
    assert {(tissue, second) for tissue, _, second in test} <= {(tissue, second) for tissue, _, second in train}
    assert {tissue for tissue, _, _ in test} == set(CLASSES)
    for split in SPLITS:  # and the tiles keep to it
        drawn = {(c.tissue, c.variant, c.second) for c in (compose(0, index, split) for index in range(2000))}
        assert drawn == triples(split)


@pytest.mark.parametrize("split", SPLITS)
def test_classes_are_balanced_and_a_slide_shares_its_stain(split: str):
    tiles = [compose(3, index, split) for index in range(900)]
    assert set(Counter(tile.tissue for tile in tiles).values()) == {100}
    stains = {tile.slide: tile.stain for tile in tiles}
    assert all(stains[tile.slide] == tile.stain for tile in tiles)
    assert len(Counter(stains.values())) == 3


def test_a_tile_is_a_function_of_seed_split_and_index():
    first, again = (simulate(5, 17, size=64) for _ in range(2))
    np.testing.assert_array_equal(np.asarray(first.image), np.asarray(again.image))
    assert first.captions == again.captions
    for other in (simulate(6, 17, size=64), simulate(5, 18, size=64), simulate(5, 17, split="test", size=64)):
        assert (np.asarray(other.image) != np.asarray(first.image)).any()
    assert (first.image.mode, first.image.size, first.label) == ("RGB", (64, 64), first.composition.tissue)


def test_every_tissue_variant_and_layout_draws_at_any_size():
    for tissue, (_, variants) in TISSUES.items():
        for variant in variants:
            for size in (16, 97):
                dyes = draw_tile((tissue, variant), None, "edge", size, np.random.default_rng(0))
                assert dyes.shape == (4, size, size)
                assert dyes.dtype == np.float32
                assert np.isfinite(dyes).all()
    for layout in LAYOUTS:  # the second tissue takes a part, never most, of the field
        first, both = (
            draw_tile(("mucus", "acellular"), second, layout, 96, np.random.default_rng(1))
            for second in (None, ("smooth_muscle", "lengthwise"))
        )
        changed = (np.abs(first - both).max(0) > 0.05).mean()
        assert 0.1 < changed < 0.5, layout


def test_captions_say_what_is_drawn():
    for index in range(300):
        composition = compose(1, index)
        captions = program.describe(composition, np.random.default_rng(index))
        assert len(captions) == 5
        for caption in captions:
            text = caption.lower()
            assert any(name in text for name in CLASSES[composition.tissue]), caption
            assert any(words in text for words in program._VARIANT_WORDS[composition.tissue, composition.variant])
            if composition.second:
                assert any(words in text for words in program._SECONDS[composition.second][1])
                assert any(words in text for words in program._LAYOUT_WORDS[composition.layout])
            assert caption[0].isupper()
            assert caption.endswith(".")
            assert ".." not in caption
            assert "  " not in caption


def test_the_captions_fit_the_demo():
    captions = [
        caption
        for index in range(2000)
        for caption in program.describe(compose(0, index), np.random.default_rng(index))
    ]
    assert len(set(captions)) > 5000
    tokenizer = train_tokenizer(captions, vocab_size=1024, context_length=32)
    assert tokenizer.vocab_size == 1024  # the preset "demo" has so many rows
    assert (tokenizer(captions)[:, -2] == tokenizer.eot_token_id).all()  # none is cut


def look(image: Image.Image) -> np.ndarray:
    """Colour and texture of a tile in 12 numbers."""
    pixels = np.asarray(image, np.float32) / 255
    steps = np.abs(np.diff(pixels, axis=0)).mean((0, 1))
    return np.concatenate(
        [pixels.mean((0, 1)), pixels.std((0, 1)), steps, np.quantile(pixels[..., 0], [0.1, 0.5, 0.9])]
    )


def test_the_classes_can_be_told_apart():
    train, test = (
        [
            (look(tile.image), tile.label)
            for tile in (simulate(0, index, split=split, size=48) for index in range(count))
        ]
        for split, count in (("train", 270), ("test", 90))
    )
    features = np.stack([look for look, _ in train])
    scale = features.std(0)
    right = 0
    for value, label in test:
        nearest = np.argsort((((features - value) / scale) ** 2).sum(1))[:5]
        right += Counter(train[place][1] for place in nearest).most_common(1)[0][0] == label
    assert right / len(test) > 0.4  # chance is 1/9; twelve crude numbers, compositions never seen


def test_the_program_writes_both_splits_the_same_with_any_number_of_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sizes = ["--train", "210", "--test", "18", "--size", "32", "--seed", "4"]
    for workers in ("1", "2"):
        assert program.main(["--out", str(tmp_path / workers), "--workers", workers, *sizes]) == 0
    assert "210 train and 18 test records of 32 px" in capsys.readouterr().out
    for split, count in (("train", 210), ("test", 18)):
        one, two = (open_records(tmp_path / workers, split) for workers in ("1", "2"))
        assert len(one) == len(two) == count
        assert [one[index] for index in range(count)] == [two[index] for index in range(count)]
        record = one[10]
        assert decode_image(record.image, name=record.id).size == (32, 32)
        assert (record.id, record.label) == (f"simulated-{split}-000010", "lymphocytes")
        assert record.group_id == f"simulated-{split}-slide-00001"
        assert record.captions == simulate(4, 10, split=split, size=32).captions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "0"], "--train: expected a positive number, got 0"),
        (["--seed", "-1"], "--seed: expected 0 or more"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        program.main(["--out", str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"split: expected one of train, test, got 'dev'"):
        combinations("mucus", "dev")


def test_the_prompts_name_the_classes_in_their_order():
    path = Path(plip_jax.evaluation.__path__[0]) / "prompts" / "simulated.json"
    classes = json.loads(path.read_text(encoding="utf-8"))["classes"]
    assert [(label, tuple(names)) for label, names in classes.items()] == list(CLASSES.items())
