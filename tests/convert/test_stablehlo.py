"""StableHLO: the programs run in a process without our package, and give our features."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small_models import CAPTIONS, make_model, make_tokenizer

from plip_jax.convert import load_stablehlo
from plip_jax.convert.export_format import ConsumerUnusable, ExportError, ParityInputs
from plip_jax.convert.hf import differing_params
from plip_jax.convert.parity import TEXTS, parity_images, parity_inputs
from plip_jax.convert.safetensors_file import read_safetensors_file
from plip_jax.convert.stablehlo import (
    STABLEHLO,
    read_stablehlo_preprocessing,
    read_stablehlo_weights,
    stablehlo_features,
    stablehlo_inputs,
    write_stablehlo,
)
from plip_jax.data.image import normalize_pixels
from plip_jax.model import clip

flatbuffers = pytest.importorskip("flatbuffers", reason="jax.export writes and reads with it")

# A consumer: nothing of ours, and no flax, can be imported. The folder is its argument.
CONSUMER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("plip_jax", "flax", "orbax", "torch", "transformers"):
            raise ModuleNotFoundError(f"{name} is hidden from this process")

sys.meta_path.insert(0, Absent())
import numpy as np

folder = sys.argv[1]
sys.path.insert(0, folder)
import load_stablehlo

given = np.load(f"{folder}/../given.npz")
model = load_stablehlo.load(folder)
np.savez(
    f"{folder}/../computed.npz",
    image=model.encode_image(given["pixel_values"]),
    one_image=model.encode_image(given["pixel_values"][:1]),
    image_of_uint8=model.encode_image(given["uint8"]),
    text=model.encode_text(given["tokens"].astype(np.int64)),
    logit_scale=model.logit_scale,
)
assert not {"plip_jax", "flax"} & {name.split(".")[0] for name in sys.modules}
assert load_stablehlo.__file__.startswith(folder)
"""


def _inputs(batch: int = 3) -> ParityInputs:
    pixel_values = np.random.default_rng(batch).normal(size=(batch, 32, 32, 3)).astype(np.float32)
    return ParityInputs(pixel_values, make_tokenizer()(CAPTIONS[:batch]))


@functools.cache
def _towers() -> tuple[Any, Any]:
    """Ours."""
    network = clip.build(make_model().config)
    return jax.jit(network.encode_image), jax.jit(network.encode_text)


def _assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    # The project's bound for a feature, relative to the largest; the same program was 4e-7 off.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stablehlo") / "out"
    folder.mkdir()
    write_stablehlo(folder, make_model(), "float32")
    return folder


def test_a_process_without_our_package_computes_our_features(written: Path) -> None:
    model, inputs = make_model(), _inputs()
    uint8 = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    np.savez(written.parent / "given.npz", pixel_values=inputs.pixel_values, tokens=inputs.tokens, uint8=uint8)
    # One device; without optimisations it compiles in half the time.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    subprocess.run(
        [sys.executable, "-c", CONSUMER, str(written)], cwd=written.parent, env=environment, check=True, timeout=300
    )
    computed = np.load(written.parent / "computed.npz")
    encode_image, encode_text = _towers()
    image = np.asarray(encode_image(model.params, inputs.pixel_values))
    _assert_same(computed["image"], image)
    _assert_same(computed["one_image"], image[:1])
    normalised = np.asarray(normalize_pixels(uint8, model.preprocessing), np.float32)
    _assert_same(computed["image_of_uint8"], np.asarray(encode_image(model.params, normalised)))
    _assert_same(computed["text"], np.asarray(encode_text(model.params, inputs.tokens)))
    assert computed["logit_scale"] == model.params["logit_scale"]


def test_float16_weights_are_widened(tmp_path: Path) -> None:
    model, inputs = make_model(), _inputs()
    write_stablehlo(tmp_path, model, "float16")
    assert {tensor.dtype.name for tensor in read_safetensors_file(tmp_path / "weights.safetensors").values()} == {
        "float16"
    }
    rounded = STABLEHLO.rounded(model.params, "float16")
    assert differing_params(rounded, read_stablehlo_weights(tmp_path)) == []
    computed, (encode_image, encode_text) = stablehlo_features(tmp_path, inputs), _towers()
    assert computed is not None
    assert computed.library == f"jax {jax.__version__}"
    _assert_same(computed.image_features, np.asarray(encode_image(rounded, inputs.pixel_values)))
    _assert_same(computed.text_features, np.asarray(encode_text(rounded, inputs.tokens)))


def test_the_weights_stand_beside_the_programs_bit_equal(written: Path, tmp_path: Path) -> None:
    model = make_model(seed=1)
    biased = dataclasses.replace(model, params={**model.params, "logit_bias": np.float32(-10)})
    write_stablehlo(tmp_path, biased, "float32")
    assert differing_params(biased.params, read_stablehlo_weights(tmp_path)) == []
    for name in ("vision_model.stablehlo", "text_model.stablehlo"):  # other weights, the same programs
        program = (tmp_path / name).read_bytes()
        assert program == (written / name).read_bytes()
        assert b".py" not in program  # nor the paths of this machine
    description = json.loads((tmp_path / "stablehlo.json").read_text())
    assert description["logit_bias"] == -10


def test_the_description_says_how_to_call_the_programs(written: Path) -> None:
    description = json.loads((written / "stablehlo.json").read_text())
    assert description["platforms"] == ["cpu", "cuda", "tpu"]
    assert jax.device_count() > 1  # of this process; the programs are for one
    assert description["devices"] == 1
    assert description["jax_version"] == jax.__version__
    image, text = description["image"], description["text"]
    assert image["input"] == {"dtype": "float32", "shape": ["batch", 32, 32, 3]}
    assert text["input"] == {"dtype": "int32", "shape": ["batch", 16]}
    assert image["output"] == text["output"] == {"dtype": "float32", "shape": ["batch", 16]}
    assert image["weights"]["vision/patch_embedding/kernel"] == [16, 16, 3, 32]
    for entry in (image, text):
        program = jax.export.deserialize(bytearray((written / entry["program_file"]).read_bytes()))
        *weights, batch = program.in_avals
        assert [list(leaf.shape) for leaf in weights] == list(entry["weights"].values())  # in this order
        assert list(batch.shape[1:]) == entry["input"]["shape"][1:]
    tensors = read_safetensors_file(written / "weights.safetensors")
    assert tensors.keys() == {*image["weights"], *text["weights"], "logit_scale"}


def test_the_tokenizer_is_described_as_the_loader_says(written: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the consumer of tokenizer.json")
    text = json.loads((written / "stablehlo.json").read_text())["text"]
    tokenizer = tokenizers.Tokenizer.from_file(str(written / text["tokenizer_file"]))
    tokenizer.enable_truncation(text["context_length"])
    tokenizer.enable_padding(length=text["context_length"], pad_id=text["pad_token_id"])
    captions = [*CAPTIONS, "a very long caption " * 20]
    ids = np.array([encoding.ids for encoding in tokenizer.encode_batch(captions)], np.int32)
    np.testing.assert_array_equal(ids, make_tokenizer()(captions))


def test_the_loader_refuses_what_the_programs_do_not_take(written: Path) -> None:
    model = load_stablehlo.load(written)
    with pytest.raises(ValueError, match=r"expected \[batch, 32, 32, 3\] .* got \(1, 3, 32, 32\)"):
        model.encode_image(np.zeros((1, 3, 32, 32), np.float32))
    with pytest.raises(ValueError, match=r"batch of one or more, got \(0, 32, 32, 3\)"):
        model.encode_image(np.zeros((0, 32, 32, 3), np.uint8))
    with pytest.raises(TypeError, match="expected uint8, or normalised float32, got float64"):
        model.encode_image(np.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match=r"tokens: expected \[batch, 16\] .* got \(1, 15\)"):
        model.encode_text(np.zeros((1, 15), np.int32))
    with pytest.raises(TypeError, match="tokens: expected integers, got float32"):
        model.encode_text(np.zeros((1, 16), np.float32))


def test_a_program_of_another_jax_is_refused_with_what_to_do(written: Path, tmp_path: Path) -> None:
    for name in ("stablehlo.json", "weights.safetensors", "text_model.stablehlo"):
        (tmp_path / name).write_bytes((written / name).read_bytes())
    with pytest.raises(FileNotFoundError, match=r"vision_model\.stablehlo"):
        load_stablehlo.load(tmp_path)
    for damage in (b"", b"half", (written / "vision_model.stablehlo").read_bytes()[:-4000]):
        (tmp_path / "vision_model.stablehlo").write_bytes(damage)
        with pytest.raises(ValueError, match=rf"that jax {jax.__version__} wrote .* or export the model again"):
            load_stablehlo.load(tmp_path)


def test_without_flatbuffers_nothing_is_written_or_compared(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ExportError, match=r"pip install flatbuffers"):
        write_stablehlo(tmp_path, make_model(), "float32")
    assert stablehlo_features(written, _inputs()) is None
    with pytest.raises(ValueError, match="package flatbuffers, which is not installed"):
        load_stablehlo.load(written)
    assert list(tmp_path.iterdir()) == []


def test_its_description_makes_the_ids_and_pixels_of_the_model(written: Path, tmp_path: Path) -> None:
    model = make_model()
    tokens, pixels = stablehlo_inputs(written, TEXTS, parity_images())
    inputs = parity_inputs(model)
    np.testing.assert_array_equal(tokens, inputs.tokens)
    np.testing.assert_allclose(pixels, inputs.pixel_values, rtol=0, atol=1e-6)  # numpy and XLA round differently
    assert read_stablehlo_preprocessing(written) == model.preprocessing
    for path in written.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    description = json.loads((tmp_path / "stablehlo.json").read_text())
    description["image"]["mean"] = [0.9, 0.9, 0.9]
    (tmp_path / "stablehlo.json").write_text(json.dumps(description))
    with pytest.raises(ExportError, match=r"stablehlo.json and preprocessor_config.json differ"):
        read_stablehlo_preprocessing(tmp_path)


def test_a_machine_told_to_use_no_cpu_is_said(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_cpu(**_: str) -> list[jax.Device]:
        raise RuntimeError("Unknown backend cpu. Available backends are ['cuda']")

    monkeypatch.setattr(jax, "local_devices", no_cpu)
    with pytest.raises(ConsumerUnusable, match=r"JAX_PLATFORMS .* \['cuda'\]"):
        stablehlo_features(written, _inputs())
