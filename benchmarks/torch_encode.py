"""The peer of `benchmarks.encode_images`: Hugging Face's CLIPModel and image processor, batched the sensible way.

Imports torch and transformers; the package itself needs neither. Whole batches are decoded and processed ahead, by the
workers of a DataLoader or by threads, one for each core and two batches each (the DataLoader's own setting). The towers
run in inference mode with scaled dot-product attention, on one GPU or on all cores; features stay on the device until
the end, and on a GPU batches come from pinned memory. The processor is the one on Pillow, whose pixels are ours.
"""

import collections
import concurrent.futures
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Batches ahead for each thread, as many as a DataLoader's worker makes by itself.
_AHEAD = 2


def import_without_torchvision(name: str) -> Any:
    """Import a module of transformers that believes torchvision is not installed.

    transformers then takes Pillow for pixels, and a torchvision that does not fit this torch does not stop it.
    """
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]  # None: how Python is told of no such module
    return importlib.import_module(name)


class Batches:
    """A map-style dataset of whole batches: float32 [b, 3, S, S], decoded, resized and normalised on the host."""

    def __init__(self, processor: Any, paths: Sequence[str], size: int):
        self.processor = processor
        self.chunks = [paths[start : start + size] for start in range(0, len(paths), size)]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> Any:
        images = [Image.open(path).convert("RGB") for path in self.chunks[index]]
        return self.processor(images=images, return_tensors="pt")["pixel_values"]


def by_workers(batches: Batches, workers: int, *, pin: bool = False) -> Iterator[Any]:
    """The batches, made by the processes of PyTorch's DataLoader; `pin`: in memory that a GPU copies from by itself."""
    data: Any = importlib.import_module("torch.utils.data")
    yield from data.DataLoader(batches, batch_size=None, num_workers=workers, pin_memory=pin)


def by_threads(batches: Batches, workers: int, *, pin: bool = False) -> Iterator[Any]:
    """The batches, made by threads of this process; `pin` as in `by_workers`."""

    def make(index: int) -> Any:
        return batches[index].pin_memory() if pin else batches[index]

    pending: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for index in range(len(batches)):
            pending.append(pool.submit(make, index))
            if len(pending) > _AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


LOADERS: dict[str, Callable[..., Iterator[Any]]] = {"workers": by_workers, "threads": by_threads}


class TorchEncoder:
    """Hugging Face's image tower, loaded from a folder.

    Attributes:
        device: ``cuda`` where there is one, else ``cpu``.
    """

    def __init__(self, folder: Path, *, dtype: str, loader: str, batch_size: int, workers: int):
        """Load it; `dtype` is ``"float32"``, or ``"bfloat16"`` for autocast over float32 weights."""
        self.torch: Any = importlib.import_module("torch")
        transformers = import_without_torchvision("transformers")
        self.torch.set_num_threads(workers)  # whatever OMP_NUM_THREADS says: one thread would halve the peer
        self.device = self.torch.device("cuda" if self.torch.cuda.is_available() else "cpu")
        model = transformers.CLIPModel.from_pretrained(folder, attn_implementation="sdpa")
        self.model = model.eval().to(self.device)
        self.processor = transformers.AutoImageProcessor.from_pretrained(folder)
        self.load, self.batch_size, self.workers = LOADERS[loader], batch_size, workers
        self.autocast = dtype == "bfloat16"

    def batches(self, paths: Sequence[str]) -> Iterator[Any]:
        """Pixels of the images, made ahead."""
        batches = Batches(self.processor, paths, self.batch_size)
        return self.load(batches, self.workers, pin=self.device.type == "cuda")

    def encode(self, batches: Iterable[Any]) -> np.ndarray:
        """Features, not normalised: float32 [images, embed_dim]."""
        rows, torch = [], self.torch
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            for pixels in batches:
                features = self.model.get_image_features(pixel_values=pixels.to(self.device, non_blocking=True))
                features = getattr(features, "pooler_output", features)  # an output object from transformers 5 on
                rows.append(features.float())
            return torch.cat(rows).cpu().numpy()  # waits for the device, once
