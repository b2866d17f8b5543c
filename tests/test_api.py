"""The public API: every form of input, order and count kept, one trace a tower, errors by path."""

import collections
import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_models import CAPTIONS, make_model

import plip_jax
from plip_jax.answers import DamagedImagesWarning
from plip_jax.api import PLIP, Encoder, Prediction
from plip_jax.data.image import ImageError, normalize_pixels, preprocess_image
from plip_jax.export import export
from plip_jax.model import clip
from plip_jax.sharding import make_mesh

LABELS = ["adipose tissue", "mucus", "normal colon mucosa"]


@pytest.fixture(scope="module")
def model() -> PLIP:
    return PLIP(make_model(), batch_size=8)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Of different sizes and shapes, no two alike."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (30 + i, 45 - i, 3), np.uint8) for i in range(21)]


@pytest.fixture(scope="module")
def reference(model: PLIP, images: list[np.ndarray]) -> np.ndarray:
    """The same features, one unpadded and unsharded image at a time, without the encoder."""
    network = clip.build(model.encoder.config)
    preprocessing = model.encoder.preprocessing
    params = jax.tree.map(jnp.asarray, jax.device_get(model.params))

    @jax.jit
    def encode(pixels: jax.Array) -> jax.Array:
        return network.encode_image(params, pixels)

    rows = []
    for image in images:
        pixels = normalize_pixels(preprocess_image(Image.fromarray(image), preprocessing), preprocessing)
        feature = np.asarray(encode(pixels[None]))[0].astype(np.float64)
        rows.append(feature / np.linalg.norm(feature))
    return np.stack(rows)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 21])
def test_every_image_is_encoded_once_and_in_order(
    model: PLIP, images: list[np.ndarray], reference: np.ndarray, count: int
) -> None:
    features = model.encode_images(images[:count])
    assert (features.shape, features.dtype) == ((count, 16), np.float32)
    # 1e-6: the same float32 program on batches of another size.
    np.testing.assert_allclose(features, reference[:count], atol=1e-6)
    if count:
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)


def test_a_generator_and_a_stack_give_the_same_bits(model: PLIP) -> None:
    stack = np.random.default_rng(2).integers(0, 256, (11, 40, 40, 3), np.uint8)
    expected = model.encode_images(list(stack))
    np.testing.assert_array_equal(model.encode_images(image for image in stack), expected)
    np.testing.assert_array_equal(model.encode_images(stack), expected)


def test_every_form_of_an_image_gives_the_same_bits(model: PLIP, images: list[np.ndarray], tmp_path: Path) -> None:
    array = images[3]
    Image.fromarray(array).save(tmp_path / "tile.png")
    data = (tmp_path / "tile.png").read_bytes()
    expected = model.encode_images(array)
    assert expected.shape == (1, 16)
    lazy = Image.open(tmp_path / "tile.png")
    forms: list[Any] = [tmp_path / "tile.png", str(tmp_path / "tile.png"), data, lazy, Image.fromarray(array), array]
    for form in forms:
        np.testing.assert_array_equal(model.encode_images(form), expected)
    # The same lazily opened file many times in one list: threads must not decode it at once.
    lazy = Image.open(tmp_path / "tile.png")
    np.testing.assert_array_equal(model.encode_images([lazy] * 9), np.repeat(expected, 9, axis=0))


def test_the_exif_orientation_counts_for_paths_and_pil_images_alike(model: PLIP, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 64, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    by_path = model.encode_images(tmp_path / "turned.png")
    np.testing.assert_array_equal(model.encode_images(Image.open(tmp_path / "turned.png")), by_path)
    np.testing.assert_array_equal(model.encode_images(image.transpose(Image.Transpose.ROTATE_270)), by_path)
    assert np.abs(model.encode_images(image) - by_path).max() > 1e-3


def test_texts_are_encoded_in_order_and_unpadded_equal_padded(model: PLIP) -> None:
    texts = [*CAPTIONS * 3, "", "mucus " * 50]
    features = model.encode_text(texts)
    assert (features.shape, features.dtype) == ((14, 16), np.float32)
    network = clip.build(model.encoder.config)
    params = jax.tree.map(jnp.asarray, jax.device_get(model.params))
    encode = jax.jit(lambda tokens: network.encode_text(params, tokens))
    for i in (0, 5, 12, 13):
        expected = np.asarray(encode(model.encoder.tokenizer(texts[i])), np.float64)[0]
        np.testing.assert_allclose(features[i], expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_array_equal(model.encode_text(CAPTIONS[1]), features[1:2])
    assert model.encode_text([]).shape == (0, 16)
    raw = model.encode_text(texts, normalize=False)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), features, atol=1e-6)


def test_each_tower_is_traced_once_whatever_the_length(
    monkeypatch: pytest.MonkeyPatch, images: list[np.ndarray]
) -> None:
    traces: collections.Counter[str] = collections.Counter()
    for tower in ("encode_image", "encode_text"):
        original = getattr(clip.CLIP, tower)

        def counted(self: clip.CLIP, *arguments: Any, tower: str = tower, original: Any = original) -> Any:
            traces[tower] += 1
            return original(self, *arguments)

        monkeypatch.setattr(clip.CLIP, tower, counted)
    model = PLIP(make_model(), batch_size=8)
    for count in (1, 8, 9, 20):
        model.encode_images(images[:count])
        model.encode_text(["mucus"] * count)
    assert traces == {"encode_image": 1, "encode_text": 1}


def test_a_call_may_choose_its_batch_and_a_size_is_compiled_once(
    monkeypatch: pytest.MonkeyPatch, images: list[np.ndarray], reference: np.ndarray
) -> None:
    traced: list[int] = []
    original = clip.CLIP.encode_image

    def counted(self: clip.CLIP, params: Any, pixels: jax.Array) -> jax.Array:
        traced.append(len(pixels))
        return original(self, params, pixels)

    monkeypatch.setattr(clip.CLIP, "encode_image", counted)
    model = PLIP(make_model(), batch_size=8, mesh=make_mesh(jax.devices()[:1]))
    for batch_size in (3, None, 3):
        # 1e-6: the same float32 program on batches of another size.
        np.testing.assert_allclose(model.encode_images(images, batch_size=batch_size), reference, atol=1e-6)
    assert traced == [3, 8]
    texts = model.encode_text(CAPTIONS, batch_size=3)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    with pytest.raises(ValueError, match="batch_size: expected 1 or more, got 0"):
        model.encode_images(images, batch_size=0)


def test_one_device_and_eight_agree_and_the_batch_is_a_multiple_of_the_devices(images: list[np.ndarray]) -> None:
    loaded = make_model()
    one = PLIP(loaded, batch_size=6, mesh=make_mesh(jax.devices()[:1]))
    eight = PLIP(loaded, batch_size=6, mesh=make_mesh())
    assert (one.encoder.batch_size, eight.encoder.batch_size) == (6, 8)
    np.testing.assert_allclose(one.encode_images(images), eight.encode_images(images), atol=1e-6)


def test_bfloat16_compute_is_near_and_not_the_same(model: PLIP, images: list[np.ndarray]) -> None:
    rough = PLIP(make_model(), batch_size=8, compute_dtype="bfloat16").encode_images(images)
    difference = np.abs(rough - model.encode_images(images)).max()
    # bfloat16 keeps 8 bits: 2^-8 a product, averaged over 32 terms and two blocks.
    assert 1e-6 < difference < 3e-2


def test_damaged_images_are_named_by_path_or_place(model: PLIP, images: list[np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    stream = io.BytesIO()
    Image.fromarray(images[0]).save(stream, "PNG")
    (tmp_path / "cut.png").write_bytes(stream.getvalue()[:200])
    for name in ("empty.png", "cut.png", "absent.png"):
        with pytest.raises(ImageError, match=name):
            model.encode_images([images[0], tmp_path / name, images[1]])
    with pytest.raises(ImageError, match="number 2 of the images"):
        model.encode_images([images[0], images[1], stream.getvalue()[:200]])
    with Image.open(tmp_path / "cut.png") as lazy, pytest.raises(ImageError, match="number 0 of the images"):
        model.encode_images(lazy)
    with pytest.raises(TypeError, match=r"number 1 .*uint8 \[height, width, 3\], got float32"):
        model.encode_images([images[0], images[0].astype(np.float32)])
    with pytest.raises(TypeError, match=r"number 0 .*got int"):
        model.encode_images([3])  # type: ignore[list-item]  # the mistake under test
    with pytest.raises(TypeError, match="expected strings, got NoneType"):
        model.encode_text(["a", None])  # type: ignore[list-item]  # the mistake under test


def test_an_encoder_tells_of_damaged_images_and_goes_on(model: PLIP, images: list[np.ndarray], tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    mixed = [*images[:9], tmp_path / "absent.png", *images[9:], b""]
    features = model.encoder.encode_images(
        model.params, mixed, on_damaged=lambda index, error: told.append((index, str(error)))
    )
    assert [index for index, _ in told] == [9, 22]
    assert "absent.png" in told[0][1]
    # 1e-6: the same images at other places of their batches.
    np.testing.assert_allclose(np.delete(features, [9, 22], axis=0), model.encode_images(images), atol=1e-6)


def test_damaged_images_become_nan_and_one_warning_names_them(
    model: PLIP, images: list[np.ndarray], tmp_path: Path
) -> None:
    absent = [tmp_path / f"absent{i}.png" for i in range(22)]
    with pytest.warns(DamagedImagesWarning) as caught:
        features = model.encode_images([images[0], *absent, images[1], b""], damaged="nan")
    assert np.flatnonzero(np.isnan(features).all(axis=1)).tolist() == [*range(1, 23), 24]
    # 1e-6: the same images at other places of their batches.
    np.testing.assert_allclose(features[[0, 23]], model.encode_images(images[:2]), atol=1e-6)
    assert len(caught) == 1
    warning = caught[0].message
    assert isinstance(warning, DamagedImagesWarning)
    assert (caught[0].filename, list(warning.errors)) == (__file__, [*range(1, 23), 24])
    text = str(warning)
    assert all(str(path) in text for path in absent[:20])
    assert str(absent[20]) not in text
    assert str(absent[20]) in str(warning.errors[21])
    assert text.startswith("images that cannot be read: 23; their rows are NaN")
    assert text.endswith("and 3 more (this warning's `errors` has all)")
    with pytest.raises(ValueError, match="'raise' or 'nan', got 'skip'"):
        model.encode_images(images, damaged="skip")  # type: ignore[arg-type]  # the mistake under test


def test_whole_images_give_no_warning(model: PLIP, images: list[np.ndarray]) -> None:
    # Any warning fails a test.
    np.testing.assert_array_equal(model.encode_images(images, damaged="nan"), model.encode_images(images))


def test_a_damaged_image_leaves_no_threads_behind(model: PLIP, images: list[np.ndarray]) -> None:
    with pytest.raises(ImageError):
        model.encode_images([*images, b"no image", *images * 10])
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("plip-decode")] == []


def test_similarity_is_the_cosine_with_both_sides_normalised(model: PLIP, images: list[np.ndarray]) -> None:
    raw_images = model.encode_images(images[:3], normalize=False).astype(np.float64)
    raw_texts = model.encode_text(CAPTIONS, normalize=False).astype(np.float64)
    norms = np.linalg.norm(raw_images, axis=1)[:, None] * np.linalg.norm(raw_texts, axis=1)
    cosine = raw_images @ raw_texts.T / norms
    assert np.abs(norms - 1).min() > 1e-2  # else this test could not fail
    np.testing.assert_allclose(model.similarity(images[:3], CAPTIONS), cosine, atol=1e-6)
    logits = model.logits_per_image(images[:3], CAPTIONS)
    np.testing.assert_allclose(logits, cosine * np.exp(model.logit_scale), atol=1e-4)


def test_zero_shot_is_the_softmax_over_the_prompts(model: PLIP, images: list[np.ndarray]) -> None:
    logits = model.logits_per_image(images[:2], [f"A picture of {label}!" for label in LABELS]).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predictions = model.zero_shot(images[:2], LABELS, template="A picture of {}!")
    assert isinstance(predictions, list)
    for prediction, row in zip(predictions, expected, strict=True):
        # 1e-6: the mean of a label's one prompt is normalised again, in float32.
        assert prediction.probabilities == pytest.approx(dict(zip(LABELS, row, strict=True)), abs=1e-6)
        values = list(prediction.probabilities.values())
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-12)
        assert prediction.label == LABELS[int(row.argmax())]
    one = model.zero_shot(images[0], LABELS, template="A picture of {}!")
    assert isinstance(one, Prediction)
    # 1e-6: the host's product of one row rounds otherwise than that of two.
    assert one.probabilities == pytest.approx(predictions[0].probabilities, abs=1e-6)
    assert model.zero_shot([images[0]], LABELS) == [model.zero_shot(images[0], LABELS)]


def test_several_templates_are_the_normalised_mean_of_their_prompts(model: PLIP, images: list[np.ndarray]) -> None:
    templates = ["An H&E image of {}.", "{} beside debris", "adipose {}"]
    means = [
        np.mean([model.encode_text(template.replace("{}", label))[0] for template in templates], axis=0, dtype=float)
        for label in LABELS
    ]
    classes = np.stack([mean / np.linalg.norm(mean) for mean in means])
    assert np.linalg.norm(means, axis=1).max() < 0.999  # else this test could not see the normalisation
    logits = np.exp(model.logit_scale) * model.encode_images(images[:3]).astype(float) @ classes.T
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predictions = model.zero_shot(images[:3], LABELS, template=templates)
    assert isinstance(predictions, list)
    for prediction, row in zip(predictions, expected, strict=True):
        # 1e-5: float32 cosines, times a scale of 14.
        assert prediction.probabilities == pytest.approx(dict(zip(LABELS, row, strict=True)), abs=1e-5)


def test_a_prediction_prints_readably() -> None:
    prediction = Prediction({"tumor": 0.9125, "normal colon mucosa": 0.0875})
    assert str(prediction) == " 91.2%  tumor\n  8.8%  normal colon mucosa"
    assert repr(prediction) == "Prediction(tumor: 91.2%, normal colon mucosa: 8.8%)"
    assert prediction.probability == 0.9125


@pytest.mark.parametrize(
    ("labels", "template", "message"),
    [
        (["tumor"], "{}", "two or more"),
        ("tumor", "{}", "expected a list"),
        (["tumor", "tumor"], "{}", "different"),
        (["tumor", "normal"], "an image", "one {}"),
        (["tumor", "normal"], "{} and {}", "one {}"),
        (["tumor", "normal"], ["{}", "an image"], "one {}"),
        (["tumor", "normal"], [], "one {}"),
    ],
)
def test_zero_shot_refuses_what_has_no_answer(model: PLIP, labels: Any, template: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.zero_shot(np.zeros((8, 8, 3), np.uint8), labels, template=template)


def test_zero_shot_takes_names_and_no_numbers(model: PLIP) -> None:
    with pytest.raises(TypeError, match="labels: expected names for the prompt, got int 1"):
        model.zero_shot(np.zeros((8, 8, 3), np.uint8), ["0", 1])


def test_the_readmes_three_lines(tmp_path: Path, images: list[np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(make_model(), tmp_path / "hf")
    Image.fromarray(images[0]).save(tmp_path / "tile.png")
    model = plip_jax.PLIP.from_pretrained(folder, batch_size=8)
    print(model.zero_shot(tmp_path / "tile.png", LABELS))
    printed = capsys.readouterr().out
    assert all(label in printed for label in LABELS)
    assert model.weights_file == "model.safetensors"


def test_what_a_source_lacks_can_be_given(tmp_path: Path) -> None:
    folder = export(make_model(), tmp_path / "hf")
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (folder / name).rename(tmp_path / "bare" / name)
    with pytest.warns(UserWarning, match="gelu"):  # the configuration says quick_gelu
        model = PLIP.from_pretrained(tmp_path / "bare", tokenizer=folder, activation="gelu")
    assert model.encoder.config.activation == "gelu"
    np.testing.assert_array_equal(model.encoder.tokenizer(CAPTIONS), make_model().tokenizer(CAPTIONS))


def test_encoder_takes_the_parameters_of_a_running_training(images: list[np.ndarray]) -> None:
    """The same compiled encoder, other parameters: other features."""
    first, second = make_model(seed=0), make_model(seed=1)
    encoder = Encoder(first.config, first.tokenizer, first.preprocessing, batch_size=8)
    features = [encoder.encode_images(encoder.put_params(model.params), images[:2]) for model in (first, second)]
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_importing_the_package_imports_no_jax() -> None:
    code = "import sys, plip_jax; assert not {'jax', 'flax', 'numpy', 'torch'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


def test_every_public_name_is_there():
    assert [name for name in plip_jax.__all__ if not hasattr(plip_jax, name)] == []
    assert set(plip_jax.__all__) == {*plip_jax._HOMES, "__version__"}
    assert plip_jax.open_examples.__module__ == "plip_jax.data.examples"
