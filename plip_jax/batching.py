"""Lists of any length through functions of one static shape: `Batcher`, which every encoder runs on.

Owns how images and texts of any form become batches: decoding in threads while the device computes, padding, the split
over devices and hosts, every input counted once and kept in order. What a batch becomes is the caller's function.
"""

import collections
import concurrent.futures
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from plip_jax.data.allocator import keep_freed_memory
from plip_jax.data.image import ImageError, decode_image, upright_rgb
from plip_jax.sharding import make_mesh, place_among_processes, put_batch, replicated

ImageInput = str | Path | bytes | Image.Image | np.ndarray
"""A path, the bytes of an image file, a PIL image, or uint8 [height, width, 3] in RGB."""
Item = TypeVar("Item")
Batch = tuple[int, np.ndarray]
"""Rows that count, and this process's share of the batch, padded."""
_Future = concurrent.futures.Future[np.ndarray]
# The place of an image in the list, and its pixels to come.
_Row = tuple[int, _Future]

_ROWS_PER_PART = 16  # ours, for ViT-B/32 under bfloat16

# Batches whose images are decoded ahead of the device: one being computed, one ready, one being decoded.
_PREFETCHED_BATCHES = 2


class Batcher:
    """Batches of one shape, made ahead of their use and run over all devices.

    Attributes:
        batch_size: rows of every batch: the wanted size, rounded up to a multiple of the devices.
        mesh: the devices; every batch is split over them.
    """

    def __init__(self, batch_size: int, mesh: Mesh | None = None):
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        self.mesh = make_mesh() if mesh is None else mesh
        self.batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
        # Not those of the run: on a mesh of this host's devices alone, every row of a batch is this host's.
        self._process, processes = place_among_processes(self.mesh)
        self._share_size = self.batch_size // processes

    def jit(self, function: Callable[[Any, jax.Array], jax.Array]) -> Callable[[Any, jax.Array], jax.Array]:
        """Compile a function of parameters and a batch; with several hosts each of them can read all its rows."""
        return jax.jit(function, out_shardings=replicated(self.mesh))

    def in_parts(self, function: Callable[[jax.Array], jax.Array], batch: jax.Array) -> jax.Array:
        """``function(batch)``, on a CPU in parts of 16 rows: what a part's layers hand on stays nearer to the cores."""
        rows = len(batch)
        if jax.default_backend() != "cpu" or self.mesh.size > 1 or rows <= _ROWS_PER_PART or rows % _ROWS_PER_PART:
            return function(batch)
        parts = batch.reshape(-1, _ROWS_PER_PART, *batch.shape[1:])
        return jax.lax.map(function, parts).reshape(rows, -1)

    def put_params(self, params: Any) -> Any:
        """Place parameters on the devices once; numpy ones would travel with every batch."""
        return jax.device_put(params, replicated(self.mesh))

    def run(
        self,
        function: Callable[[Any, jax.Array], jax.Array],
        models: Sequence[Any],
        batches: Iterable[Batch],
        feature_dim: int,
    ) -> np.ndarray:
        """Run a jitted function of several parameters on batches: float32 [models, rows, feature_dim].

        Each result is read one batch late, so that the device is never waited for.
        """
        results = [np.zeros((len(models), 0, feature_dim), np.float32)]
        running: tuple[int, list[jax.Array]] | None = None
        for count, share in batches:
            placed = put_batch(self.mesh, {"share": share})["share"]
            features = [function(params, placed) for params in models]
            if running is not None:
                results.append(_read_rows(*running))
            running = count, features
        if running is not None:
            results.append(_read_rows(*running))
        return np.concatenate(results, axis=1)

    def image_batches(
        self,
        images: Iterable[Any],
        names: Sequence[str] | None,
        *,
        to_pixels: Callable[[Image.Image], np.ndarray],
        side: int,
        on_damaged: Callable[[int, ImageError], None] | None = None,
    ) -> Iterator[Batch]:
        """Batches of uint8 pixels [share of batch_size, side, side, 3], decoded by threads ahead of their use.

        Args:
            images: of any form of `ImageInput`.
            names: what to call each image in an error; by default its path, or its place in `images`.
            to_pixels: a decoded image to uint8 [side, side, 3]; runs in the threads.
            side: pixels.
            on_damaged: told the place in `images` and the error of each image that cannot be read, in order and in the
                caller's thread; its row is zeros. Each host tells of its own share of every batch.

        Raises:
            ImageError: an image cannot be read and there is no `on_damaged`; the message names it.
            TypeError: something that is no image.
        """

        def submit(index: int, image: Any) -> _Row:
            try:
                named = _named(image, names[index] if names else f"number {index} of the images")
            except ImageError as error:
                failed: _Future = concurrent.futures.Future()
                failed.set_exception(error)
                return index, failed
            return index, pool.submit(lambda: to_pixels(_decoded(*named)))

        keep_freed_memory()  # a sixth of the time of decoding
        pool = concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="plip-decode")
        pending: collections.deque[tuple[int, list[_Row]]] = collections.deque()
        try:
            for batch in _in_batches(enumerate(images), self.batch_size):
                pending.append((len(batch), [submit(index, image) for index, image in self._share(batch)]))
                if len(pending) > _PREFETCHED_BATCHES:
                    yield self._padded(*pending.popleft(), side, on_damaged)
            while pending:
                yield self._padded(*pending.popleft(), side, on_damaged)
        finally:
            pool.shutdown(cancel_futures=True)

    def text_batches(self, texts: Iterable[str], tokenize: Callable[[list[str]], np.ndarray]) -> Iterator[Batch]:
        """Batches of tokens.

        Raises:
            TypeError: something that is no string.
        """
        for batch in _in_batches(texts, self.batch_size):
            for text in batch:
                if not isinstance(text, str):
                    raise TypeError(f"texts: expected strings, got {type(text).__name__}")
            # An empty caption fills the padding rows: a row without an end-of-text token has no pooled position.
            share = self._share(batch)
            padded = share + [""] * (self._share_size - len(share))
            yield len(batch), tokenize(padded)

    def _share(self, batch: list[Item]) -> list[Item]:
        """This process's contiguous part of a batch (all of it on one host)."""
        start = self._share_size * self._process
        return batch[start : start + self._share_size]

    def _padded(
        self, count: int, rows: list[_Row], side: int, on_damaged: Callable[[int, ImageError], None] | None
    ) -> Batch:
        share = np.zeros((self._share_size, side, side, 3), np.uint8)
        for i, (index, row) in enumerate(rows):
            try:
                share[i] = row.result()
            except ImageError as error:
                if on_damaged is None:
                    raise
                on_damaged(index, error)
        return count, share


def is_one_image(images: Any) -> bool:
    """Whether this is one image and not many."""
    if isinstance(images, np.ndarray):
        return images.ndim <= 3 and images.dtype.kind not in "OU"  # an array of paths is many
    return isinstance(images, str | Path | bytes | Image.Image)


def image_list(images: Any) -> Iterable[Any]:
    """One image, or many, as many."""
    return [images] if is_one_image(images) else images


def normalized(features: np.ndarray) -> np.ndarray:
    """Every row of [..., D] made of length one; a row of zeros, which has no direction, stays."""
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.maximum(norms, np.finfo(np.float32).tiny)


def _decoded(name: str, image: bytes | Image.Image | Path) -> Image.Image:
    if isinstance(image, Path):
        try:
            image = _read_file(image)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"image {name!r}: expected a readable file, got {reason}; mend or remove it") from error
    return decode_image(image, name=name) if isinstance(image, bytes) else image


def _read_file(path: Path) -> bytes:
    """The bytes of a file; a pipe or a device is refused: nobody may ever write to the one, the other never ends."""
    # Without O_NONBLOCK the opening of a pipe would wait for its writer; on a file it changes nothing.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError("Is a directory" if stat.S_ISDIR(mode) else "a pipe, a socket or a device")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _named(image: Any, name: str) -> tuple[str, bytes | Image.Image | Path]:
    """The name for messages (a path names itself), and the image in a form that a thread may take."""
    if isinstance(image, str | Path):
        return str(image), Path(image)
    if isinstance(image, bytes):
        return name, image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise TypeError(f"{name}: expected uint8 [height, width, 3], got {image.dtype} {list(image.shape)}")
        return name, Image.fromarray(image) if image.size else _nothing(name, image.shape[1], image.shape[0])
    if isinstance(image, Image.Image):
        if min(image.size) < 1:
            _nothing(name, *image.size)
        # Loaded here, not in the thread: a PIL image that occurs twice in the list must not be decoded twice at once.
        try:
            image.load()
            upright = upright_rgb(image)
            return name, upright.copy() if upright is image else upright  # the caller may go on with its own
        except Exception as error:  # a lazily opened file fails with any of a dozen unrelated types
            raise ImageError(f"{name}: expected a whole image, got {type(error).__name__}: {error}") from error
    raise TypeError(
        f"{name}: expected a path, the bytes of an image file, a PIL image or uint8 [height, width, 3], "
        f"got {type(image).__name__}"
    )


def _nothing(name: str, width: int, height: int) -> NoReturn:
    raise ImageError(f"{name}: expected one pixel or more, got an image of {width} x {height} pixels")


def _in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """itertools.batched, which Python 3.11 lacks."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _read_rows(count: int, features: Sequence[jax.Array]) -> np.ndarray:
    """The first rows of a batch of each model, to the host."""
    return np.stack([np.asarray(one)[:count] for one in features])
