"""The public class `PLIP`, and `Encoder`, CLIP's two towers as one batched, padded, sharded encoder.

Owns which function of CLIP and which preprocessing make features of images and texts; how lists become batches of one
static shape (so each tower is compiled once) is in `batching`. Losses, metrics and files are elsewhere.
"""

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from PIL import Image

from plip_jax.answers import DamagedImagesWarning, Hit, Prediction
from plip_jax.batching import Batcher, ImageInput, image_list, is_one_image, normalized
from plip_jax.convert.load import LoadedModel, Weights, Which, load_model
from plip_jax.data.image import ImageError, Preprocessing, normalize_pixels, preprocess_image
from plip_jax.data.tokenizer import Tokenizer
from plip_jax.image_search import corpus_features, hits_of, query_features, top_k
from plip_jax.model import clip
from plip_jax.model.presets import Activation, CLIPConfig

Params = dict[str, Any]

Damaged = Literal["raise", "nan"]
"""What to do with an image that cannot be read: raise its ImageError, or make its row NaN and warn."""

DEFAULT_TEMPLATE = "An H&E image of {}."
"""PLIP's general prompt (Huang et al. 2023, PanNuke's without the word tissue)."""


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
        self._model = model = clip.build(config, compute_dtype=compute_dtype)

        def image_features(params: Params, images: jax.Array) -> jax.Array:
            def encode(part: jax.Array) -> jax.Array:
                return model.encode_image(params, normalize_pixels(part, preprocessing))

            return self._batcher.in_parts(encode, images)

        self._image_features = self._batcher.jit(image_features)
        self._text_features = self._batcher.jit(model.encode_text)

    def put_params(self, params: Params) -> Params:
        """Place parameters on the devices, rounded to the compute dtype, once and not with every batch.

        The result is for this encoder's methods alone: nothing can be trained from it or exported.
        """
        return self._model.round_kernels(self._batcher.put_params(params))

    def encode_images(
        self,
        params: Params,
        images: ImageInput | Iterable[ImageInput],
        *,
        names: Sequence[str] | None = None,
        normalize: bool = True,
        progress: bool = False,
        batch_size: int | None = None,
        on_damaged: Callable[[int, ImageError], None] | None = None,
    ) -> np.ndarray:
        """Encode images: float32 [number of images, embed_dim], in the order given.

        Args:
            params: the network's.
            images: one or many of: path, bytes of an image file, PIL image, uint8 [height, width, 3] in RGB. A
                generator is read as it is needed. With several hosts every one passes the same images.
            names: what to call each image in an error; by default its path, or its place in `images`.
            normalize: make every row of length one.
            progress: show a bar.
            batch_size: images computed at once, in place of the encoder's; each size is compiled once.
            on_damaged: called with the place of an image that cannot be read, and why, in place of the ImageError; its
                row is the feature of a black image and means nothing. With several hosts each one is told of the
                images that it decodes.

        Raises:
            ImageError: an image cannot be read; the message names it.
            TypeError: something that is no image.
        """
        encode = functools.partial(self.encode_images_of, names=names, normalize=normalize, progress=progress)
        return encode([params], images, batch_size=batch_size, on_damaged=on_damaged)[0]

    def encode_images_of(
        self,
        models: Sequence[Params],
        images: ImageInput | Iterable[ImageInput],
        *,
        names: Sequence[str] | None = None,
        normalize: bool = True,
        progress: bool = False,
        batch_size: int | None = None,
        on_damaged: Callable[[int, ImageError], None] | None = None,
    ) -> np.ndarray:
        """`encode_images` by several parameters, each image decoded once: float32 [models, images, embed_dim]."""
        bar = tqdm.tqdm(image_list(images), desc="images", unit="image", disable=not progress)
        batcher = self._batcher_of(batch_size)
        side = self.preprocessing.image_size
        batches = batcher.image_batches(bar, names, to_pixels=self._pixels, side=side, on_damaged=on_damaged)
        features = batcher.run(self._image_features, models, batches, self.config.embed_dim)
        return normalized(features) if normalize else features

    def encode_text(
        self,
        params: Params,
        texts: str | Iterable[str],
        *,
        normalize: bool = True,
        progress: bool = False,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Encode texts: float32 [number of texts, embed_dim], in the order given; see `encode_images`.

        A text longer than the context is cut and keeps its end-of-text token.

        Raises:
            TypeError: something that is no string.
        """
        items = [texts] if isinstance(texts, str) else texts
        bar = tqdm.tqdm(items, desc="texts", unit="text", disable=not progress)
        batcher = self._batcher_of(batch_size)
        batches = batcher.text_batches(bar, self.tokenizer)
        features = batcher.run(self._text_features, [params], batches, self.config.embed_dim)[0]
        return normalized(features) if normalize else features

    def _batcher_of(self, batch_size: int | None) -> Batcher:
        """For batches of another size; the towers stay the same jitted functions, so a size is compiled once."""
        return self._batcher if batch_size is None else Batcher(batch_size, self.mesh)

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """uint8 [image_size, image_size, 3]; runs in a thread."""
        return preprocess_image(image, self.preprocessing)


class PLIP:
    """A pathology vision-language model: images and texts in one space.

    Made by `from_pretrained`, which explains the arguments, or of a `LoadedModel`.

    Attributes:
        encoder: the two towers, with the ``config``, ``tokenizer``, ``preprocessing`` and ``mesh`` they work by.
        params: the parameters as the encoder takes them, on the devices; nothing can be trained or exported from them.
        source: what was asked for.
        weights_file: the file, or the checkpoint step, that the parameters were read from.
        weights_hash: SHA-256 (hex) of the parameters in float32.
        logit_scale: the raw parameter, in log space.

    Examples:
        >>> model = PLIP.from_pretrained("vinid/plip")
        >>> print(model.zero_shot("tile.png", ["tumor", "normal colon mucosa"]))
        >>> model.retrieve("mitotic figures", ["tile.png", "other_tile.png"], k=1)
    """

    def __init__(
        self, model: LoadedModel, *, compute_dtype: str = "float32", batch_size: int = 32, mesh: Mesh | None = None
    ):
        parts = (model.config, model.tokenizer, model.preprocessing)
        self.encoder = Encoder(*parts, compute_dtype=compute_dtype, batch_size=batch_size, mesh=mesh)
        self.params = self.encoder.put_params(model.params)
        self.source = model.source
        self.weights_file = model.weights_file
        self.weights_hash = model.weights_hash
        self.logit_scale = float(np.asarray(model.params["logit_scale"]))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        which: Which = "latest",
        weights: Weights = "auto",
        tokenizer: str | Path | None = None,
        activation: Activation | None = None,
        compute_dtype: str = "float32",
        batch_size: int = 32,
        mesh: Mesh | None = None,
    ) -> "PLIP":
        """Load a model.

        Args:
            source: a folder of Hugging Face or open_clip files, a single file of weights (OpenAI's ``.pt`` too), a hub
                id, or a workdir of ``python -m plip_jax.train``; see `load_model`.
            which: of a workdir's checkpoints, ``latest``, ``best`` or a step.
            weights: of a workdir, ``raw``, their moving average (``ema``), or ``auto``: ``ema`` where the run kept one.
            tokenizer: a folder or hub id that has CLIP's tokenizer, where the source has none.
            activation: ``quick_gelu`` or ``gelu``, where the source does not say.
            compute_dtype: operands of the matrix products; ``bfloat16`` is for matrix units and keeps about two
                digits, ``float32`` is the reference.
            batch_size: images or texts computed at once. A shorter list is padded to it, so a large batch makes a
                single image slow.
            mesh: the devices; all of them by default.

        Raises:
            SourceError: nothing there that is a model, or the hub cannot be reached.
            ValueError: damaged files, or files that do not fit each other.
        """
        model = load_model(source, which=which, weights=weights, tokenizer=tokenizer, activation=activation)
        return cls(model, compute_dtype=compute_dtype, batch_size=batch_size, mesh=mesh)

    def encode_images(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        batch_size: int | None = None,
        normalize: bool = True,
        progress: bool = False,
        damaged: Damaged = "raise",
    ) -> np.ndarray:
        """Encode images: float32 [number of images, embed_dim], in the order given.

        Args:
            images: one or many of: path, bytes of an image file, PIL image, uint8 [height, width, 3] in RGB. A
                generator is read as it is needed.
            batch_size: images computed at once, in place of the model's; each size is compiled once.
            normalize: make every row of length one; otherwise the tower's own lengths.
            progress: show a bar.
            damaged: what an image that cannot be read does: ``raise`` its ImageError, or become a row of NaN (``nan``);
                then one `DamagedImagesWarning` names them all.

        Raises:
            ImageError: an image cannot be read; the message names it.
            TypeError: something that is no image.
            ValueError: an unknown ``damaged``, or a batch_size below 1.
        """
        if damaged not in ("raise", "nan"):
            raise ValueError(f"damaged: expected 'raise' or 'nan', got {damaged!r}")
        errors: dict[int, ImageError] = {}
        features = self.encoder.encode_images(
            self.params,
            images,
            normalize=normalize,
            progress=progress,
            batch_size=batch_size,
            on_damaged=errors.__setitem__ if damaged == "nan" else None,
        )
        is_damaged = np.zeros(len(features), bool)
        is_damaged[list(errors)] = True
        hosts = {device.process_index for device in self.encoder.mesh.devices.flat}
        if damaged == "nan" and len(hosts) > 1:  # each knows of the images that it decoded itself
            is_damaged = np.asarray(multihost_utils.process_allgather(is_damaged)).any(axis=0)
        features[is_damaged] = np.nan
        if errors:
            warnings.warn(DamagedImagesWarning(errors), stacklevel=2)
        return features

    def encode_text(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int | None = None,
        normalize: bool = True,
        progress: bool = False,
    ) -> np.ndarray:
        """Encode texts: float32 [number of texts, embed_dim], in the order given; see `Encoder.encode_text`.

        Args:
            texts: one or many.
            batch_size: texts computed at once, in place of the model's; each size is compiled once.
            normalize: make every row of length one; otherwise the tower's own lengths.
            progress: show a bar.

        Raises:
            TypeError: something that is no string.
            ValueError: a batch_size below 1.
        """
        return self.encoder.encode_text(
            self.params, texts, normalize=normalize, progress=progress, batch_size=batch_size
        )

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
        template: str | Sequence[str] = DEFAULT_TEMPLATE,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Prediction | list[Prediction]:
        """Classify images by the texts of their labels: a `Prediction` for one image, a list of them for many.

        The probabilities are a softmax over the labels of exp(logit_scale) times the cosine of image and label. A bias
        of SigLIP's loss is the same for all labels, so it changes none of them.

        Args:
            images: see `encode_images`.
            labels: two or more different names.
            template: the prompt, with one ``{}`` for the label; of several, a label's feature is the mean of its
                prompts' normalised features, normalised again (Radford et al. 2021, section 3.1.4).
            batch_size: see `encode_images`.
            progress: show a bar over the images.

        Raises:
            ImageError: an image cannot be read; the message names it.
            TypeError: a label that is no string.
            ValueError: fewer than two labels, a label twice, or a template without exactly one ``{}``.
        """
        if isinstance(labels, str) or len(labels := list(labels)) < 2:
            raise ValueError(f"labels: expected a list of two or more, got {labels!r}")
        if wrong := [label for label in labels if not isinstance(label, str)]:
            raise TypeError(f"labels: expected names for the prompt, got {type(wrong[0]).__name__} {wrong[0]!r}")
        if len(set(labels)) != len(labels):
            raise ValueError(f"labels: expected different ones, got {list(labels)}")
        templates = [template] if isinstance(template, str) else list(template)
        if not templates or any(one.count("{}") != 1 for one in templates):
            raise ValueError(f"template: expected one {{}} where the label goes, got {template!r}")
        prompts = [one.replace("{}", label) for label in labels for one in templates]
        texts = self.encode_text(prompts).reshape(len(labels), len(templates), -1)
        cosines = (
            self.encode_images(images, batch_size=batch_size, progress=progress) @ normalized(texts.mean(axis=1)).T
        )
        logits = (cosines * np.float32(np.exp(self.logit_scale))).astype(np.float64)
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = scores / scores.sum(axis=1, keepdims=True)
        # A stable sort: labels of equal probability stay in the order given.
        order = np.argsort(-probabilities, axis=1, kind="stable")
        predictions = [
            Prediction({str(labels[i]): float(row[i]) for i in ranks})
            for row, ranks in zip(probabilities, order, strict=True)
        ]
        return predictions[0] if is_one_image(images) else predictions

    def retrieve(
        self,
        queries: Any,
        corpus: Any,
        k: int = 10,
        *,
        batch_size: int | None = None,
        progress: bool = False,
        damaged: Damaged = "raise",
    ) -> list[Hit] | list[list[Hit]]:
        """Find the images of a corpus that are nearest to queries: the best first, by exact cosine.

        Both sides are normalised here, whether their features are of length one or not. Of equal scores the earlier
        image comes first. Images that cannot be read (rows of NaN or zeros) are never found.

        Args:
            queries: one or many. A string is a text, always; a `Path`, bytes, a PIL image or uint8
                [height, width, 3] is an image; floats [embed_dim] or [queries, embed_dim] are features.
            corpus: images (see `encode_images`: here a string is a path), features [N, embed_dim], such as
                ``encode_images`` gave or a memory map holds, or an opened folder of ``python -m plip_jax.embed``. To
                search texts, pass ``encode_text(texts)``. Features are read a chunk at a time and never held whole.
            k: how many at most.
            batch_size: see `encode_images`.
            progress: show a bar over the corpus's images.
            damaged: of the corpus's images, see `encode_images`.

        Returns:
            For one query a list of at most k `Hit`; for a list of queries a list of them.

        Raises:
            ImageError: an image cannot be read; the message names it.
            TypeError: queries that mix texts and images.
            ValueError: k below 1, features of another size than the model's, or embeddings of another model.
        """
        encode = functools.partial(self.encode_images, batch_size=batch_size)
        features, is_one = query_features(queries, encode_text=self.encode_text, encode_images=encode)
        encode_corpus = functools.partial(encode, progress=progress, damaged=damaged)
        rows, names = corpus_features(corpus, encode_images=encode_corpus, model=self)
        hits = hits_of(*top_k(features, rows, k), names)
        return hits[0] if is_one else hits
