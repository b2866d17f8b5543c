"""A DenseNet over a nested dict of float32 parameters, for inference and fine-tuning (Huang et al. 2017).

Batch norms use their stored statistics, in training too: they are of the data the network was pre-trained on, and are
no parameters. Features are the mean over the map behind the last norm and ReLU.

The layout is torchvision's (``torchvision/models/densenet.py``): stem of 7 x 7 with stride 2 and a max pool; blocks of
layers norm, ReLU, 1 x 1, norm, ReLU, 3 x 3; halving transitions between them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plip_jax.model.clip import COMPUTE_DTYPES

Params = dict[str, Any]

_NORM_EPS = 1e-5  # torch.nn.BatchNorm2d's default, which torchvision keeps


@dataclasses.dataclass(frozen=True)
class DenseNetConfig:
    """Sizes.

    Attributes:
        stem: features behind the first convolution.
        growth: features that each layer adds.
        layers: layers of each block.
        bottleneck: features between the two convolutions of a layer.
    """

    stem: int
    growth: int
    layers: tuple[int, ...]
    bottleneck: int

    @property
    def feature_dim(self) -> int:
        """Features of an image."""
        features = self.stem
        for block, count in enumerate(self.layers):
            features += count * self.growth
            features = features if block == len(self.layers) - 1 else features // 2
        return features


DENSENET_121 = DenseNetConfig(stem=64, growth=32, layers=(6, 12, 24, 16), bottleneck=128)
"""Layers of the published size, and of MuDiPath (Mormont et al. 2020)."""


def shapes(config: DenseNetConfig) -> dict[str, tuple[int, ...]]:
    """Path and shape of every tensor, joined by ``/``; kernels [height, width, in, out], statistics among them."""
    found: dict[str, tuple[int, ...]] = {}

    def norm(path: str, features: int) -> None:
        found.update({f"{path}/{name}": (features,) for name in ("scale", "bias", "mean", "variance")})

    found["stem/kernel"] = (7, 7, 3, config.stem)
    norm("stem_norm", config.stem)
    features = config.stem
    for block, count in enumerate(config.layers):
        for layer in range(count):
            path = f"block{block}/layer{layer}"
            norm(f"{path}/norm1", features)
            found[f"{path}/conv1/kernel"] = (1, 1, features, config.bottleneck)
            norm(f"{path}/norm2", config.bottleneck)
            found[f"{path}/conv2/kernel"] = (3, 3, config.bottleneck, config.growth)
            features += config.growth
        if block < len(config.layers) - 1:
            norm(f"transition{block}/norm", features)
            found[f"transition{block}/conv/kernel"] = (1, 1, features, features // 2)
            features //= 2
    norm("final_norm", features)
    return found


def split_statistics(params: Params) -> tuple[Params, Params]:
    """What is trained, and the batch norms' statistics: two trees of which `join_statistics` makes one again."""
    trained: Params = {}
    statistics: Params = {}
    for name, value in params.items():
        if isinstance(value, dict):
            below = split_statistics(value)
            for tree, part in zip((trained, statistics), below, strict=True):
                if part:
                    tree[name] = part
        else:
            (statistics if name in ("mean", "variance") else trained)[name] = value
    return trained, statistics


def join_statistics(trained: Params, statistics: Params) -> Params:
    """Inverse of `split_statistics`."""
    joined = dict(trained)
    for name, value in statistics.items():
        joined[name] = join_statistics(trained.get(name, {}), value) if isinstance(value, dict) else value
    return joined


@dataclasses.dataclass(frozen=True)
class DenseNet:
    """The pure function of one configuration; parameters are passed in and never kept.

    Attributes:
        config: sizes.
        compute_dtype: operands of the convolutions, ``float32`` or ``bfloat16``.
    """

    config: DenseNetConfig
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(f"compute_dtype: expected one of {', '.join(COMPUTE_DTYPES)}, got {self.compute_dtype!r}")

    def encode_image(
        self, params: Params, pixel_values: Float[Array, "batch side side 3"]
    ) -> Float[Array, "batch features"]:
        """Features of each image, float32, from pixels already scaled and normalised; any side of 32 or more."""
        x = self._convolve(pixel_values, params["stem"], stride=2)
        x = _max_pool(_norm_relu(x, params["stem_norm"]))
        for block, count in enumerate(self.config.layers):
            for layer in range(count):
                x = jnp.concatenate([x, self._layer(x, params[f"block{block}"][f"layer{layer}"])], axis=-1)
            if block < len(self.config.layers) - 1:
                transition = params[f"transition{block}"]
                x = _halved(self._convolve(_norm_relu(x, transition["norm"]), transition["conv"]))
        return _norm_relu(x, params["final_norm"]).mean(axis=(1, 2))

    def _layer(self, x: Array, params: Params) -> Array:
        x = self._convolve(_norm_relu(x, params["norm1"]), params["conv1"])
        return self._convolve(_norm_relu(x, params["norm2"]), params["conv2"])

    def _convolve(self, x: Array, params: Params, stride: int = 1) -> Array:
        kernel = params["kernel"]
        margin = kernel.shape[0] // 2
        # Both operands in one dtype and the result too: the transpose of a mixed convolution, its gradient, is refused.
        exact = self.compute_dtype == "float32"
        return jax.lax.conv_general_dilated(
            x.astype(self.compute_dtype),
            jnp.asarray(kernel, self.compute_dtype),
            (stride, stride),
            [(margin, margin)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        ).astype(jnp.float32)


def _norm_relu(x: Array, params: Params) -> Array:
    factor = params["scale"] * jax.lax.rsqrt(params["variance"] + _NORM_EPS)
    return jax.nn.relu((x - params["mean"]) * factor + params["bias"])


def _max_pool(x: Array) -> Array:
    """Maximum over 3 x 3 with stride 2; the padding never wins."""
    padding = [(0, 0), (1, 1), (1, 1), (0, 0)]
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def _halved(x: Array) -> Array:
    """Mean over 2 x 2; an odd last row or column is left out, as torch does."""
    batch, height, width, features = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, features).mean(axis=(2, 4))
