"""Files of weights by their content: types, names, wrappings, sizes from shapes, and what the caller has to say."""

import dataclasses
import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import pytest
from small_models import make_config, make_params, make_tokenizer
from small_vocabulary import write_vocabulary

from plip_jax.convert import weights_file
from plip_jax.convert.hf import differing_params, write_hf
from plip_jax.convert.hf_config import HFConfigError, config_to_hf
from plip_jax.convert.hub import SourceError
from plip_jax.convert.inferred_config import config_from_tensors
from plip_jax.convert.load import load_model
from plip_jax.convert.names import Column, WeightsError, expected_shapes, from_params
from plip_jax.convert.open_clip_config import config_to_open_clip
from plip_jax.convert.safetensors_file import write_safetensors_file
from plip_jax.convert.torch_writer import write_torch_file
from plip_jax.data.image import CLIP_MEAN, Preprocessing
from plip_jax.model.presets import CLIPConfig, TextConfig, VisionConfig, get_preset

Tensors = dict[str, np.ndarray]

COLUMNS: tuple[Column, ...] = ("openai", "hf", "hf_flax")


@functools.cache
def narrow() -> tuple[CLIPConfig, dict[str, Any]]:
    """The narrowest model whose heads need not be said: towers of 256 and 320, one layer and two."""
    tokenizer = make_tokenizer()
    config = CLIPConfig(
        embed_dim=24,
        vision=VisionConfig(image_size=48, patch_size=16, width=256, depth=1, num_heads=4, mlp_dim=96),
        text=TextConfig(
            context_length=16,
            vocab_size=tokenizer.vocab_size,
            width=320,
            depth=2,
            num_heads=5,
            mlp_dim=80,
            eot_token_id=tokenizer.eot_token_id,
            eot_pooling="argmax",
        ),
    )
    return config, make_params(config)


def narrow_tensors(column: Column = "openai") -> Tensors:
    config, params = narrow()
    return from_params(params, config, column)


def write_msgpack(path: Path, tensors: Tensors) -> None:
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = tensor
    path.write_bytes(flax.serialization.msgpack_serialize(tree))


WRITERS: dict[str, Callable[[Path, Tensors], None]] = {
    "torch": write_torch_file,
    "safetensors": write_safetensors_file,
    "msgpack": write_msgpack,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "column"),
    [("torch", "openai"), ("safetensors", "openai"), ("torch", "hf"), ("safetensors", "hf"), ("msgpack", "hf_flax")],
)
def test_a_file_is_known_by_its_content(tmp_path: Path, tokenizer: Path, kind: str, column: Column) -> None:
    config, params = narrow()
    path = tmp_path / "weights.dat"
    WRITERS[kind](path, narrow_tensors(column))
    assert weights_file.detect(path) == kind
    model = load_model(path, tokenizer=tokenizer, activation="quick_gelu")
    assert model.config == config
    assert differing_params(params, model.params) == []
    assert model.preprocessing == Preprocessing(48, CLIP_MEAN)
    assert model.weights_file == "weights.dat"
    assert model.tokenizer.context_length == 16
    # A folder with nothing else in it but a note is that file.
    (tmp_path / "README.md").write_text("weights")
    assert load_model(tmp_path, tokenizer=tokenizer, activation="gelu").config.activation == "gelu"


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model._orig_mod."])
def test_what_trainers_put_before_the_names_is_taken_off(tmp_path: Path, tokenizer: Path, prefix: str) -> None:
    path = tmp_path / "epoch_3.ckpt"
    text_tower = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
    custom_text = {
        f"text.{name}" if name.startswith(text_tower) else name: tensor for name, tensor in narrow_tensors().items()
    }
    write_safetensors_file(path, {prefix + name: tensor for name, tensor in custom_text.items()})
    model = load_model(path, tokenizer=tokenizer, activation="gelu")
    assert differing_params(narrow()[1], model.params) == []


def test_openais_sizes_say_the_activation_and_must_be_true(tmp_path: Path, tokenizer: Path) -> None:
    half = {name: tensor.astype(np.float16) for name, tensor in narrow_tensors().items()}
    vocab_size = make_tokenizer().vocab_size
    sizes = {"input_resolution": 48, "context_length": 16, "vocab_size": vocab_size}
    path = tmp_path / "model.pt"
    write_torch_file(path, half | {name: np.asarray(size, np.int64) for name, size in sizes.items()})
    model = load_model(path, tokenizer=tokenizer)
    assert model.config.activation == "quick_gelu"
    np.testing.assert_array_equal(
        model.params["vision"]["projection"]["kernel"], half["visual.proj"].astype(np.float32)
    )

    with pytest.warns(UserWarning, match=r"model\.pt: the model says quick_gelu, gelu was asked for and is used"):
        assert load_model(path, tokenizer=tokenizer, activation="gelu").config.activation == "gelu"

    write_torch_file(path, half | {name: np.asarray(size + 1, np.int64) for name, size in sizes.items()})
    with pytest.raises(WeightsError, match="input_resolution: the shapes say 48, the file says 49"):
        load_model(path, tokenizer=tokenizer)


def test_a_configuration_beside_openais_archive_must_fit_it(tmp_path: Path, tokenizer: Path) -> None:
    config, _ = narrow()
    sizes = {"input_resolution": 48, "context_length": 16, "vocab_size": config.text.vocab_size}
    path = tmp_path / "model.pt"
    write_torch_file(path, narrow_tensors() | {name: np.asarray(size, np.int64) for name, size in sizes.items()})
    values = config_to_open_clip(config, last_token_id=config.text.eot_token_id)
    beside = tmp_path / "open_clip_config.json"
    beside.write_text(json.dumps({"model_cfg": values}))
    assert load_model(path, tokenizer=tokenizer).config.activation == "quick_gelu"
    beside.write_text(json.dumps({"model_cfg": {**values, "quick_gelu": False}}))
    with pytest.warns(UserWarning, match="says quick_gelu, the configuration beside it says gelu and is used"):
        assert load_model(path, tokenizer=tokenizer).config.activation == "gelu"
    beside.write_text(json.dumps({"model_cfg": {**values, "vision_cfg": {**values["vision_cfg"], "image_size": 64}}}))
    with pytest.raises(WeightsError, match="input_resolution: the configuration beside it says 64, the file says 48"):
        load_model(path, tokenizer=tokenizer)


def test_without_a_word_on_the_activation_the_caller_must_say_it(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "pathgenclip.pt"
    write_torch_file(path, narrow_tensors())
    with pytest.raises(SourceError, match=r"pass activation='quick_gelu' or 'gelu' \(--activation\).*PathGen-CLIP"):
        load_model(path, tokenizer=tokenizer)


def test_known_buffers_and_the_bias_of_siglips_loss_are_no_strangers(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "weights.pt"
    others = {
        "logit_bias": np.full((1,), -9.5, np.float32),
        "transformer.resblocks.0.attn_mask": np.zeros((16, 16), np.float32),
    }
    write_torch_file(path, narrow_tensors() | others)
    model = load_model(path, tokenizer=tokenizer, activation="gelu")
    assert model.params["logit_bias"].shape == ()
    assert model.params["logit_bias"] == -9.5
    write_torch_file(path, narrow_tensors() | {"logit_bias": np.zeros(2, np.float32)})
    with pytest.raises(WeightsError, match=r"extra: logit_bias \(2,\)"):
        load_model(path, tokenizer=tokenizer, activation="gelu")


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"])
def test_the_published_sizes_follow_from_their_shapes(name: str, column: Column) -> None:
    preset = get_preset(name)
    shapes = expected_shapes(preset, column).items()
    tensors = {tensor: np.broadcast_to(np.float32(0), shape) for tensor, shape in shapes}  # no memory
    expected = dataclasses.replace(preset, text=dataclasses.replace(preset.text, eot_pooling="argmax"))
    assert config_from_tensors(tensors, column, activation="quick_gelu", where="a file") == expected


def test_shapes_that_do_not_say_the_sizes_are_refused() -> None:
    def attempt(**changes: tuple[int, ...]) -> None:
        names = {"conv": "visual.conv1.weight", "positions": "visual.positional_embedding"}
        names |= {"text": "positional_embedding", "tokens": "token_embedding.weight"}
        changed = {names[name]: np.zeros(shape, np.float32) for name, shape in changes.items()}
        config_from_tensors(narrow_tensors() | changed, "openai", activation="gelu", where="a file")

    attempt()
    with pytest.raises(WeightsError, match="a square of square patches, got 3 channels and 10 patches of 16 x 16"):
        attempt(positions=(11, 256))
    with pytest.raises(WeightsError, match="9 patches of 16 x 8"):
        attempt(conv=(256, 3, 16, 8))
    with pytest.raises(WeightsError, match="got 1 channels"):
        attempt(conv=(256, 1, 16, 16))
    with pytest.raises(WeightsError, match=r"expected token_embedding\.weight of 2 dimensions, got the shape \(5,\)"):
        attempt(tokens=(5,))
    # A tower of 128 has 4 heads here and 2 there, and ViT-H's 1,280 has heads of 80: not to be guessed.
    for width in (128, 300, 1280):
        with pytest.raises(SourceError, match=rf"number of heads of a vision tower {width} wide is not known"):
            attempt(conv=(width, 3, 16, 16))
    with pytest.raises(SourceError, match="number of heads of a text tower 32 wide"):
        attempt(text=(16, 32))


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["logit_scale", "visual.layer1.0.conv1.weight"], "a ResNet image tower"),
        (["logit_scale", "visual.trunk.blocks.0.attn.qkv.weight", "text.transformer.embeddings.word_embeddings.weight"],
         "an image tower of timm and a text tower of transformers"),
        (["logit_scale", "spam"], "tensors such as logit_scale, spam"),
        (["visual.proj"], "expected the weights of one CLIP, with one logit_scale, got 0"),
        (["model.logit_scale", "ema.logit_scale"], "with one logit_scale, got 2"),
        (["module.logit_scale", "module.visual.proj", "visual.proj"], "two tensors of one name"),
    ],
)  # fmt: skip
def test_other_networks_are_refused_by_name(tmp_path: Path, names: list[str], kind: str) -> None:
    write_torch_file(tmp_path / "w.pt", {name: np.zeros((2, 2), np.float32) for name in names})
    with pytest.raises(WeightsError, match=kind):
        load_model(tmp_path / "w.pt", activation="gelu")


def test_a_missing_and_a_foreign_tensor_are_listed(tmp_path: Path, tokenizer: Path) -> None:
    tensors = narrow_tensors()
    del tensors["ln_final.bias"]
    tensors["visual.transformer.resblocks.0.ls_1.gamma"] = np.zeros(256, np.float32)
    write_torch_file(tmp_path / "w.pt", tensors)
    with pytest.raises(WeightsError, match=r"(?s)missing: ln_final\.bias.*extra: visual\.\S*ls_1\.gamma"):
        load_model(tmp_path / "w.pt", tokenizer=tokenizer, activation="gelu")


@pytest.mark.parametrize(
    "data", [b"", b"spam", b"\x89HDF\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0", b"PK\x05\x06" + bytes(18), b"{}", b'{"a": 1}']
)
def test_a_file_of_something_else_is_said_to_be_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(SourceError, match=r"or a file of weights .* got a file that begins"):
        load_model(tmp_path / "model.safetensors")


def test_a_damaged_or_old_torch_file_is_said_to_be_damaged(tmp_path: Path) -> None:
    write_torch_file(tmp_path / "w.pt", {"logit_scale": np.zeros((), np.float32)})
    data = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="damaged torch archive"):
        load_model(tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")  # how torch began a file before 1.6
    with pytest.raises(WeightsError, match=r"since PyTorch 1\.6"):
        load_model(tmp_path / "w.pt")


def save_hf(folder: Path) -> tuple[CLIPConfig, dict[str, Any]]:
    config = make_config(activation="gelu")
    params = make_params(config)
    write_hf(folder, config, params, make_tokenizer(), Preprocessing(32, (0.1, 0.2, 0.3)))
    return config, params


def test_a_configuration_beside_the_file_is_used(tmp_path: Path) -> None:
    config, params = save_hf(tmp_path)
    model = load_model(tmp_path / "model.safetensors")
    assert (model.config, model.preprocessing.mean) == (config, (0.1, 0.2, 0.3))
    assert differing_params(params, model.params) == []
    values = json.loads((tmp_path / "config.json").read_text())
    values["text_config"]["eos_token_id"] = 2  # the legacy id: pooling at the largest, which the tokenizer names
    (tmp_path / "config.json").write_text(json.dumps(values))
    text = load_model(tmp_path / "model.safetensors").config.text
    assert (text.eot_pooling, text.eot_token_id) == ("argmax", make_tokenizer().eot_token_id)


def test_a_configuration_without_image_settings_is_refused_however_it_is_read(tmp_path: Path, tokenizer: Path) -> None:
    save_hf(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    sources = ((tmp_path, None), (tmp_path, tokenizer), (tmp_path / "model.safetensors", None))
    for source, given in sources:
        with pytest.raises(HFConfigError, match=r'got neither; fetch preprocessor_config.json .*\{"size": N, "crop_'):
            load_model(source, tokenizer=given)
    (tmp_path / "preprocessor_config.json").write_text('{"size": 32, "crop_size": 32}')
    for source, given in sources:
        assert load_model(source, tokenizer=given).preprocessing == Preprocessing(32)


def test_a_list_of_shards_is_a_file_of_weights(tmp_path: Path) -> None:
    config, params = save_hf(tmp_path)
    tensors = from_params(params, config, "hf")
    (tmp_path / "model.safetensors").unlink()
    write_safetensors_file(tmp_path / "part.safetensors", tensors)
    index = tmp_path / "list.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "part.safetensors")}))
    assert differing_params(params, load_model(index).params) == []


def test_an_activation_that_is_asked_for_wins_over_the_files_with_a_warning(tmp_path: Path) -> None:
    save_hf(tmp_path)
    for source in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.warns(UserWarning, match="says gelu, quick_gelu was asked for"):
            assert load_model(source, activation="quick_gelu").config.activation == "quick_gelu"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_model(source, activation="gelu")


def test_a_tokenizer_that_is_asked_for_wins_over_the_files_beside(tmp_path: Path) -> None:
    save_hf(tmp_path / "model")
    given = tmp_path / "tokenizer"
    make_tokenizer(10).save(given)  # its own context length gives way to the model's
    model = load_model(tmp_path / "model", tokenizer=given)
    assert model.tokenizer.folder == given
    assert model.tokenizer.context_length == 16
    for path in (tmp_path / "model").glob("*token*"):
        path.unlink()
    (tmp_path / "model" / "vocab.json").unlink()
    with pytest.raises(SourceError, match=r"a vocabulary of 560 with a context of 16 is not CLIP's own.*--tokenizer"):
        load_model(tmp_path / "model" / "model.safetensors")
    write_vocabulary(tmp_path / "vocabulary")
    with pytest.raises(SourceError, match="expected a tokenizer of at most 560 tokens, got 49408"):
        load_model(tmp_path / "model", tokenizer=tmp_path / "vocabulary")


def test_clips_own_vocabulary_is_found_where_it_is_installed_and_only_then_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(77)
    config = dataclasses.replace(
        config, text=dataclasses.replace(config.text, vocab_size=49408, eot_token_id=49407, context_length=77)
    )
    write_hf_without_tokenizer(tmp_path / "model", config)
    installed = write_vocabulary(tmp_path / "site-packages" / "open_clip")
    monkeypatch.setattr(weights_file, "find_installed", lambda: installed)
    model = load_model(tmp_path / "model" / "model.safetensors")
    assert (model.tokenizer.folder, model.tokenizer.eot_token_id) == (installed, 49407)
    monkeypatch.setattr(weights_file, "find_installed", lambda: None)
    with pytest.raises(SourceError, match=r"neither in an installed open_clip or clip nor on the hub.*pass tokenizer="):
        load_model(tmp_path / "model" / "model.safetensors")  # HF_HUB_OFFLINE=1: tests/conftest.py


def write_hf_without_tokenizer(folder: Path, config: CLIPConfig) -> None:
    folder.mkdir()
    values = config_to_hf(config, last_token_id=49407, bos_token_id=49406, pad_token_id=49407)
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "preprocessor_config.json").write_text('{"size": 32, "crop_size": 32}')
    write_safetensors_file(folder / "model.safetensors", from_params(make_params(config), config, "hf"))
