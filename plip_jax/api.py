"""The public class `PLIP`, and `Encoder`, the one batched, padded, sharded encoder that every program shares.

Owns how images and texts of any form become features: decoding in threads while the device computes, batches of one
static shape (so each tower is compiled once), every input counted once and kept in order. Losses, metrics and
files are elsewhere.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh
from PIL import Image, ImageOps

from plip_jax.convert.load import LoadedModel, Weights, Which, load_model
from plip_jax.data.image import ImageError, Preprocessing, decode_image, normalize_pixels, preprocess_image
from plip_jax.data.tokenizer import Tokenizer
from plip_jax.model import clip
from plip_jax.model.presets import CLIPConfig
from plip_jax.sharding import make_mesh, put_batch, replicated

# A path, the bytes of an image file, a PIL image, or uint8 [height, width, 3] in RGB.
ImageInput = str | Path | bytes | Image.Image | np.ndarray
Params = dict[str, Any]
Item = TypeVar("Item")

# PLIP's general prompt (Huang et al. 2023, PanNuke's without the word tissue).
DEFAULT_TEMPLATE = "An H&E image of {}."

# Batches whose images are decoded ahead of the device: one being computed, one ready, one being decoded.
_PREFETCHED_BATCHES = 2


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
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        self.config = config
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.mesh = make_mesh() if mesh is None else mesh
        self.batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
        model = clip.build(config, compute_dtype=compute_dtype)

        def image_features(params: Params, images: jax.Array) -> jax.Array:
            return model.encode_image(params, normalize_pixels(images, preprocessing))

        # Replicated outputs: with several hosts each of them reads all features.
        self._image_features = jax.jit(image_features, out_shardings=replicated(self.mesh))
        self._text_features = jax.jit(model.encode_text, out_shardings=replicated(self.mesh))

    def put_params(self, params: Params) -> Params:
        """Place parameters on the devices once; numpy ones would travel with every batch."""
        return jax.device_put(params, replicated(self.mesh))

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
        bar = tqdm.tqdm(_image_list(images), desc="images", unit="image", disable=not progress)
        return self._encode(self._image_features, models, self._image_batches(bar, names), normalize)

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
        return self._encode(self._text_features, [params], self._text_batches(bar), normalize)[0]

    def _encode(
        self,
        function: Callable[[Params, jax.Array], jax.Array],
        models: Sequence[Params],
        batches: Iterable[tuple[int, np.ndarray]],
        normalize: bool,
    ) -> np.ndarray:
        """Run batches of (rows that count, this process's padded share), each read one late: [models, rows, dim]."""
        results = [np.zeros((len(models), 0, self.config.embed_dim), np.float32)]
        running: tuple[int, list[jax.Array]] | None = None
        for count, share in batches:
            placed = put_batch(self.mesh, {"share": share})["share"]
            features = [function(params, placed) for params in models]
            if running is not None:
                results.append(_read_rows(*running))
            running = count, features
        if running is not None:
            results.append(_read_rows(*running))
        joined = np.concatenate(results, axis=1)
        return _normalized(joined) if normalize else joined

    def _image_batches(self, images: Iterable[Any], names: Sequence[str] | None) -> Iterator[tuple[int, np.ndarray]]:
        """Batches of uint8 pixels, decoded by threads ahead of their use."""
        pool = concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="plip-decode")
        pending: collections.deque[tuple[int, list[concurrent.futures.Future[np.ndarray]]]] = collections.deque()
        try:
            for batch in _in_batches(enumerate(images), self.batch_size):
                share = [
                    pool.submit(
                        self._pixels, *_named(image, names[index] if names else f"number {index} of the images")
                    )
                    for index, image in self._share(batch)
                ]
                pending.append((len(batch), share))
                if len(pending) > _PREFETCHED_BATCHES:
                    yield self._padded(*pending.popleft())
            while pending:
                yield self._padded(*pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _text_batches(self, texts: Iterable[str]) -> Iterator[tuple[int, np.ndarray]]:
        for batch in _in_batches(texts, self.batch_size):
            for text in batch:
                if not isinstance(text, str):
                    raise TypeError(f"texts: expected strings, got {type(text).__name__}")
            # An empty caption fills the padding rows: a row without an end-of-text token has no pooled position.
            share = self._share(batch)
            padded = share + [""] * (self.batch_size // jax.process_count() - len(share))
            yield len(batch), self.tokenizer(padded)

    def _share(self, batch: list[Item]) -> list[Item]:
        """This process's contiguous part of a batch (all of it on one host)."""
        size = self.batch_size // jax.process_count()
        start = size * jax.process_index()
        return batch[start : start + size]

    def _padded(self, count: int, rows: list[concurrent.futures.Future[np.ndarray]]) -> tuple[int, np.ndarray]:
        side = self.preprocessing.image_size
        share = np.zeros((self.batch_size // jax.process_count(), side, side, 3), np.uint8)
        for i, row in enumerate(rows):
            share[i] = row.result()
        return count, share

    def _pixels(self, name: str, image: bytes | Image.Image | Path) -> np.ndarray:
        """uint8 [image_size, image_size, 3]; runs in a thread."""
        if isinstance(image, Path):
            try:
                image = image.read_bytes()
            except OSError as error:
                raise ImageError(f"image {name!r}: expected a readable file, got {error.strerror or error}") from error
        if isinstance(image, bytes):
            image = decode_image(image, name=name)
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
        return predictions[0] if _is_one_image(images) else predictions


def _is_one_image(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim <= 3
    return isinstance(images, str | Path | bytes | Image.Image)


def _image_list(images: Any) -> Iterable[Any]:
    return [images] if _is_one_image(images) else images


def _named(image: Any, name: str) -> tuple[str, bytes | Image.Image | Path]:
    """The name for messages (a path names itself), and the image in a form that a thread may take."""
    if isinstance(image, str | Path):
        return str(image), Path(image)
    if isinstance(image, bytes):
        return name, image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise TypeError(f"{name}: expected uint8 [height, width, 3], got {image.dtype} {list(image.shape)}")
        return name, Image.fromarray(image)
    if isinstance(image, Image.Image):
        # Loaded here, not in the thread: a PIL image that occurs twice in the list must not be decoded twice at once.
        try:
            image.load()
            return name, ImageOps.exif_transpose(image)
        except Exception as error:  # a lazily opened file fails with any of a dozen unrelated types
            raise ImageError(f"{name}: expected a whole image, got {type(error).__name__}: {error}") from error
    raise TypeError(
        f"{name}: expected a path, the bytes of an image file, a PIL image or uint8 [height, width, 3], "
        f"got {type(image).__name__}"
    )


def _in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """itertools.batched, which Python 3.11 lacks."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _read_rows(count: int, features: Sequence[jax.Array]) -> np.ndarray:
    """The first rows of a batch of each model, to the host."""
    return np.stack([np.asarray(one)[:count] for one in features])


def _normalized(features: np.ndarray) -> np.ndarray:
    """Every row of length one; a row of zeros, which has no direction, stays."""
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.maximum(norms, np.finfo(np.float32).tiny)
