"""The table of encoders, and a CLIP as one of them."""

import io
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_models import CAPTIONS, make_model

from plip_jax.api import PLIP
from plip_jax.convert.load import SourceError, load_model
from plip_jax.data.image import ImageError, normalize_pixels
from plip_jax.encoders.table import open_encoder, split_source
from plip_jax.export import export


def png(seed: int, size: tuple[int, int] = (40, 48)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export(make_model(), tmp_path_factory.mktemp("encoders") / "tiny")


IMAGES = [png(seed) for seed in range(5)]
NAMES = tuple("abcde")


def test_a_plain_path_is_a_clip_and_its_features_are_those_of_the_public_class(folder):
    encoder = open_encoder(folder, batch_size=8)
    assert (encoder.name, encoder.source, encoder.normalized, encoder.computed) == ("tiny", str(folder), True, True)
    model = PLIP.from_pretrained(folder, batch_size=8)
    assert encoder.logit_scale == pytest.approx(np.exp(2.6592), rel=1e-6)  # float32 of make_params' value
    raw = encoder.encode_images(iter(IMAGES), names=NAMES)
    np.testing.assert_array_equal(raw, model.encode_images(IMAGES, normalize=False))
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 1e-3  # as they come
    assert encoder.encode_text is not None
    np.testing.assert_array_equal(encoder.encode_text(CAPTIONS), model.encode_text(CAPTIONS, normalize=False))
    description = encoder.describe()
    assert description["weights_hash"] == model.weights_hash
    assert json.loads(json.dumps(description)) == description


def test_a_damaged_image_is_called_by_its_id(folder):
    with pytest.raises(ImageError, match="tile 7"):
        open_encoder(folder, batch_size=8).encode_images([IMAGES[0], b"no image"], names=("tile 6", "tile 7"))


def test_the_key_changes_with_whatever_changes_the_features(folder, tmp_path):
    key = open_encoder(folder).key
    assert open_encoder(f"clip:{folder}", name="other", batch_size=3).key == key
    assert open_encoder(folder, compute_dtype="bfloat16").key != key
    other = export(make_model(seed=1), tmp_path / "other")
    assert open_encoder(other).key != key
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in folder.iterdir():
        os.link(file, changed / file.name)
    (changed / "preprocessor_config.json").unlink()
    (changed / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.5, 0.5, 0.5]}))
    assert open_encoder(changed).key != key


def test_a_tower_starts_from_the_weights_as_they_were_loaded(folder):
    tower = open_encoder(folder, compute_dtype="bfloat16").tower
    assert tower is not None
    vision = load_model(folder).params["vision"]
    jax.tree.map(np.testing.assert_array_equal, tower().params["vision"], vision)


def test_the_tower_gives_the_encoders_features_and_can_be_trained(folder):
    encoder = open_encoder(folder, batch_size=8)
    assert encoder.tower is not None
    tower = encoder.tower()
    assert (tower.feature_dim, tower.image_size) == (16, 32)
    pixels = np.stack([tower.pixels(image, "x") for image in IMAGES])
    assert (pixels.dtype, pixels.shape) == (np.uint8, (5, 32, 32, 3))
    normalised = jnp.asarray(normalize_pixels(pixels, tower.settings))
    features = jax.jit(tower.apply)(tower.params, normalised)
    # 1e-6: the same float32 program on a batch of another size.
    np.testing.assert_allclose(features, encoder.encode_images(IMAGES, names=NAMES), atol=1e-6)
    gradient = jax.grad(lambda params: tower.apply(params, normalised).sum())(tower.params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient)), (
        "a parameter the features do not depend on"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("vinid/plip", ("clip", "vinid/plip")),
        ("clip:vinid/plip", ("clip", "vinid/plip")),
        ("gs://bucket/run", ("clip", "gs://bucket/run")),
        ("clip:gs://bucket/run", ("clip", "gs://bucket/run")),
        ("vit:a:b", ("vit", "a:b")),
        ("C:/models/plip", ("clip", "C:/models/plip")),
    ],
)
def test_a_kind_stands_before_the_first_colon(source, expected):
    assert split_source(source) == expected


def test_an_unknown_kind_lists_the_known_ones_and_a_folder_with_a_colon_is_a_path(tmp_path, monkeypatch):
    with pytest.raises(SourceError, match=r"kind of encoder 'vti' \(did you mean vit\?\); known: clip, siglip, vit"):
        split_source("vti:somewhere")
    with pytest.raises(SourceError, match="expected a path or hub id behind vit:"):
        split_source("vit:")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run:3").mkdir()
    assert split_source("run:3") == ("clip", "run:3")
