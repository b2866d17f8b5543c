"""The transformers in scikit-learn's own machinery: clone, pickle, pipelines, searches, its estimator checks."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from small_models import CAPTIONS, make_model

from plip_jax.api import PLIP
from plip_jax.data.image import ImageError
from plip_jax.export import export
from plip_jax.sklearn_transformer import PLIPImageTransformer, PLIPTextTransformer, load_plip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(export(make_model(), tmp_path_factory.mktemp("model") / "hf"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve images, the even ones pink and the odd ones blue."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(12):
        tint = np.array([[[230, 150, 200], [90, 70, 190]][i % 2]])
        pixels = np.clip(tint + rng.normal(0, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("transformer", [PLIPImageTransformer, PLIPTextTransformer])
@pytest.mark.parametrize(
    "check",
    [
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_get_params_invariance",
        "check_set_params",
        "check_estimator_repr",
    ],
)
def test_scikit_learns_checks_pass_that_need_no_numbers(transformer: Any, check: str) -> None:
    getattr(estimator_checks, check)(transformer.__name__, transformer())


def test_the_features_are_the_models(folder: str, paths: list[Path]) -> None:
    transformer = PLIPImageTransformer(folder, batch_size=8)
    model = load_plip(folder, "latest", "auto", "float32")  # the same one: its towers are compiled once
    features = transformer.fit_transform(paths)
    assert (features.shape, features.dtype) == ((12, 16), np.float32)
    np.testing.assert_array_equal(features, model.encode_images(paths, batch_size=8))
    np.testing.assert_array_equal(transformer.transform(np.array([str(path) for path in paths])), features)
    np.testing.assert_array_equal(
        PLIPImageTransformer(model, batch_size=8, normalize=False).transform(paths),
        model.encode_images(paths, batch_size=8, normalize=False),
    )
    np.testing.assert_array_equal(
        PLIPTextTransformer(folder, batch_size=8).transform(CAPTIONS), model.encode_text(CAPTIONS, batch_size=8)
    )


def test_features_have_names(folder: str) -> None:
    names = PLIPImageTransformer(folder).get_feature_names_out()
    assert names.tolist() == [f"plipimagetransformer{i}" for i in range(16)]


def test_a_pipeline_learns_and_a_search_over_it_loads_the_model_once(
    monkeypatch: pytest.MonkeyPatch, folder: str, paths: list[Path], tmp_path: Path
) -> None:
    calls: list[int] = []
    encode = PLIP.encode_images
    monkeypatch.setattr(
        PLIP, "encode_images", lambda self, images, **given: calls.append(1) or encode(self, images, **given)
    )
    labels = [i % 2 for i in range(12)]
    load_plip.cache_clear()
    probe = make_pipeline(PLIPImageTransformer(folder, batch_size=8), LogisticRegression(), memory=str(tmp_path))
    grid = {"logisticregression__C": [0.1, 10], "plipimagetransformer__normalize": [True, False]}
    search = GridSearchCV(probe, grid, cv=2, n_jobs=1).fit(paths, labels)
    assert load_plip.cache_info().misses == 1
    # Each of 2 training folds once for each of 2 values of normalize; every fit scored; the best one fitted on all.
    assert len(calls) == 2 * 2 + 2 * 2 * 2 + 1
    assert search.predict(paths).tolist() == labels


def test_a_pipelines_cache_belongs_to_the_weights_and_not_to_their_place(paths: list[Path], tmp_path: Path) -> None:
    def fitted() -> np.ndarray:
        load_plip.cache_clear()
        transformer = PLIPImageTransformer(tmp_path / "hf", batch_size=8)
        probe = make_pipeline(transformer, LogisticRegression(), memory=str(tmp_path / "cache"))
        return probe.fit(paths, [i % 2 for i in range(12)])[-1].coef_

    export(make_model(), tmp_path / "hf")
    first, again = fitted(), fitted()
    shutil.rmtree(tmp_path / "hf")
    export(make_model(seed=1), tmp_path / "hf")
    np.testing.assert_array_equal(again, first)
    assert np.abs(fitted() - first).max() > 1e-2


def test_a_cache_for_a_loaded_model_is_refused_with_what_to_do(folder: str, paths: list[Path], tmp_path: Path) -> None:
    held = PLIPImageTransformer(load_plip(folder, "latest", "auto", "float32"), batch_size=8)
    probe = make_pipeline(held, LogisticRegression(), memory=str(tmp_path))
    with pytest.raises(TypeError, match=r"a pipeline's memory= need it; pass its source"):
        probe.fit(paths, [i % 2 for i in range(12)])


def test_a_clone_shares_a_loaded_model_and_a_pickle_holds_no_weights(folder: str, paths: list[Path]) -> None:
    transformer = PLIPImageTransformer(folder, batch_size=8)
    features = transformer.transform(paths)
    content = pickle.dumps(transformer)
    assert len(content) < 2000
    np.testing.assert_array_equal(pickle.loads(content).transform(paths), features)

    model = PLIP.from_pretrained(folder)
    held = PLIPImageTransformer(model, batch_size=8)
    assert clone(held).source is model
    assert clone(held).get_params() == held.get_params()
    with pytest.raises(TypeError, match="pass its source"):
        pickle.dumps(held)


def test_mistakes_are_named(folder: str, paths: list[Path], tmp_path: Path) -> None:
    transformer = PLIPImageTransformer(folder)
    with pytest.raises(ValueError, match="expected a list, or a one-dimensional array, got one str"):
        transformer.transform(str(paths[0]))
    with pytest.raises(ImageError, match="absent"):
        transformer.transform([paths[0], tmp_path / "absent.png"])
