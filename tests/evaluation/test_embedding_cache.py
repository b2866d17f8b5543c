"""The embedding cache: a second run embeds nothing, and nothing that is damaged or of other data is trusted."""

import dataclasses
import json

import numpy as np
import pytest

from plip_jax.encoders.task_model import make_model
from plip_jax.evaluation.embedding_cache import EmbeddingCache, EmbeddingCacheWarning
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples


@dataclasses.dataclass(frozen=True)
class Record:
    id: str
    image: bytes
    label: str = "x"
    captions: tuple[str, ...] = ()


class Records(list):
    fingerprint = ""


def make_examples(values=(3, 1, 2, 5, 4), fingerprint: str = "shards 1", prefix: str = "i") -> Examples:
    records = Records(Record(f"{prefix}{i}", bytes([value])) for i, value in enumerate(values))
    records.fingerprint = fingerprint
    return Examples.from_records(records)


class Encoder:
    """An image's features are its byte, and its byte squared; counts what it is asked for."""

    name, source, key, computed, logit_scale, tower = "counted", "here", "key 1", True, 10.0, None

    def __init__(self, normalized: bool = False):
        self.normalized = normalized
        self.calls: list[int] = []
        self.texts: list[str] = []

    def encode_images(self, images, /, *, names) -> np.ndarray:
        rows = [[image[0], image[0] ** 2] for image in images]
        assert len(rows) == len(names)
        self.calls.append(len(rows))
        return np.array(rows, np.float64)

    def encode_text(self, texts) -> np.ndarray:
        self.texts += texts
        return np.array([[len(text), 1] for text in texts], np.float32)

    def describe(self):
        return {}


EXPECTED = [[3, 9], [1, 1], [2, 4], [5, 25], [4, 16]]


@pytest.mark.parametrize("fingerprint", ["shards 1", ""])
def test_a_second_run_embeds_nothing(tmp_path, fingerprint):
    encoder = Encoder()
    for run in range(2):
        model = make_model(encoder, EmbeddingCache(tmp_path / "cache"))  # type: ignore[arg-type] # a double of its own
        examples = make_examples(fingerprint=fingerprint)
        whole = model.embed(examples)
        np.testing.assert_array_equal(whole.features, EXPECTED)
        assert (whole.ids, whole.features.dtype) == (examples.ids, np.float32)
        part = model.embed(examples.subset([4, 0]))
        np.testing.assert_array_equal(part.features, [[4, 16], [3, 9]])
        assert part.ids == ("i4", "i0")
        assert model.encode_text is not None
        np.testing.assert_array_equal(model.encode_text(["ab", "c"]), [[2, 1], [1, 1]])
        assert (encoder.calls, encoder.texts) == ([5], ["ab", "c"]), f"run {run}"
    assert not list((tmp_path / "cache").glob(".*")), "a temporary file was left"


def test_a_split_is_embedded_once_for_all_tasks_without_a_cache_too():
    encoder = Encoder(normalized=True)
    model = make_model(encoder, name="other")  # type: ignore[arg-type] # a double of its own
    examples = make_examples()
    for _ in range(3):
        np.testing.assert_allclose(np.linalg.norm(model.embed(examples).features, axis=1), 1, atol=1e-6)
        model.embed(examples.subset([1]))
    assert encoder.calls == [5]
    assert (model.name, model.logit_scale, model.tower) == ("other", 10.0, None)


def test_rows_are_embedded_in_chunks_and_kept_as_they_come(tmp_path):
    encoder, cache = Encoder(), EmbeddingCache(tmp_path)
    normalised = cache.get_or_compute(make_examples(), "k", True, encoder.encode_images, chunk=2)
    assert encoder.calls == [2, 2, 1]
    np.testing.assert_allclose(normalised.features[0], np.array([3, 9]) / np.sqrt(90), atol=1e-7)
    raw = cache.get_or_compute(make_examples(), "k", False, encoder.encode_images)
    assert isinstance(raw.features.base, np.memmap)
    np.testing.assert_array_equal(raw.features, EXPECTED)
    assert encoder.calls == [2, 2, 1]


def test_other_weights_data_or_ids_are_other_entries(tmp_path):
    encoder, cache = Encoder(), EmbeddingCache(tmp_path)
    variants = [
        (make_examples(), "k"),
        (make_examples(), "other weights"),
        (make_examples(fingerprint="shards 2"), "k"),
        (make_examples(prefix="j"), "k"),
        (make_examples((1, 3, 2, 5, 4), fingerprint=""), "k"),
    ]
    for count, (examples, key) in enumerate(variants, 1):
        cache.get_or_compute(examples, key, False, encoder.encode_images)
        assert len(encoder.calls) == count
    assert len(list(tmp_path.glob("*.npy"))) == len(variants)
    cache.get_or_compute_text(["a", "b"], "k", encoder.encode_text)
    cache.get_or_compute_text(["b", "a"], "k", encoder.encode_text)
    cache.get_or_compute_text(["a", "b"], "other weights", encoder.encode_text)
    assert len(encoder.texts) == 6


def test_changed_images_without_a_fingerprint_are_noticed(tmp_path):
    encoder, cache = Encoder(), EmbeddingCache(tmp_path)
    cache.get_or_compute(make_examples(fingerprint=""), "k", False, encoder.encode_images)
    changed = make_examples((3, 1, 2, 5, 6), fingerprint="")
    with pytest.warns(EmbeddingCacheWarning, match="the images have changed since"):
        features = cache.get_or_compute(changed, "k", False, encoder.encode_images).features
    np.testing.assert_array_equal(features[4], [6, 36])
    assert len(encoder.calls) == 2


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def pickle(path):
    np.save(path, np.array([{}], dtype=object))


def shorten(path):
    np.save(path, np.load(path)[:4])


def claim(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "encoder": "another"}))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("npy", cut),
        ("npy", flip),
        ("npy", pickle),
        ("npy", shorten),
        ("npy", lambda path: path.unlink()),
        ("json", cut),
        ("json", claim),
        ("json", lambda path: path.write_text("[]")),
    ],
)
def test_a_damaged_entry_is_computed_again_and_mended(tmp_path, suffix, damage):
    encoder, cache = Encoder(), EmbeddingCache(tmp_path)
    cache.get_or_compute(make_examples(), "k", False, encoder.encode_images)
    (file,) = tmp_path.glob(f"*.{suffix}")
    damage(file)
    with pytest.warns(EmbeddingCacheWarning, match="computed again"):
        features = cache.get_or_compute(make_examples(), "k", False, encoder.encode_images).features
    np.testing.assert_array_equal(features, EXPECTED)
    assert len(encoder.calls) == 2
    np.testing.assert_array_equal(
        cache.get_or_compute(make_examples(), "k", False, encoder.encode_images).features, EXPECTED
    )
    assert len(encoder.calls) == 2


def test_an_interrupted_run_leaves_no_entry(tmp_path):
    encoder, cache = Encoder(), EmbeddingCache(tmp_path)

    def fails(images, /, *, names):
        if "i2" in names:
            raise KeyboardInterrupt
        return encoder.encode_images(images, names=names)

    with pytest.raises(KeyboardInterrupt):
        cache.get_or_compute(make_examples(), "k", False, fails, chunk=2)
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(
        cache.get_or_compute(make_examples(), "k", False, encoder.encode_images).features, EXPECTED
    )


def test_what_is_no_row_for_each_image_is_refused(tmp_path):
    cache = EmbeddingCache(tmp_path)
    with pytest.raises(EvaluationError, match="expected 5 rows of features"):
        cache.get_or_compute(make_examples(), "k", False, lambda images, names: np.zeros((4, 2)))
    wide = iter([2, 3])
    with pytest.raises(EvaluationError, match=r"rows of 2, one an id, got an array \(3, 3\)"):
        cache.get_or_compute(
            make_examples((1, 2, 3, 4, 5, 6)), "k", False, lambda images, names: np.ones((3, next(wide))), chunk=3
        )
    examples = make_examples()
    examples.records.reverse()  # type: ignore[attr-defined] # a list here
    with pytest.raises(EvaluationError, match="expected 'i0', got 'i4'"):
        cache.get_or_compute(examples, "k", False, Encoder().encode_images)
    assert list(tmp_path.iterdir()) == []
