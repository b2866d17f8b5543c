"""`PLIP.retrieve`: every form of query and of corpus, names kept, other models and damaged images told."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from small_models import CAPTIONS, make_model

from plip_jax.answers import DamagedImagesWarning, Hit
from plip_jax.api import PLIP
from plip_jax.data.image import ImageError
from plip_jax.embed import EmbedOptions, embed
from plip_jax.embedding_folder import Stop
from plip_jax.embedding_store import open_embeddings
from plip_jax.image_sources import open_images
from plip_jax.sharding import make_mesh


@pytest.fixture(scope="module")
def model() -> PLIP:
    return PLIP(make_model(), batch_size=8, mesh=make_mesh(jax.devices()[:1]))  # one device compiles faster


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (30 + i, 45 - i, 3), np.uint8)).save(folder / f"{i:02}.png")
    return sorted(folder.iterdir())


def rows_of(hits: Any) -> Any:
    return [hit.index if isinstance(hit, Hit) else rows_of(hit) for hit in hits]


def test_retrieve_ranks_by_cosine_whatever_form_the_query_has(model: PLIP, paths: list[Path]) -> None:
    corpus = model.encode_images(paths, normalize=False)
    by_text = np.argsort(-model.similarity(paths, CAPTIONS), axis=0, kind="stable").T.tolist()
    assert rows_of(model.retrieve(CAPTIONS, paths, 12)) == by_text
    assert rows_of(model.retrieve(CAPTIONS[0], (str(path) for path in paths), 3)) == by_text[0][:3]
    assert rows_of(model.retrieve([CAPTIONS[1]], corpus)) == [by_text[1][:10]]
    # An image finds itself, as does its feature.
    with Image.open(paths[5]) as opened:
        image: list[Any] = [paths[5], paths[5].read_bytes(), opened, np.asarray(opened), corpus[5]]
        for query in image:
            hits = model.retrieve(query, corpus, k=1)
            assert rows_of(hits) == [5]
            assert rows_of(model.retrieve([query] if query is not image[-1] else query[None], corpus, k=1)) == [[5]]
    assert rows_of(model.retrieve(np.stack([corpus[2], corpus[7]]), corpus, k=1)) == [[2], [7]]
    assert model.retrieve([], corpus) == []


def test_hits_have_the_names_of_paths_and_of_embeddings_on_disk(model: PLIP, paths: list[Path], tmp_path: Path) -> None:
    source = open_images(paths[0].parent)
    assert embed(make_model(), source, [], tmp_path / "out", EmbedOptions(batch_size=8), Stop(threading.Event()))
    stored = open_embeddings(tmp_path / "out", model=model)
    for corpus, name in ((paths, str(paths[4])), (stored, stored.ids[4]), (stored.features, None)):
        (hit,) = model.retrieve(paths[4], corpus, k=1)
        assert isinstance(hit, Hit)
        assert (hit.index, hit.name) == (4, name)
        assert hit.score == pytest.approx(1, abs=1e-6)
    assert "04.png" in stored.ids[4]
    for changes, message in (
        ({"weights_hash": "0" * 64}, "weights_hash: made with"),
        ({"config": stored.model["config"] | {"activation": "gelu"}}, 'config/activation: made with "gelu"'),
        ({"preprocessing": stored.model["preprocessing"] | {"std": [1, 1, 1]}}, "preprocessing/std: made with"),
    ):
        other = dataclasses.replace(stored, model=stored.model | changes)
        with pytest.raises(ValueError, match=rf"of another model.*{message}"):
            model.retrieve("mucus", other)


def test_a_string_is_a_text_as_a_query_and_a_path_in_the_corpus(model: PLIP, paths: list[Path]) -> None:
    as_text = model.encode_text(str(paths[5]))[0]
    hits = model.retrieve(str(paths[5]), [str(path) for path in paths], k=12)
    assert rows_of(hits) == rows_of(model.retrieve(as_text, model.encode_images(paths), k=12))
    assert rows_of(hits)[0] != rows_of(model.retrieve(paths[5], paths))[0] == 5
    with pytest.raises(TypeError, match=r"got 1 strings among 2; .*pathlib\.Path"):
        model.retrieve(["mucus", paths[0]], paths)


def test_damaged_images_of_a_corpus_are_named_or_never_found(model: PLIP, paths: list[Path]) -> None:
    corpus = [paths[0], paths[0].parent / "absent.png", paths[1]]
    with pytest.raises(ImageError, match=r"absent\.png"):
        model.retrieve("mucus", corpus)
    with pytest.warns(DamagedImagesWarning, match=r"absent\.png"):
        hits = model.retrieve("mucus", corpus, damaged="nan")
    assert sorted(rows_of(hits)) == [0, 2]
