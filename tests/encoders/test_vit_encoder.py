"""A Hugging Face ViT: parity with transformers' ViTModel, and what is refused."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_models import NO_TORCH

from plip_jax.convert.hf_config import HFConfigError
from plip_jax.convert.names import WeightsError
from plip_jax.convert.safetensors_file import read_safetensors_file, write_safetensors_file
from plip_jax.convert.vit import read_vit
from plip_jax.data.image import normalize_pixels
from plip_jax.encoders.table import open_encoder
from plip_jax.model.vit import ViT

torch = pytest.importorskip("torch", reason=NO_TORCH)
import transformers  # noqa: E402 # behind the skip

SETTINGS = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def make_vit(seed: int = 0, **changes):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(**{**sizes, "image_size": 32, "patch_size": 8, **changes})
    torch.manual_seed(seed)
    model = transformers.ViTModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def model():
    return make_vit()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return folder


def reference_features(model, pixel_values: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        output = model(torch.from_numpy(np.ascontiguousarray(pixel_values.transpose(0, 3, 1, 2))))
    return output.last_hidden_state[:, 0].numpy()


def test_features_are_those_of_transformers(model, folder):
    read = read_vit(folder)
    assert (read.config.activation, read.config.norm_eps, read.weights_file) == ("gelu", 1e-12, "model.safetensors")
    pixels = np.random.default_rng(0).normal(size=(5, 32, 32, 3)).astype(np.float32)
    ours = np.asarray(jax.jit(ViT(read.config).encode_image)(read.params, pixels))
    reference = reference_features(model, pixels)
    assert (ours.shape, ours.dtype) == ((5, 32), np.float32)
    assert np.abs(ours - reference).max() < 1e-5 * np.abs(reference).max()


def test_a_model_with_a_head_in_a_pickle_is_the_same_network(model, folder, tmp_path):
    tensors = read_safetensors_file(folder / "model.safetensors")
    headed = {
        f"vit.{name}": torch.from_numpy(np.array(value)) for name, value in tensors.items() if "pooler" not in name
    }
    torch.save({**headed, "classifier.weight": torch.zeros(3, 32)}, tmp_path / "pytorch_model.bin")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    theirs, ours = read_vit(folder), read_vit(tmp_path)
    assert ours.weights_file == "pytorch_model.bin"
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_the_encoder_from_file_bytes_to_features(model, folder):
    """Pillow's own resize, stretched to the square, is what ViTImageProcessor does."""
    rng = np.random.default_rng(1)
    images = [Image.fromarray(rng.integers(0, 256, (50, 70 - i, 3), np.uint8)) for i in range(3)]
    files = []
    for image in images:
        stream = io.BytesIO()
        image.save(stream, "PNG")
        files.append(stream.getvalue())
    pixels = np.stack([np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)) for image in images])
    reference = reference_features(model, (pixels.astype(np.float32) / 255 - 0.5) / 0.5)
    encoder = open_encoder(f"vit:{folder}", batch_size=8, name="ImageNet ViT")
    features = encoder.encode_images(iter(files), names=("a", "b", "c"))
    assert np.abs(features - reference).max() < 1e-5 * np.abs(reference).max()
    assert (encoder.name, encoder.encode_text, encoder.logit_scale, encoder.normalized) == (
        "ImageNet ViT", None, None, True,
    )  # fmt: skip
    description = encoder.describe()
    assert description["preprocessing"]["fit"] == "stretch"
    assert json.loads(json.dumps(description)) == description
    assert open_encoder(f"vit:{folder}", compute_dtype="bfloat16").key != encoder.key
    assert open_encoder(f"vit:{folder}").key == encoder.key


def test_the_tower_trains_with_the_gradients_of_torch(model, folder):
    tower = open_encoder(f"vit:{folder}", batch_size=8).tower()  # type: ignore[misc] # a ViT has one
    assert (tower.feature_dim, tower.image_size, tower.mean) == (32, 32, (0.5, 0.5, 0.5))
    uint8 = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), np.uint8)
    pixels = normalize_pixels(uint8, tower.settings)
    direction = np.random.default_rng(3).normal(size=(2, 32)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda params: (tower.apply(params, jnp.asarray(pixels)) * direction).sum()))(
        tower.params
    )
    trained = make_vit()
    output = trained(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))))
    (output.last_hidden_state[:, 0] * torch.from_numpy(direction)).sum().backward()
    for layer in range(3):
        names = (f"layers.{layer}.mlp.fc1.weight", f"encoder.layer.{layer}.intermediate.dense.weight")  # 5.x, 4.x
        (weight,) = (parameter for name, parameter in trained.named_parameters() if name in names)
        assert weight.grad is not None
        reference = weight.grad.numpy().T
        difference = np.abs(np.asarray(gradient["blocks"]["mlp"]["fc1"]["kernel"][layer]) - reference).max()
        assert difference < 1e-4 * np.abs(reference).max()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "deit", "expected model_type 'vit', got 'deit'"),
        ("hidden_act", "gelu_new", "expected activation gelu or quick_gelu"),
        ("qkv_bias", False, "expected qkv_bias True"),
        ("num_hidden_layers", "3", "num_hidden_layers: expected a positive integer"),
        ("image_size", 64, "expected images of image_size = 64 pixels"),
    ],
)
def test_what_our_network_does_not_have_is_refused(folder, tmp_path, field, value, message):
    values = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, field: value}))
    (tmp_path / "preprocessor_config.json").write_bytes((folder / "preprocessor_config.json").read_bytes())
    with pytest.raises(HFConfigError, match=message):
        read_vit(tmp_path)


def test_every_tensor_that_does_not_fit_is_listed(folder, tmp_path):
    tensors = dict(read_safetensors_file(folder / "model.safetensors"))
    tensors.pop("layernorm.bias")
    tensors["embeddings.cls_token"] = np.zeros((1, 1, 31), np.float32)
    tensors["distillation_token"] = np.zeros((1, 1, 32), np.float32)
    write_safetensors_file(tmp_path / "model.safetensors", {name: np.array(value) for name, value in tensors.items()})
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(WeightsError, match="3 tensors") as caught:
        read_vit(tmp_path)
    for name in ("missing: layernorm.bias", "embeddings.cls_token: expected float", "extra: distillation_token"):
        assert name in str(caught.value)
