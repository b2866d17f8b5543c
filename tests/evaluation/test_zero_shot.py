"""Prompt ensembles, class order and ties, by hand-worked numbers."""

import numpy as np
import pytest

from plip_jax.evaluation import zero_shot
from plip_jax.evaluation.embeddings import Embeddings, EvaluationError, Similarity
from plip_jax.evaluation.prompts_file import Prompts

PROMPTS = Prompts("demo", "", ("fat", "gland"), (("fat", "adipose"), ("gland",)), ("A {}.", "The {}."))


def test_a_class_is_the_normalised_mean_of_its_normalised_prompts():
    rows = {
        "A fat.": [3, 0, 0],  # lengths must not weigh
        "The fat.": [0, 0.5, 0],
        "A adipose.": [1, 0, 0],
        "The adipose.": [0, 1, 0],
        "A gland.": [0, 0, 2],
        "The gland.": [0, 2, 0],
    }
    calls = []

    def encode_text(texts):
        calls.append(list(texts))
        return np.array([rows[text] for text in texts], np.float32)

    classes = zero_shot.class_embeddings(PROMPTS, encode_text)
    half = 0.5**0.5
    np.testing.assert_allclose(classes, [[half, half, 0], [0, half, half]], atol=1e-7)  # float32 rounding
    assert calls == [list(rows)]  # each text once, one call


def test_scores_are_cosines_and_ties_go_to_the_lowest_class():
    classes = np.eye(3, dtype=np.float32)[[1, 0, 0]]
    images = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    scores = zero_shot.class_scores(images, classes)
    np.testing.assert_array_equal(scores, [[0, 1, 1], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(zero_shot.predict(scores), [1, 0, 0])


def test_labels_are_numbered_in_the_prompt_files_order_not_the_datas():
    np.testing.assert_array_equal(zero_shot.label_ids(["gland", "fat", "gland"], PROMPTS), [1, 0, 1])


def test_an_unknown_label_names_both_sides_even_where_missing_classes_are_allowed():
    with pytest.raises(EvaluationError, match="not classes of the prompts: bone, ''") as error:
        zero_shot.label_ids(["fat", "bone", ""], PROMPTS, allow_missing=True)
    assert "classes of demo: fat, gland" in str(error.value)
    assert "labels of the data: fat, bone" in str(error.value)


def test_a_class_without_examples_is_an_error_unless_allowed():
    with pytest.raises(EvaluationError, match=r"no example in the data: gland.*missing_classes=allow"):
        zero_shot.label_ids(["fat"], PROMPTS)
    np.testing.assert_array_equal(zero_shot.label_ids(["fat"], PROMPTS, allow_missing=True), [0])


@pytest.mark.parametrize("num_candidates", [3, 17, 130])
def test_equal_candidates_get_bit_equal_scores(num_candidates):
    rng = np.random.default_rng(0)
    row = rng.normal(size=67).astype(np.float32)
    candidates = np.tile(row / np.linalg.norm(row), (num_candidates, 1))
    candidates[1::2] *= -1
    candidates[0][candidates[0] == 0] = -0.0
    scores = Similarity(candidates)(rng.normal(size=(5, 67)).astype(np.float32))
    assert (scores[:, 0::2] == scores[:, :1]).all()
    assert (scores[:, 1::2] == scores[:, 1:2]).all()


def test_embeddings_keep_ids_and_are_normalised():
    embeddings = Embeddings(("a", "b"), np.array([[3, 4], [0, 2]], np.float64))
    np.testing.assert_allclose(embeddings.features, [[0.6, 0.8], [0, 1]], atol=1e-7)  # float32 rounding
    assert embeddings.features.dtype == np.float32


@pytest.mark.parametrize(
    ("ids", "features", "message"),
    [
        (("a",), np.ones((2, 3)), "expected 1 rows"),
        (("a", "a"), np.ones((2, 3)), "'a' at least twice"),
        (("a", "b"), [[1, 0], [np.nan, 1]], "1 bad of 2, the first of them b"),
        (("a", "b"), [[0, 0], [0, 1]], "the first of them a"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(ids, features, message):
    with pytest.raises(EvaluationError, match=message):
        Embeddings(ids, np.asarray(features))
