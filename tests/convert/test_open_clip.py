"""open_clip's own models, in and out: the folder that it writes is read, and the folder that we write it loads."""

import dataclasses
import functools
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from small_models import CAPTIONS, NO_TORCH, make_model, make_tokenizer

from plip_jax.convert.export_format import ConsumerUnusable, ParityInputs
from plip_jax.convert.hf import differing_params
from plip_jax.convert.load import LoadedModel, load_model
from plip_jax.convert.open_clip import OPEN_CLIP, open_clip_features, write_open_clip
from plip_jax.data.image import Preprocessing, normalize_pixels, preprocess_image
from plip_jax.data.tokenizer import load_tokenizer
from plip_jax.model import clip
from plip_jax.model.presets import get_preset

torch = pytest.importorskip("torch", reason=NO_TORCH)
open_clip = pytest.importorskip("open_clip", reason="open_clip, the consumer, is not installed for this Python")

OWN_TOKENIZER = "has a vocabulary of its own"
# Ours, small; odd sizes so that no two fields can be exchanged unseen.
TINY: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16, "mlp_ratio": 3.0},
    "text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 3, "mlp_ratio": 2.5},
}


def tiny_config(**changes: Any) -> dict[str, Any]:
    config = json.loads(json.dumps(TINY))
    config["text_cfg"]["vocab_size"] = make_tokenizer().vocab_size
    for name, value in changes.items():
        tower, _, field = name.rpartition("__")
        (config[tower] if tower else config)[field] = value
    return config


def make_reference(config: dict[str, Any], custom_text: bool = False, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    kind = open_clip.model.CustomTextCLIP if custom_text else open_clip.model.CLIP
    model = kind(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # norms and biases too
    return model


def save_reference(folder: Path, reference: Any, config: dict[str, Any], *, safe: bool = True) -> Path:
    """The folder as open_clip's push_to_hf_hub makes it."""
    folder.mkdir()
    if safe:
        import safetensors.torch

        safetensors.torch.save_file(reference.state_dict(), folder / "open_clip_model.safetensors")
    else:
        torch.save(reference.state_dict(), folder / "open_clip_pytorch_model.bin")
    preprocess = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    values = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    make_tokenizer().save(folder)
    return folder


def make_inputs(model: LoadedModel, images: int = 2) -> ParityInputs:
    side = model.config.vision.image_size
    pixels = np.random.default_rng(0).normal(size=(images, side, side, 3)).astype(np.float32)
    return ParityInputs(pixels, model.tokenizer([*CAPTIONS, "", "mucus " * 90]))


def check_features(model: LoadedModel, theirs: tuple[Any, Any], inputs: ParityInputs) -> None:
    """Ours equal theirs, to 1e-5 of the largest value: the project's tolerance for a feature."""
    network = clip.build(model.config)
    image_features = jax.jit(network.encode_image)(model.params, inputs.pixel_values)
    text_features = jax.jit(network.encode_text)(model.params, inputs.tokens)
    for ours, expected in zip((image_features, text_features), theirs, strict=True):
        expected = np.asarray(expected)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def their_features(reference: Any, inputs: ParityInputs) -> tuple[Any, Any]:
    with torch.inference_mode():
        pixels = torch.from_numpy(inputs.pixel_values.transpose(0, 3, 1, 2).copy())
        return reference.encode_image(pixels), reference.encode_text(torch.from_numpy(inputs.tokens).long())


def round_trip(tmp_path: Path, reference: Any, config: dict[str, Any], *, safe: bool) -> LoadedModel:
    """open_clip -> file -> ours -> file -> open_clip: the same features, the same bits."""
    model = load_model(save_reference(tmp_path / "in", reference, config, safe=safe))
    inputs = make_inputs(model)
    theirs = their_features(reference, inputs)
    check_features(model, theirs, inputs)

    out = tmp_path / "out"
    out.mkdir()
    OPEN_CLIP.write(out, model, "float32")
    again = open_clip.create_model(f"local-dir:{out}").eval()
    state = {name.removeprefix("text."): value for name, value in reference.state_dict().items()}
    written = again.state_dict()
    assert state.keys() == written.keys()
    assert [name for name in state if not torch.equal(state[name], written[name].reshape(state[name].shape))] == []
    features = OPEN_CLIP.consumer_features(out, inputs)
    assert features is not None
    assert features.library.startswith("open_clip 3")
    np.testing.assert_array_equal(features.image_features, theirs[0].numpy())
    np.testing.assert_array_equal(features.text_features, theirs[1].numpy())
    assert OPEN_CLIP.read_back is not None
    assert differing_params(model.params, OPEN_CLIP.read_back(out)) == []
    return model


@pytest.mark.filterwarnings(f"ignore:.*{OWN_TOKENIZER}")  # the small vocabulary is; its own test is below
def test_a_quick_gelu_model_goes_in_and_out(tmp_path: Path) -> None:
    config = tiny_config()
    model = round_trip(tmp_path, make_reference(config), config, safe=True)
    assert model.weights_file == "open_clip_model.safetensors"
    assert model.preprocessing == Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    vision, text = model.config.vision, model.config.text
    assert (vision.num_heads, vision.mlp_dim, text.mlp_dim, text.depth) == (4, 192, 80, 3)
    assert (text.eot_pooling, text.eot_token_id) == ("argmax", make_tokenizer().eot_token_id)
    assert load_model(tmp_path / "out").preprocessing == model.preprocessing


@pytest.mark.filterwarnings(f"ignore:.*{OWN_TOKENIZER}")  # as above
def test_a_custom_text_gelu_model_with_every_other_setting_goes_in_and_out(tmp_path: Path) -> None:
    eos = {"text_cfg__pool_type": "eos", "text_cfg__eos_id": make_tokenizer().eot_token_id}
    norm = {f"{tower}__norm_kwargs": {"eps": 1e-3} for tower in ("vision_cfg", "text_cfg")}
    config = tiny_config(quick_gelu=False, init_logit_bias=-7.5, nonscalar_logit_scale=True, **eos, **norm)
    reference = make_reference(config, custom_text=True)
    model = round_trip(tmp_path, reference, {**config, "custom_text": True}, safe=False)
    assert model.weights_file == "open_clip_pytorch_model.bin"
    assert (model.config.activation, model.config.norm_eps) == ("gelu", 1e-3)
    assert model.config.text.eot_pooling == "first_eot"
    assert model.params["logit_bias"] == reference.logit_bias.item()
    assert load_model(tmp_path / "out").config.activation == "gelu"


def test_a_vocabulary_of_its_own_is_read_by_open_clip_from_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="open_clip reads such a vocabulary through transformers")
    with pytest.warns(UserWarning, match=OWN_TOKENIZER):
        write_open_clip(tmp_path, make_model())
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path}")([*CAPTIONS, ""]).numpy()
    np.testing.assert_array_equal(theirs, make_tokenizer()([*CAPTIONS, ""]))


@functools.cache
def bare_model() -> LoadedModel:
    """CLIP's own tokenizer, from open_clip's copy of OpenAI's file, and a network too small to be of use."""
    model = make_model()
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None
    assert spec.submodule_search_locations
    tokenizer = load_tokenizer(spec.submodule_search_locations[0])
    text = dataclasses.replace(
        model.config.text, vocab_size=tokenizer.vocab_size, eot_token_id=tokenizer.eot_token_id, context_length=77
    )
    config = dataclasses.replace(model.config, text=text)
    abstract = clip.build(config).abstract_params()
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract)
    return dataclasses.replace(model, config=config, params=params, tokenizer=tokenizer)


def test_clips_own_vocabulary_is_left_to_open_clips_tokenizer(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_open_clip(tmp_path, bare_model())
    assert (
        "hf_tokenizer_name" not in json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    )
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(CAPTIONS).numpy()
    ours = bare_model().tokenizer(CAPTIONS)
    ends = (ours == 49407).argmax(axis=1)
    for row, (expected, end) in enumerate(zip(theirs, ends, strict=True)):  # behind the end open_clip pads with 0
        np.testing.assert_array_equal(ours[row, : end + 1], expected[: end + 1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_narrow_dtype_is_what_open_clip_computes_with(tmp_path: Path, dtype: str) -> None:
    model = bare_model()
    OPEN_CLIP.write(tmp_path, model, dtype)
    rounded = OPEN_CLIP.rounded(model.params, dtype)
    assert OPEN_CLIP.read_back is not None
    assert differing_params(rounded, OPEN_CLIP.read_back(tmp_path)) == []
    assert differing_params(rounded, model.params) != []
    kernel = open_clip.create_model(f"local-dir:{tmp_path}").visual.conv1.weight.detach().numpy()
    np.testing.assert_array_equal(kernel.transpose(2, 3, 1, 0), rounded["vision"]["patch_embedding"]["kernel"])


def test_open_clips_transform_is_the_preprocessing(tmp_path: Path) -> None:
    model = dataclasses.replace(bare_model(), preprocessing=Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    write_open_clip(tmp_path, model)
    _, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    rng = np.random.default_rng(0)
    # What is cut off is even: of an odd rest torchvision rounds the half to even, Hugging Face and we down.
    for height, width in ((64, 96), (60, 32), (20, 50), (32, 32), (100, 50)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        ours = normalize_pixels(preprocess_image(image, model.preprocessing), model.preprocessing)
        # 1e-6: torch divides by 255 and normalises in another order of float32 operations.
        np.testing.assert_allclose(transform(image).numpy().transpose(1, 2, 0), ours, rtol=0, atol=1e-6)


def test_an_open_clip_that_cannot_be_imported_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(bare_model())
    broken = tmp_path / "open_clip"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    for name in [name for name in sys.modules if name.split(".")[0] == "open_clip"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConsumerUnusable, match="torchvision::nms does not exist"):
        open_clip_features(tmp_path, inputs)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert open_clip_features(tmp_path, inputs) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-B-32"])
def test_open_clips_vit_b_32_goes_in_and_out(tmp_path: Path, name: str) -> None:
    reference = make_reference(open_clip.get_model_config(name))
    folder = tmp_path / "in"
    folder.mkdir()
    torch.save(reference.state_dict(), folder / "weights.anything")
    activation = "quick_gelu" if name.endswith("-quickgelu") else "gelu"
    model = load_model(folder, activation=activation)
    assert model.config == dataclasses.replace(
        get_preset("ViT-B-32"), activation=activation, text=dataclasses.replace(model.config.text, eot_pooling="argmax")
    )
    inputs = make_inputs(model)
    check_features(model, their_features(reference, inputs), inputs)
    out = tmp_path / "out"
    out.mkdir()
    OPEN_CLIP.write(out, model, "float32")
    again = open_clip.create_model(f"local-dir:{out}").state_dict()
    state = reference.state_dict()
    assert len(state) == 302
    assert [tensor for tensor in state if not torch.equal(state[tensor], again[tensor])] == []
    features = OPEN_CLIP.consumer_features(out, inputs)
    assert features is not None
    check_features(load_model(out), (features.image_features, features.text_features), inputs)
