"""OpenAI's format: archives that torch scripts are read, and what is written is loaded by open_clip."""

import dataclasses
import functools
import re
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import NO_TORCH, make_model, make_params, make_tokenizer

from plip_jax.convert.export_format import ConsumerUnusable, ExportError, ParityInputs
from plip_jax.convert.hf import differing_params
from plip_jax.convert.load import LoadedModel, hash_params, load_model
from plip_jax.convert.names import flatten
from plip_jax.convert.openai import OPENAI
from plip_jax.convert.torch_file import read_torch_file
from plip_jax.data.image import Preprocessing
from plip_jax.model import clip
from plip_jax.model.presets import CLIPConfig, TextConfig, VisionConfig, get_preset

# Heads of 64 features, which is what OpenAI's loaders take for granted.
SMALL = CLIPConfig(
    embed_dim=24,
    vision=VisionConfig(image_size=32, patch_size=16, width=256, depth=2, num_heads=4, mlp_dim=1024),
    text=TextConfig(
        context_length=16,
        vocab_size=make_tokenizer().vocab_size,
        width=320,
        depth=1,
        num_heads=5,
        mlp_dim=1280,
        eot_token_id=make_tokenizer().vocab_size - 1,
        eot_pooling="argmax",
    ),
)


@functools.cache
def small_model() -> LoadedModel:
    params = make_params(SMALL)
    preprocessing = Preprocessing(image_size=32)
    return LoadedModel(SMALL, params, make_tokenizer(), preprocessing, "made in a test", "none", hash_params(params))


def our_features(config: CLIPConfig, params: Any, images: np.ndarray, tokens: np.ndarray) -> tuple[Any, Any]:
    encoders, params = clip.build(config), jax.tree.map(jnp.asarray, params)
    image_features = encoders.encode_image(params, jnp.asarray(images))
    return np.asarray(image_features), np.asarray(encoders.encode_text(params, jnp.asarray(tokens)))


def assert_close(ours: Any, theirs: Any) -> None:
    """Within the project's tolerance of a feature, relative to the largest value."""
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(
    ("how", "half", "sizes_as_tensors"), [("script", True, False), ("trace", True, True), ("trace", False, False)]
)
def test_an_archive_scripted_by_torch(
    tmp_path: Path, how: Literal["script", "trace"], half: bool, sizes_as_tensors: bool
) -> None:
    pytest.importorskip("torch", reason=NO_TORCH)
    _check_archive(tmp_path / "clip.pt", SMALL, how, half=half, sizes_as_tensors=sizes_as_tensors)


@pytest.mark.slow
@pytest.mark.parametrize("half", [True, False])
def test_an_archive_of_the_published_size(tmp_path: Path, half: bool) -> None:
    pytest.importorskip("torch", reason=NO_TORCH)
    preset = get_preset("ViT-B-32")
    config = dataclasses.replace(preset, text=dataclasses.replace(preset.text, eot_pooling="argmax"))
    _check_archive(tmp_path / "ViT-B-32.pt", config, "trace", half=half, sizes_as_tensors=True)


def _check_archive(
    path: Path, config: CLIPConfig, how: Literal["script", "trace"], *, half: bool, sizes_as_tensors: bool
) -> None:
    import openai_clip

    model = openai_clip.OpenAIClip(config, sizes_as_tensors=sizes_as_tensors)
    openai_clip.save_archive(path, model, config, how, half)
    if half:
        openai_clip.halve(model)
    archived = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    tensors = read_torch_file(path)
    for name, tensor in archived.items():
        assert tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)
    sizes = {
        "input_resolution": config.vision.image_size,
        "context_length": config.text.context_length,
        "vocab_size": config.text.vocab_size,
    }
    held = {name: tensors[name].tolist() for name in sizes if name in tensors}
    # torch.jit.trace leaves numbers out.
    assert held == (sizes if how == "script" or sizes_as_tensors else {})
    others = tensors.keys() - archived.keys() - sizes.keys()
    assert all(name.endswith(".attn_mask") for name in others)
    make_tokenizer(config.text.context_length).save(path.parent)
    # With OpenAI's sizes in it, the file says its activation by being OpenAI's.
    read = load_model(path) if held else load_model(path, activation="quick_gelu")
    text = dataclasses.replace(config.text, eot_token_id=make_tokenizer().eot_token_id)  # argmax pooling reads none
    assert read.config == dataclasses.replace(config, text=text)
    images, tokens = openai_clip.make_inputs(config)
    theirs = openai_clip.torch_features(model.float(), images, tokens)
    assert_close(our_features(config, read.params, images, tokens), theirs)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_open_clip_loads_what_is_written(tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("open_clip", reason="the reader of OpenAI's format that the tests can have")
    import openai_clip

    model = small_model()
    OPENAI.write(tmp_path, model, dtype)
    images, tokens = openai_clip.make_inputs(SMALL)
    theirs = OPENAI.consumer_features(tmp_path, ParityInputs(images, tokens))
    assert theirs is not None
    assert re.match(r"open_clip_torch \d.*, torch \d", theirs.library)
    ours = our_features(SMALL, OPENAI.rounded(model.params, dtype), images, tokens)
    assert_close(ours, (theirs.image_features, theirs.text_features))
    # Not ours unrounded: the loader rounds, as `rounded` says.
    unrounded = our_features(SMALL, model.params, images, tokens)
    assert np.abs(unrounded[0] - theirs.image_features).max() > 1e-5 * np.abs(theirs.image_features).max()


@pytest.mark.slow
def test_a_model_that_open_clip_made(tmp_path: Path) -> None:
    """Random ViT-B/32 of open_clip's own -> its state dict -> ours -> OpenAI's file -> open_clip."""
    pytest.importorskip("open_clip", reason="the reader of OpenAI's format that the tests can have")
    import open_clip
    import openai_clip
    import torch

    tokenizer = make_tokenizer(77)
    torch.manual_seed(0)
    reference = open_clip.model.CLIP(
        512,
        open_clip.model.CLIPVisionCfg(layers=12, width=768, patch_size=32, image_size=224),
        open_clip.model.CLIPTextCfg(context_length=77, vocab_size=tokenizer.vocab_size, width=512, heads=8, layers=12),
        quick_gelu=True,
    ).eval()
    tokenizer.save(tmp_path)
    torch.save(reference.state_dict(), tmp_path / "random.pt")
    model = load_model(tmp_path / "random.pt", activation="quick_gelu")
    OPENAI.write(tmp_path / "out", model, "float32")
    written = read_torch_file(tmp_path / "out" / "model.pt")
    for name, tensor in reference.state_dict().items():
        np.testing.assert_array_equal(written[name], tensor.numpy(), err_msg=name)

    images, tokens = openai_clip.make_inputs(model.config)
    theirs = OPENAI.consumer_features(tmp_path / "out", ParityInputs(images, tokens))
    assert theirs is not None
    # What open_clip itself makes of its model where it loads it in OpenAI's way.
    open_clip.model.convert_weights_to_fp16(reference)
    with torch.no_grad():
        reference.float()
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        expected = (
            reference.encode_image(pixels).numpy(),
            reference.encode_text(torch.from_numpy(tokens).long()).numpy(),
        )
    assert_close((theirs.image_features, theirs.text_features), expected)
    rounded = OPENAI.rounded(model.params, "float32")
    assert_close(our_features(model.config, rounded, images, tokens), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_weights_are_read_back(tmp_path: Path, dtype: str) -> None:
    model = small_model()
    OPENAI.write(tmp_path, model, dtype)
    read = load_model(tmp_path / "model.pt")
    assert read.config == SMALL
    assert read.tokenizer.fingerprint == model.tokenizer.fingerprint
    written, ours = flatten(read.params), flatten(model.params)
    for path, value in ours.items():
        np.testing.assert_array_equal(written[path], value.astype(dtype).astype(np.float32), err_msg=path)
    assert OPENAI.read_back is not None
    assert differing_params(OPENAI.read_back(tmp_path), read.params) == []
    tensors = read_torch_file(tmp_path / "model.pt")
    assert tensors["visual.proj"].dtype == tensors["visual.ln_pre.weight"].dtype == dtype
    assert [tensors[name].dtype for name in ("input_resolution", "context_length", "vocab_size")] == [np.int64] * 3
    assert (tmp_path / "tokenizer.json").is_file()


def test_what_the_format_cannot_say_is_listed(tmp_path: Path) -> None:
    model = small_model()
    text = dataclasses.replace(SMALL.text, num_heads=10, eot_token_id=3, mlp_dim=64)
    config = dataclasses.replace(SMALL, activation="gelu", norm_eps=1e-6, text=text)
    preprocessing = Preprocessing(image_size=64, mean=(0.5, 0.5, 0.5))
    with pytest.raises(ExportError) as raised:
        OPENAI.write(tmp_path, dataclasses.replace(model, config=config, preprocessing=preprocessing), "float32")
    for fault in (
        "activation: expected quick_gelu, got gelu",
        "norm_eps: expected 1e-05, got 1e-06",
        "text.eot_token_id (the largest id, where argmax pools): expected 559, got 3",
        "text.num_heads (of 64 features): expected 5.0, got 10",
        "text.mlp_dim: expected 1280, got 64",
        "preprocessing.image_size: expected 32, got 64",
        "preprocessing.mean",
    ):
        assert fault in str(raised.value)
    assert "vision" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_table_with_more_rows_than_the_vocabulary_is_written(tmp_path: Path) -> None:
    text = dataclasses.replace(SMALL.text, vocab_size=SMALL.text.vocab_size + 8)
    config = dataclasses.replace(SMALL, text=text)
    OPENAI.write(tmp_path, dataclasses.replace(small_model(), config=config, params=make_params(config)), "float32")
    assert load_model(tmp_path / "model.pt").config == config


def test_the_tiny_model_is_refused_for_its_heads(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"vision.num_heads \(of 64 features\): expected 0.5, got 2"):
        OPENAI.write(tmp_path, make_model(), "float32")


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    model = small_model()
    projection = model.params["text"]["projection"]["kernel"].copy()
    projection[0, 0] = 70000
    params = model.params | {"text": model.params["text"] | {"projection": {"kernel": projection}}}
    with pytest.raises(ExportError, match="text/projection/kernel: values up to 7e\\+04, beyond float16"):
        OPENAI.write(tmp_path, dataclasses.replace(model, params=params), "float32")


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="float32 or float16, got 'bfloat16'"):
        OPENAI.write(tmp_path, small_model(), "bfloat16")


def test_siglips_bias_is_left_out_with_a_warning(tmp_path: Path) -> None:
    model = small_model()
    with_bias = dataclasses.replace(model, params=model.params | {"logit_bias": np.float32(-10)})
    with pytest.warns(UserWarning, match=r"no place for SigLIP's logit_bias \(-10\)"):
        OPENAI.write(tmp_path, with_bias, "float32")
    assert "logit_bias" not in read_torch_file(tmp_path / "model.pt")


def test_without_open_clip_there_is_nothing_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    inputs = ParityInputs(np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 16), np.int32))
    assert OPENAI.consumer_features(tmp_path, inputs) is None


def test_an_open_clip_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "open_clip" / "__init__.py"
    broken.parent.mkdir()
    broken.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    inputs = ParityInputs(np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 16), np.int32))
    with pytest.raises(ConsumerUnusable, match="RuntimeError: operator torchvision::nms"):
        OPENAI.consumer_features(tmp_path, inputs)
