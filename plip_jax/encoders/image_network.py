"""Image networks without a text tower, as encoders: an ImageNet ViT, and DenseNets such as MuDiPath."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from plip_jax.batching import Batcher
from plip_jax.convert.densenet import read_densenet
from plip_jax.convert.hub import hub_folder
from plip_jax.convert.load import hash_params
from plip_jax.convert.vit import VIT_FILES, VIT_WEIGHTS_FILES, read_vit
from plip_jax.data.image import normalize_pixels
from plip_jax.data.image_settings import ImageSettings, prepare_image
from plip_jax.encoders.baseline import OpenOptions, Tower, hash_key
from plip_jax.model import densenet
from plip_jax.model.vit import ViT

IMAGENET_SETTINGS = ImageSettings(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", "crop")
"""What torchvision's DenseNets and MuDiPath see: ImageNet's pixel statistics, and torchvision's default filter."""


class ImageNetworkEncoder:
    """A network from images to features; the attributes are those of `baseline.BaselineEncoder`."""

    computed = True
    logit_scale: float | None = None
    encode_text = None

    def __init__(
        self,
        kind: str,
        source: str,
        tower: Tower,
        options: OpenOptions,
        *,
        name: str,
        normalized: bool,
        description: Mapping[str, Any],
    ):
        """Compile nothing yet; place the weights.

        Args:
            kind: of `table.ENCODERS`.
            source: what was asked for.
            tower: the network, its weights and preprocessing.
            options: how to compute.
            name: for tables.
            normalized: whether its features are to be scaled to length one.
            description: of the network, for `describe` and the key; it names the weights by their hash.
        """
        self.name = name or (Path(source).stem if Path(source).is_file() else Path(source).name)
        self.source = source
        self.normalized = normalized
        self._description = {
            "kind": kind,
            "source": source,
            **description,
            "preprocessing": tower.settings.to_dict(),
            "compute_dtype": options.compute_dtype,
            "normalized": normalized,
        }
        parts = {k: v for k, v in self._description.items() if k not in ("kind", "source", "weights_file")}
        self.key = hash_key(kind, **parts)
        self._batcher = Batcher(options.batch_size, options.mesh)
        self._progress = options.progress
        self._params = self._batcher.put_params(tower.params)
        self._tower = Tower(self._params, tower.feature_dim, tower.settings, tower.function)

        def features(params: Any, images: jax.Array) -> jax.Array:
            return tower.function(params, normalize_pixels(images, tower.settings))

        self._features = self._batcher.jit(features)

    def encode_images(self, images: Iterable[bytes], /, *, names: Sequence[str]) -> np.ndarray:
        """See `baseline.BaselineEncoder.encode_images`."""
        settings = self._tower.settings
        batches = self._batcher.image_batches(
            tqdm.tqdm(images, desc="images", unit="image", disable=not self._progress),
            names,
            to_pixels=lambda image: prepare_image(image, settings),
            side=settings.image_size,
        )
        return self._batcher.run(self._features, [self._params], batches, self._tower.feature_dim)[0]

    @property
    def tower(self) -> Callable[[], Tower]:
        """The network, for training."""
        return lambda: self._tower

    def describe(self) -> dict[str, Any]:
        """Which model this is, fit for JSON."""
        return dict(self._description)


def open_vit(source: str, options: OpenOptions, *, name: str = "") -> ImageNetworkEncoder:
    """Open a Hugging Face ViT, folder or hub id: the class token behind the last norm.

    Raises:
        SourceError: the hub cannot be reached.
        HFConfigError, WeightsError: files that are absent, damaged or not of our network.
    """
    model = read_vit(hub_folder(source, VIT_FILES, tuple((file,) for file in VIT_WEIGHTS_FILES)))
    network = ViT(model.config, options.compute_dtype)
    vision = model.config.vision
    description = {
        "weights_file": model.weights_file,
        "weights_hash": hash_params(model.params),
        "network": dataclasses.asdict(model.config),
    }
    tower = Tower(model.params, vision.width, model.settings, network.encode_image)
    return ImageNetworkEncoder("vit", source, tower, options, name=name, normalized=True, description=description)


def open_densenet(source: str, options: OpenOptions, *, name: str = "") -> ImageNetworkEncoder:
    """Open the state dict of a torchvision DenseNet such as MuDiPath's: the mean of its last map, of 1,024 features.

    They are not scaled to length one, as PLIP's authors used MuDiPath's (protocol: linear probe).

    Raises:
        WeightsError: a file that is absent, damaged or no DenseNet's.
    """
    model = read_densenet(source)
    network = densenet.DenseNet(model.config, options.compute_dtype)
    weights, statistics = densenet.split_statistics(model.params)

    def encode_image(weights: Any, pixels: jax.Array) -> jax.Array:
        return network.encode_image(densenet.join_statistics(weights, statistics), pixels)

    description = {
        "weights_file": Path(source).name,
        "weights_hash": hash_params(model.params),
        "network": {**dataclasses.asdict(model.config), "layers": list(model.config.layers)},
    }
    tower = Tower(weights, model.config.feature_dim, IMAGENET_SETTINGS, encode_image)
    return ImageNetworkEncoder("densenet", source, tower, options, name=name, normalized=False, description=description)
