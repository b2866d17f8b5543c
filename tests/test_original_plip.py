"""The original's names: what it promises, and its two bugs gone."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_models import CAPTIONS, make_model

from plip_jax.export import export
from plip_jax.original_plip import PLIP


@pytest.fixture(scope="module")
def plip(tmp_path_factory: pytest.TempPathFactory) -> PLIP:
    return PLIP(str(export(make_model(), tmp_path_factory.mktemp("plip") / "hf")), auth_token=None)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{i}.png")
    return [str(path) for path in sorted(folder.iterdir())]


# Read from PathologyFoundation/plip, plip.py: what a program may pass, by name and by place.
ORIGINAL = {
    "__init__": ["model_name", "auth_token"],
    "encode_images": ["images", "batch_size"],
    "encode_text": ["text", "batch_size"],
    "zero_shot_classification": ["images", "text_labels", "debug"],
    "retrieval": ["queries", "top_k"],
    "_cosine_similarity": ["key_vectors", "space_vectors", "normalize"],
    "_nearest_neighbours": ["k", "key_vectors", "space_vectors", "normalize", "debug"],
}


@pytest.mark.parametrize("method", ORIGINAL)
def test_the_arguments_are_the_originals(method: str) -> None:
    assert list(inspect.signature(getattr(PLIP, method)).parameters)[1:] == ORIGINAL[method]


def test_features_are_those_of_the_model_and_not_normalised(plip: PLIP, paths: list[str]) -> None:
    features = plip.encode_images(paths, batch_size=2)
    assert (features.shape, features.dtype) == ((5, 16), np.float32)
    np.testing.assert_array_equal(features, plip.encode_images([Image.open(path) for path in paths], 2))
    mixed = [paths[0], Image.open(paths[1]), *paths[2:]]
    np.testing.assert_array_equal(features, plip.encode_images(mixed, 2))
    # 1e-6: batches of another size.
    np.testing.assert_allclose(features, plip.model.encode_images(paths, normalize=False), atol=1e-6)
    texts = plip.encode_text(CAPTIONS, batch_size=3)
    for rows in (features, texts):
        assert np.abs(np.linalg.norm(rows, axis=1) - 1).min() > 1e-3
    assert plip.model_hash == plip.model.weights_hash


def test_both_sides_of_the_cosine_are_normalised(plip: PLIP) -> None:
    """The first bug: with the keys alone normalised this was [[6, 8, 0], [...]]."""
    space = np.array([[6.0, 0], [0, 8], [-1, 0]])
    np.testing.assert_allclose(plip._cosine_similarity(np.array([[3.0, 4]]), space), [[0.6, 0.8, -0.6]], atol=1e-12)
    assert plip._cosine_similarity(np.array([[3.0, 4]]), space, normalize=False).tolist() == [[18, 32, -3]]


def test_neighbours_are_by_angle_best_first_and_lists_will_do(plip: PLIP) -> None:
    """The long row (10, 10) had the largest product with both keys."""
    space = [[1.0, 0], [10, 10], [0, 1], [1, 0]]
    assert plip._nearest_neighbours(2, [[1.0, 0], [0, 2]], space).tolist() == [[0, 3], [2, 1]]
    assert plip._nearest_neighbours(1, [[1.0, 0], [0, 2]], space, normalize=False).tolist() == [[1], [1]]
    assert plip._nearest_neighbours(9, [[1.0, 0]], space).tolist() == [[0, 3, 1, 2]]


def test_zero_shot_gives_the_label_of_the_largest_cosine(
    plip: PLIP, paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = [CAPTIONS[i] for i in plip.model.similarity(paths, CAPTIONS).argmax(axis=1)]
    assert plip.zero_shot_classification(paths, CAPTIONS) == expected
    assert capsys.readouterr().out == ""
    assert plip.zero_shot_classification(paths[:1], CAPTIONS, debug=True) == expected[:1]
    assert capsys.readouterr().out.count("[[") == 1


def test_retrieval_searches_the_image_vectors_and_says_when_there_are_none(plip: PLIP, paths: list[str]) -> None:
    """The second bug: the attribute was never there."""
    plip.image_vectors = None
    with pytest.raises(ValueError, match=r"plip\.image_vectors = plip\.encode_images"):
        plip.retrieval(CAPTIONS)
    plip.image_vectors = plip.encode_images(paths, batch_size=8) * np.float32([[1], [50], [1], [1], [0.1]])
    found = plip.retrieval(CAPTIONS, top_k=3)
    np.testing.assert_array_equal(found, np.argsort(-plip.model.similarity(paths, CAPTIONS), axis=0)[:3].T)
    assert plip.retrieval(CAPTIONS).shape == (4, 5)


def test_a_path_may_be_the_model(plip: PLIP) -> None:
    assert Path(plip.model_name).is_dir()
    assert plip.device == "cpu"
