"""The public class `PLIP`, and `Encoder`, CLIP's two towers as one batched, padded, sharded encoder.

Owns which function of CLIP and which preprocessing make features of images and texts; how lists become batches of one
static shape (so each tower is compiled once) is in `batching`. Losses, metrics and files are elsewhere.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh
from PIL import Image

from plip_jax.batching import Batcher, ImageInput, image_list, is_one_image, normalized
from plip_jax.convert.load import LoadedModel, Weights, Which, load_model
from plip_jax.data.image import Preprocessing, normalize_pixels, preprocess_image
from plip_jax.data.tokenizer import Tokenizer
from plip_jax.model import clip
from plip_jax.model.presets import CLIPConfig

Params = dict[str, Any]

# PLIP's general prompt (Huang et al. 2023, PanNuke's without the word tissue).
DEFAULT_TEMPLATE = "An H&E image of {}."


class Encoder:
    """Images and texts to features, for parameters that are passed in (a training run's, or a loaded model's).

    Attributes:
        batch_size: rows of every computed batch: the wanted size, rounded up to a multiple of the devices.
        mesh: the devices; every batch is split over them.
    """

    def __init__(
        self,
        config: CLIPConfig,
        tokenizer: Tokenizer,
        preprocessing: Preprocessing,
        *,
        compute_dtype: str = "float32",
        batch_size: int = 64,
        mesh: Mesh | None = None,
    ):
        self.config = config
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self._batcher = Batcher(batch_size, mesh)
        self.mesh, self.batch_size = self._batcher.mesh, self._batcher.batch_size
        model = clip.build(config, compute_dtype=compute_dtype)

        def image_features(params: Params, images: jax.Array) -> jax.Array:
            return model.encode_image(params, normalize_pixels(images, preprocessing))

        self._image_features = self._batcher.jit(image_features)
        self._text_features = self._batcher.jit(model.encode_text)

    def put_params(self, params: Params) -> Params:
        """Place parameters on the devices once; numpy ones would travel with every batch."""
        return self._batcher.put_params(params)

    def encode_images(
        self,
        params: Params,
        images: ImageInput | Iterable[ImageInput],
        *,
        names: Sequence[str] | None = None,
        normalize: bool = True,
        progress: bool = False,
    ) -> np.ndarray:
        """Encode images: float32 [number of images, embed_dim], in the order given.

        Args:
            params: the network's.
            images: one or many of: path, bytes of an image file, PIL image, uint8 [height, width, 3] in RGB. A
                generator is read as it is needed. With several hosts every one passes the same images.
            names: what to call each image in an error; by default its path, or its place in `images`.
            normalize: make every row of length one.
            progress: show a bar.

        Raises:
            ImageError: an image cannot be read; the message names it.
            TypeError: something that is no image.
        """
        return self.encode_images_of([params], images, names=names, normalize=normalize, progress=progress)[0]

    def encode_images_of(
        self,
        models: Sequence[Params],
        images: ImageInput | Iterable[ImageInput],
        *,
        names: Sequence[str] | None = None,
        normalize: bool = True,
        progress: bool = False,
    ) -> np.ndarray:
        """`encode_images` by several parameters, each image decoded once: float32 [models, images, embed_dim]."""
        bar = tqdm.tqdm(image_list(images), desc="images", unit="image", disable=not progress)
        batches = self._batcher.image_batches(bar, names, to_pixels=self._pixels, side=self.preprocessing.image_size)
        features = self._batcher.run(self._image_features, models, batches, self.config.embed_dim)
        return normalized(features) if normalize else features

    def encode_text(
        self, params: Params, texts: str | Iterable[str], *, normalize: bool = True, progress: bool = False
    ) -> np.ndarray:
        """Encode texts: float32 [number of texts, embed_dim], in the order given; see `encode_images`.

        A text longer than the context is cut and keeps its end-of-text token.

        Raises:
            TypeError: something that is no string.
        """
        items = [texts] if isinstance(texts, str) else texts
        bar = tqdm.tqdm(items, desc="texts", unit="text", disable=not progress)
        batches = self._batcher.text_batches(bar, self.tokenizer)
        features = self._batcher.run(self._text_features, [params], batches, self.config.embed_dim)[0]
        return normalized(features) if normalize else features

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """uint8 [image_size, image_size, 3]; runs in a thread."""
        return preprocess_image(image, self.preprocessing)


@dataclasses.dataclass(frozen=True, repr=False)
class Prediction:
    """What `PLIP.zero_shot` says of one image.

    Attributes:
        probabilities: label -> probability, the most probable first; they sum to one.
    """

    probabilities: dict[str, float]

    @property
    def label(self) -> str:
        """The most probable label."""
        return next(iter(self.probabilities))

    @property
    def probability(self) -> float:
        """The probability of `label`."""
        return self.probabilities[self.label]

    def __str__(self) -> str:
        return "\n".join(f"{probability:6.1%}  {label}" for label, probability in self.probabilities.items())

    def __repr__(self) -> str:
        return f"Prediction({', '.join(f'{label}: {value:.1%}' for label, value in self.probabilities.items())})"


class PLIP:
    """A pathology vision-language model: images and texts in one space.

    Example:
        >>> model = PLIP.from_pretrained("vinid/plip")
        >>> print(model.zero_shot("tile.png", ["tumor", "normal colon mucosa"]))
    """

    def __init__(
        self, model: LoadedModel, *, compute_dtype: str = "float32", batch_size: int = 32, mesh: Mesh | None = None
    ):
        self.encoder = Encoder(
            model.config,
            model.tokenizer,
            model.preprocessing,
            compute_dtype=compute_dtype,
            batch_size=batch_size,
            mesh=mesh,
        )
        self.params = self.encoder.put_params(model.params)
        self.source = model.source
        self.weights_file = model.weights_file
        self.weights_hash = model.weights_hash
        # The raw parameter, in log space.
        self.logit_scale = float(np.asarray(model.params["logit_scale"]))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        which: Which = "latest",
        weights: Weights = "auto",
        compute_dtype: str = "float32",
        batch_size: int = 32,
        mesh: Mesh | None = None,
    ) -> "PLIP":
        """Load a model.

        Args:
            source: a Hugging Face CLIP folder or hub id, or a workdir of ``python -m plip_jax.train``.
            which: of a workdir's checkpoints, ``latest``, ``best`` or a step.
            weights: of a workdir, ``raw``, their moving average (``ema``), or ``auto``: ``ema`` where the run kept one.
            compute_dtype: operands of the matrix products; ``bfloat16`` is for matrix units and keeps about two
                digits, ``float32`` is the reference.
            batch_size: images or texts computed at once. A shorter list is padded to it, so a large batch makes a
                single image slow.
            mesh: the devices; all of them by default.

        Raises:
            SourceError: nothing there that is a model, or the hub cannot be reached.
            ValueError: damaged files, or files that do not fit each other.
        """
        model = load_model(source, which=which, weights=weights)
        return cls(model, compute_dtype=compute_dtype, batch_size=batch_size, mesh=mesh)

    def encode_images(
        self, images: ImageInput | Iterable[ImageInput], *, normalize: bool = True, progress: bool = False
    ) -> np.ndarray:
        """Encode images: float32 [number of images, embed_dim]; see `Encoder.encode_images`."""
        return self.encoder.encode_images(self.params, images, normalize=normalize, progress=progress)

    def encode_text(self, texts: str | Iterable[str], *, normalize: bool = True, progress: bool = False) -> np.ndarray:
        """Encode texts: float32 [number of texts, embed_dim]; see `Encoder.encode_text`."""
        return self.encoder.encode_text(self.params, texts, normalize=normalize, progress=progress)

    def similarity(self, images: ImageInput | Iterable[ImageInput], texts: str | Iterable[str]) -> np.ndarray:
        """Cosine of every image with every text: float32 [number of images, number of texts], both sides normalised."""
        # On the host, in true float32: a TPU's default product is off by 0.06 at the scale of the logits.
        return self.encode_images(images) @ self.encode_text(texts).T

    def logits_per_image(self, images: ImageInput | Iterable[ImageInput], texts: str | Iterable[str]) -> np.ndarray:
        """`similarity` times exp(logit_scale), what CLIP calls ``logits_per_image``; without SigLIP's bias."""
        return self.similarity(images, texts) * np.float32(np.exp(self.logit_scale))

    def zero_shot(
        self,
        images: ImageInput | Iterable[ImageInput],
        labels: Sequence[str],
        *,
        template: str = DEFAULT_TEMPLATE,
    ) -> Prediction | list[Prediction]:
        """Classify images by the texts of their labels: a `Prediction` for one image, a list of them for many.

        The probabilities are a softmax of `logits_per_image`. SigLIP's bias, where a model has one, is the same for
        all labels, so it changes none of them.

        Args:
            images: see `Encoder.encode_images`.
            labels: two or more different names.
            template: the prompt, with one ``{}`` for the label.

        Raises:
            ValueError: fewer than two labels, a label twice, or a template without exactly one ``{}``.
        """
        if isinstance(labels, str) or len(labels := list(labels)) < 2:
            raise ValueError(f"labels: expected a list of two or more, got {labels!r}")
        if len(set(labels)) != len(labels):
            raise ValueError(f"labels: expected different ones, got {list(labels)}")
        if template.count("{}") != 1:
            raise ValueError(f"template: expected one {{}} where the label goes, got {template!r}")
        prompts = [template.replace("{}", label) for label in labels]
        logits = self.logits_per_image(images, prompts).astype(np.float64)
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = scores / scores.sum(axis=1, keepdims=True)
        # A stable sort: labels of equal probability stay in the order given.
        order = np.argsort(-probabilities, axis=1, kind="stable")
        predictions = [
            Prediction({str(labels[i]): float(row[i]) for i in ranks})
            for row, ranks in zip(probabilities, order, strict=True)
        ]
        return predictions[0] if is_one_image(images) else predictions
