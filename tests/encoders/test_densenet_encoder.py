"""DenseNets from torch state dicts: parity with the same network in torch, names old and new, what is refused."""

import io
import json
import re
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_models import NO_TORCH

from plip_jax.convert.densenet import densenet_model, read_densenet
from plip_jax.convert.names import WeightsError
from plip_jax.convert.safetensors_file import write_safetensors_file
from plip_jax.encoders.table import open_encoder
from plip_jax.model import densenet

torch = pytest.importorskip("torch", reason=NO_TORCH)
from torch import nn  # noqa: E402 # behind the skip

LAYERS, GROWTH, STEM, BOTTLENECK = (2, 3), 4, 8, 16


class Layer(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(features), nn.BatchNorm2d(BOTTLENECK)
        self.conv1 = nn.Conv2d(features, BOTTLENECK, 1, bias=False)
        self.conv2 = nn.Conv2d(BOTTLENECK, GROWTH, 3, padding=1, bias=False)

    def forward(self, x):
        added = self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))
        return torch.cat([x, added], 1)


class Reference(nn.Module):
    """The published network (Huang et al. 2017) with torchvision's names of modules, two blocks deep."""

    def __init__(self):
        super().__init__()
        parts = OrderedDict(
            conv0=nn.Conv2d(3, STEM, 7, stride=2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(STEM),
            relu0=nn.ReLU(),
            pool0=nn.MaxPool2d(3, stride=2, padding=1),
        )
        features = STEM
        for block, count in enumerate(LAYERS, 1):
            layers = [(f"denselayer{i + 1}", Layer(features + i * GROWTH)) for i in range(count)]
            parts[f"denseblock{block}"] = nn.Sequential(OrderedDict(layers))
            features += count * GROWTH
            if block < len(LAYERS):
                transition = OrderedDict(
                    norm=nn.BatchNorm2d(features),
                    relu=nn.ReLU(),
                    conv=nn.Conv2d(features, features // 2, 1, bias=False),
                    pool=nn.AvgPool2d(2, stride=2),
                )
                parts[f"transition{block}"] = nn.Sequential(transition)
                features //= 2
        parts["norm5"] = nn.BatchNorm2d(features)
        self.features = nn.Sequential(parts)
        self.classifier = nn.Linear(features, 3)

    def forward(self, x):
        return torch.relu(self.features(x)).mean(dim=(2, 3))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Reference().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.normal_(1 if name.endswith("weight") else 0, 0.3)
    return model


def reference_features(model, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))).numpy()


def numpy_state(model) -> dict[str, np.ndarray]:
    return {name: np.array(tensor.numpy()) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("side", [64, 50])  # 50: 13 rows before the transition, of which the odd one is left out
def test_features_are_those_of_torch(model, tmp_path, side):
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    read = read_densenet(tmp_path / "weights.pth")
    assert read.config == densenet.DenseNetConfig(STEM, GROWTH, LAYERS, BOTTLENECK)
    pixels = np.random.default_rng(0).normal(size=(3, side, side, 3)).astype(np.float32)
    ours = np.asarray(jax.jit(densenet.DenseNet(read.config).encode_image)(read.params, pixels))
    reference = reference_features(model, pixels)
    assert (ours.shape, ours.dtype) == ((3, 20), np.float32)  # (8 + 2 * 4) / 2 + 3 * 4
    assert np.abs(ours - reference).max() < 1e-5 * np.abs(reference).max()


def test_the_published_size_has_the_published_number_of_weights():
    """7,978,856 with the classifier of 1,000 classes (torchvision's table), which is 1,025,000 of them."""
    sizes = {path: np.prod(shape) for path, shape in densenet.shapes(densenet.DENSENET_121).items()}
    assert sum(size for path, size in sizes.items() if not path.endswith(("/mean", "/variance"))) == 6_953_856
    assert densenet.DENSENET_121.feature_dim == 1024


def test_names_of_wrappers_and_of_old_versions_are_the_same_network(model, tmp_path):
    state = numpy_state(model)
    expected = densenet_model(state, where="made here")
    old = {
        "module.model." + re.sub(r"(denselayer\d+\.)(norm|conv)([12])", r"\1\2.\3", name): value
        for name, value in state.items()
        if "num_batches_tracked" not in name and "classifier" not in name
    }
    assert "module.model.features.denseblock1.denselayer1.norm.1.weight" in old
    write_safetensors_file(tmp_path / "old.safetensors", old)
    read = read_densenet(tmp_path / "old.safetensors")
    assert read.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, read.params, expected.params)


def test_the_encoder_from_file_bytes_to_features_that_are_not_normalised(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "mudipath.pth")
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 280, 3), np.uint8))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    resized = image.resize((224, 240), Image.Resampling.BILINEAR).crop((0, 8, 224, 232))
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    pixels = (np.asarray(resized, np.float32) / 255 - mean) / std
    reference = reference_features(model, pixels[None])
    encoder = open_encoder(f"densenet:{tmp_path / 'mudipath.pth'}", batch_size=8)
    features = encoder.encode_images([stream.getvalue()], names=("a",))
    assert np.abs(features - reference).max() < 1e-5 * np.abs(reference).max()
    assert (encoder.name, encoder.normalized, encoder.encode_text) == ("mudipath", False, None)
    assert json.loads(json.dumps(encoder.describe())) == encoder.describe()


def test_the_towers_weights_are_trained_and_its_statistics_are_not(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    tower = open_encoder(f"densenet:{tmp_path / 'weights.pth'}", batch_size=8).tower()  # type: ignore[misc] # it has one
    assert tower.feature_dim == 20
    assert set(tower.params["stem_norm"]) == {"scale", "bias"}
    pixels = np.random.default_rng(2).normal(size=(2, 64, 64, 3)).astype(np.float32)
    direction = np.random.default_rng(3).normal(size=(2, 20)).astype(np.float32)

    def objective(params):
        return (tower.apply(params, jnp.asarray(pixels)) * direction).sum()

    gradient = jax.jit(jax.grad(objective))(tower.params)
    trained = Reference().eval()
    trained.load_state_dict(model.state_dict())
    output = trained(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))))
    (output * torch.from_numpy(direction)).sum().backward()
    for ours, theirs in (
        (gradient["stem"]["kernel"], trained.features.conv0.weight.grad.permute(2, 3, 1, 0)),
        (gradient["block1"]["layer2"]["norm1"]["scale"], trained.features.denseblock2.denselayer3.norm1.weight.grad),
    ):
        assert np.abs(np.asarray(ours) - theirs.numpy()).max() < 1e-4 * np.abs(theirs.numpy()).max()


def test_bfloat16_compute_is_near_and_not_the_same(model):
    read = densenet_model(numpy_state(model), where="made here")
    pixels = np.random.default_rng(4).normal(size=(2, 64, 64, 3)).astype(np.float32)
    exact, rough = (
        np.asarray(jax.jit(densenet.DenseNet(read.config, dtype).encode_image)(read.params, pixels))
        for dtype in ("float32", "bfloat16")
    )
    # bfloat16 keeps 8 bits: 2^-9 a rounding, of operands and results of 12 convolutions.
    assert 1e-5 < np.abs(rough - exact).max() / np.abs(exact).max() < 5e-2


def test_what_is_no_densenet_is_refused_with_every_tensor_that_does_not_fit(model, tmp_path):
    state = numpy_state(model)
    state.pop("features.denseblock2.denselayer2.norm2.running_var")
    state["features.conv0.weight"] = state["features.conv0.weight"][:, :, :5]
    state["features.extra"] = np.zeros(3, np.float32)
    with pytest.raises(WeightsError, match="3 tensors") as caught:
        densenet_model(state, where="made here")
    for text in ("missing: denseblock2.denselayer2.norm2.running_var", "conv0.weight: expected float", "extra: extra"):
        assert text in str(caught.value)
    with pytest.raises(WeightsError, match="of torchvision's DenseNet"):
        densenet_model({"layer1.weight": np.zeros(3)}, where="made here")
    with pytest.raises(WeightsError, match="expected a file"):
        open_encoder(f"densenet:{tmp_path}")
