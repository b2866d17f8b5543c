"""What the tests of docs/adapters.md put in the place of harnesses that are not installed: their interfaces.

Read from CLIP_benchmark 1.6.2, TRIDENT 0.2.4 and LazySlide 0.13.0 with lazyslide-models 0.1.0: which names an adapter
imports, what it is called with, in which order and form. How a harness does its own work is not here.
"""

import abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    """Put a module, and the packages it is in, among the loaded ones; nothing where the real one is installed."""
    parts = name.split(".")
    package = sys.modules.get(parts[0])
    is_stand_in = package is not None and package.__spec__ is None
    if not is_stand_in and importlib.util.find_spec(parts[0]) is not None:
        return
    for depth in range(1, len(parts) + 1):
        dotted = ".".join(parts[:depth])
        if dotted not in sys.modules:
            monkeypatch.setitem(sys.modules, dotted, ModuleType(dotted))
    vars(sys.modules[name]).update(contents)


# CLIP_benchmark: a model is (model, transform, tokenizer); a task calls encode_image and encode_text on batches.


def load_clip(model_type: str, model_name: str, pretrained: str, cache_dir: str | None, device: Any = "cuda") -> Any:
    import open_clip

    assert model_type == "open_clip"
    model, _, transform = open_clip.create_model_and_transforms(model_name, pretrained=pretrained, cache_dir=cache_dir)
    return model.to(device), transform, open_clip.get_tokenizer(model_name)


def zero_shot_classifier(
    model: Any, tokenizer: Any, classnames: list[str], templates: list[str], device: str, amp: bool = True
) -> torch.Tensor:
    assert not amp, "the page computes in float32"
    with torch.no_grad():
        of_classes = [
            model.encode_text(tokenizer([text.format(c=name) for text in templates]).to(device)) for name in classnames
        ]
    # The mean of one template's feature is the feature.
    return torch.cat([torch.nn.functional.normalize(features, dim=-1) for features in of_classes]).T


def run_classification(
    model: Any, classifier: torch.Tensor, dataloader: Any, device: str, amp: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    assert not amp, "the page computes in float32"
    with torch.no_grad():
        batches = [(model.encode_image(images.to(device)), target) for images, target in dataloader]
    features = torch.nn.functional.normalize(torch.cat([features for features, _ in batches]), dim=-1)
    return 100.0 * features @ classifier, torch.cat([target for _, target in batches])


# TRIDENT: an encoder is a module with a name, a transform of a PIL image and a precision.


class CustomInferenceEncoder(torch.nn.Module):
    def __init__(self, enc_name: str, model: torch.nn.Module, transforms: Callable, precision: torch.dtype):
        super().__init__()
        self.enc_name, self.model, self.eval_transforms, self.precision = enc_name, model, transforms, precision

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def extract_patch_features(encoder: Any, patches: Sequence[Any], batch_limit: int) -> np.ndarray:
    """As a slide does it: a data loader of transformed patches, the module on its device, features of float32."""
    encoder.to("cpu").eval()
    loader = torch.utils.data.DataLoader([encoder.eval_transforms(patch) for patch in patches], batch_size=batch_limit)
    with torch.inference_mode(), torch.autocast("cpu", encoder.precision, enabled=encoder.precision != torch.float32):
        return np.concatenate([encoder(batch).cpu().float().numpy() for batch in loader])


# LazySlide: a model has model, name, get_transform, to, try_compile and encode_image (and encode_text).


class ImageTextModel(abc.ABC):
    @property
    def name(self) -> str:
        return type(self).__name__

    def try_compile(self, **options: Any) -> None:
        del options

    @abc.abstractmethod
    def encode_image(self, image: Any) -> Any: ...

    @abc.abstractmethod
    def encode_text(self, text: Any) -> Any: ...


class Slide:
    """In the place of WSIData: tiles, uint8 [height, width, 3] each, and the tables of features that tools add."""

    def __init__(self, tiles: Sequence[np.ndarray]):
        self.tiles, self.tables = tiles, {}


def feature_extraction(
    wsi: Slide, model: Any = None, *, model_path: Any = None, model_name: str | None = None, batch_size: int = 2
) -> None:
    if isinstance(model, str):
        import lazyslide_models

        model_name = model_name or model
        model = lazyslide_models.MODEL_REGISTRY[model](model_path=model_path, token=None)
    model.to("cpu")
    transform = model.get_transform() or (lambda tile: tile)
    loader = torch.utils.data.DataLoader([transform(tile) for tile in wsi.tiles], batch_size=batch_size)
    with torch.inference_mode():
        features = [model.encode_image(batch) for batch in loader]
    wsi.tables[model_name or model.name] = np.vstack([one.cpu().numpy() for one in features])


def text_embedding(texts: list[str], model: Any) -> np.ndarray:
    model.to("cpu")
    with torch.inference_mode():
        return model.encode_text(texts).detach().cpu().numpy()


LAZYSLIDE_TOOLS = SimpleNamespace(feature_extraction=feature_extraction, text_embedding=text_embedding)
