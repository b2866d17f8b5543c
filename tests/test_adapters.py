"""The Python of docs/adapters.md, run from the page: every tool gets the features and answers of plip_jax."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import NO_TORCH, make_config, make_params, make_tokenizer
from small_tissue import tissue

from plip_jax import PLIP
from plip_jax.convert.hf import write_hf
from plip_jax.convert.load import LoadedModel, hash_params
from plip_jax.convert.open_clip import write_open_clip
from plip_jax.data.image import Preprocessing

torch = pytest.importorskip("torch", reason=NO_TORCH)

import adapters_interfaces as interfaces  # noqa: E402 # it imports torch

PAGE = (Path(__file__).parents[1] / "docs" / "adapters.md").read_text(encoding="utf-8")
LABELS = ["tumor", "normal colon mucosa"]
# Relative to the largest value: the networks agree to 1e-5 in float32, and the same pixels go in.
TOLERANCE = 1e-5


def blocks(heading: str) -> list[str]:
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, heading
    return re.findall(r"^```python\n(.*?)^```", section.group(1), re.MULTILINE | re.DOTALL)


def run(block: str, **names: Any) -> dict[str, Any]:
    exec(compile(block, "docs/adapters.md", "exec"), names)
    return names


def assert_close(found: Any, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page names: two exports, an image, and images in folders of classes."""
    folder = tmp_path_factory.mktemp("adapters")
    config, tokenizer = make_config(32), make_tokenizer(32)  # the prompts fit, as they do in CLIP's 77 tokens
    params, preprocessing = make_params(config), Preprocessing(image_size=config.vision.image_size)
    model = LoadedModel(config, params, tokenizer, preprocessing, "made in a test", "none", hash_params(params))
    write_hf(folder / "plip-hf", config, params, tokenizer, preprocessing)
    (folder / "plip-open_clip").mkdir()
    with pytest.warns(UserWarning, match="vocabulary of its own"):  # the tests' small tokenizer
        write_open_clip(folder / "plip-open_clip", model)
    tissue(0, 60).save(folder / "tile.png")
    for index, label in enumerate(LABELS * 4):
        (folder / "tiles" / label).mkdir(parents=True, exist_ok=True)
        tissue(index, 32).save(folder / "tiles" / label / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def plip(exports: Path) -> PLIP:
    return PLIP.from_pretrained(exports / "plip-hf", batch_size=8)


@pytest.fixture(autouse=True)
def _in_their_folder(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exports)


def test_every_python_block_is_run_by_a_test():
    assert len(re.findall(r"^```python", PAGE, re.MULTILINE)) == 5
    assert [len(blocks(name)) for name in ("Hugging Face pipeline", "CLIP_benchmark", "TRIDENT", "LazySlide")] == [
        1,
        1,
        1,
        2,
    ]


def test_the_hugging_face_pipeline_gives_the_probabilities_of_zero_shot(plip: PLIP):
    names = run(blocks("Hugging Face pipeline")[0])
    found = {score["label"]: score["score"] for score in names["scores"]}
    expected = plip.zero_shot("tile.png", LABELS).probabilities
    assert list(found) == list(expected)  # the most probable first
    assert all(abs(found[label] - expected[label]) < 1e-4 for label in LABELS)


def test_clip_benchmark_gives_the_cosines_of_similarity(plip: PLIP, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("open_clip", reason="CLIP_benchmark loads models by open_clip")
    interfaces.stand_in(monkeypatch, "clip_benchmark.models", load_clip=interfaces.load_clip)
    functions = {name: getattr(interfaces, name) for name in ("zero_shot_classifier", "run_classification")}
    interfaces.stand_in(monkeypatch, "clip_benchmark.metrics.zeroshot_classification", **functions)
    names = run(blocks("CLIP_benchmark")[0])
    files = sorted(Path("tiles").rglob("*.png"))  # in ImageFolder's order
    prompts = [f"An H&E image of {label}." for label in sorted(LABELS)]
    assert_close(names["logits"].numpy(), 100 * plip.similarity(files, prompts))
    answers = [one.label for one in plip.zero_shot(files, LABELS)]
    hits = [answer == file.parent.name for answer, file in zip(answers, files, strict=True)]
    assert names["accuracy"] == np.mean(hits)


def test_trident_extracts_the_features_of_encode_images(plip: PLIP, monkeypatch: pytest.MonkeyPatch):
    interfaces.stand_in(
        monkeypatch, "trident.patch_encoder_models", CustomInferenceEncoder=interfaces.CustomInferenceEncoder
    )
    encoder = run(blocks("TRIDENT")[0], __name__="page")["encoder"]
    patches = [tissue(seed, 32) for seed in range(5)]
    found = interfaces.extract_patch_features(encoder, patches, batch_limit=2)
    assert_close(found, plip.encode_images(patches, normalize=False))
    assert (encoder.enc_name, encoder.precision) == ("plip", torch.float32)


def test_lazyslide_runs_the_export_in_the_place_of_its_own_weights(plip: PLIP, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("lazyslide_models", reason="the built-in model that is run is its own")
    interfaces.stand_in(monkeypatch, "lazyslide", tl=interfaces.LAZYSLIDE_TOOLS)
    tiles = [np.array(tissue(seed, 32)) for seed in range(3)]
    wsi = interfaces.Slide(tiles)
    with pytest.warns(UserWarning, match="Normalization will not be applied"):  # LazySlide's news of version 0.8.2
        run(blocks("LazySlide")[0], wsi=wsi)
    assert_close(wsi.tables["plip"], plip.encode_images(tiles, normalize=False))


def test_lazyslide_runs_plip_jax_itself(plip: PLIP, monkeypatch: pytest.MonkeyPatch):
    interfaces.stand_in(monkeypatch, "lazyslide", tl=interfaces.LAZYSLIDE_TOOLS)
    interfaces.stand_in(monkeypatch, "lazyslide_models", ImageTextModel=interfaces.ImageTextModel)
    tiles = [np.array(tissue(seed, 48)) for seed in range(3)]
    wsi = interfaces.Slide(tiles)
    names = run(blocks("LazySlide")[1], wsi=wsi, __name__="page")
    assert_close(wsi.tables["plip_jax"], plip.encode_images(tiles, normalize=False))
    assert_close(np.asarray(names["embeddings"], np.float32), plip.encode_text(LABELS))
