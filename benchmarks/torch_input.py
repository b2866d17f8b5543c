"""The peers of `benchmarks.input_pipeline`: PLIP's training view as PyTorch programs make it.

torchvision is not imported, because it does not load beside every PyTorch; its transforms of PIL images are a few calls
of Pillow and of torch's random numbers, written out here in the order and with the calls that torchvision makes
(``torchvision/transforms/_functional_pil.py``, BSD-3-Clause; no code copied). The settings are PLIP's.
"""

import io
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from plip_jax.data.image import CLIP_MEAN, CLIP_STD
from plip_jax.data.tokenizer import load_tokenizer

FILL = (127, 127, 127)


class TrainTransform:
    """Resize(512), RandomCrop, RandomHorizontalFlip, RandomAffine, RandomPerspective, ToTensor, Normalize."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.mean = torch.tensor(CLIP_MEAN).view(3, 1, 1)
        self.std = torch.tensor(CLIP_STD).view(3, 1, 1)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return float32 [3, size, size]."""
        image = self._crop(self._resize(image))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = self._affine(image)
        if torch.rand(1) < 0.3:
            image = self._perspective(image)
        tensor = torch.from_numpy(np.array(image, np.uint8, copy=True))
        tensor = tensor.view(self.size, self.size, 3).permute((2, 0, 1)).contiguous().to(torch.float32).div(255)
        return tensor.clone().sub_(self.mean).div_(self.std)

    def _resize(self, image: Image.Image) -> Image.Image:
        short_side = round(self.size * 512 / 224)
        width, height = image.size
        if width <= height:
            size = short_side, int(short_side * height / width)
        else:
            size = int(short_side * width / height), short_side
        return image.resize(size, Image.Resampling.BICUBIC)

    def _crop(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        top = int(torch.randint(0, height - self.size + 1, (1,)).item())
        left = int(torch.randint(0, width - self.size + 1, (1,)).item())
        return image.crop((left, top, left + self.size, top + self.size))

    def _affine(self, image: Image.Image) -> Image.Image:
        def draw(low: float, high: float) -> float:
            return float(torch.empty(1).uniform_(low, high).item())

        turn, reach, centre = math.radians(draw(-10, 10)), 0.1 * self.size, self.size / 2
        shift_x, shift_y = round(draw(-reach, reach)), round(draw(-reach, reach))
        scale, slant = draw(0.8, 1.2), math.tan(math.radians(draw(-15, 15)))
        cos, sin = math.cos(turn), math.sin(turn)
        a, b, d, e = (cos - sin * slant) / scale, (cos * slant + sin) / scale, -sin / scale, cos / scale
        x, y = -centre - shift_x, -centre - shift_y
        matrix = (a, b, a * x + b * y + centre, d, e, d * x + e * y + centre)
        size = (self.size, self.size)
        return image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=FILL)

    def _perspective(self, image: Image.Image) -> Image.Image:
        last, reach = self.size - 1, int(0.3 * (self.size // 2))
        start = [(0, 0), (last, 0), (last, last), (0, last)]
        end = []
        for x, y in start:
            move = [int(torch.randint(0, reach + 1, (1,)).item()) for _ in range(2)]
            end.append((abs(x - move[0]), abs(y - move[1])))
        matrix = torch.zeros(8, 8, dtype=torch.float64)
        for i, ((x, y), (u, v)) in enumerate(zip(end, start, strict=True)):
            matrix[2 * i] = torch.tensor([x, y, 1, 0, 0, 0, -u * x, -u * y])
            matrix[2 * i + 1] = torch.tensor([0, 0, 0, x, y, 1, -v * x, -v * y])
        right = torch.tensor(start, dtype=torch.float64).view(8)
        coefficients = torch.linalg.lstsq(matrix, right, driver="gels").solution.to(torch.float32).tolist()
        size = (self.size, self.size)
        return image.transform(
            size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR, fillcolor=FILL
        )


class FileDataset(torch.utils.data.Dataset):
    """Image files and their captions, as PLIP's training code reads its table; endless by wrapping around."""

    def __init__(self, files: list[Path], captions: list[str], tokenizer: Path, size: int, length: int) -> None:
        self.files, self.captions, self.length = files, captions, length
        self.transform, self.tokenizer = TrainTransform(size), load_tokenizer(tokenizer)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        index %= len(self.files)
        image = self.transform(Image.open(self.files[index]).convert("RGB"))
        return image, torch.from_numpy(self.tokenizer(self.captions[index])[0])


class TarDataset(torch.utils.data.IterableDataset):
    """Tar shards read in order, what open_clip does through webdataset, for where that is not installed."""

    def __init__(self, shards: list[Path], tokenizer: Path, size: int) -> None:
        self.shards, self.transform, self.tokenizer = shards, TrainTransform(size), load_tokenizer(tokenizer)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            for shard in self.shards:
                with tarfile.open(shard, mode="r|") as archive:
                    image = b""
                    for member in archive:
                        content = archive.extractfile(member)
                        data = content.read() if content else b""
                        if member.name.endswith(".jpg"):
                            image = data
                        else:
                            pixels = self.transform(Image.open(io.BytesIO(image)).convert("RGB"))
                            yield pixels, torch.from_numpy(self.tokenizer(data.decode())[0])


def file_batches(files: list[Path], captions: list[str], tokenizer: Path, size: int, batch: int) -> Iterator[Any]:
    """Batches of a `DataLoader` with one worker process over image files, shuffled."""
    dataset = FileDataset(files, captions, tokenizer, size, length=10**6)
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=1, drop_last=True)
    return iter(loader)


def tar_batches(shards: list[Path], tokenizer: Path, size: int, batch: int) -> Iterator[Any]:
    """Batches of open_clip's pipeline with one worker process over tar shards: webdataset's own where installed."""
    try:
        import webdataset  # pyright: ignore[reportMissingImports]  # optional
    except ImportError:
        loader = torch.utils.data.DataLoader(TarDataset(shards, tokenizer, size), batch_size=batch, num_workers=1)
        return iter(loader)
    transform, tokenize = TrainTransform(size), load_tokenizer(tokenizer)
    # The stages of open_clip's get_wds_dataset (training/data.py, MIT).
    pipeline = webdataset.DataPipeline(
        webdataset.ResampledShards([str(shard) for shard in shards]),
        webdataset.tarfile_to_samples(),
        webdataset.shuffle(bufsize=64, initial=16),
        webdataset.decode("pilrgb"),
        webdataset.rename(image="jpg", text="txt"),
        webdataset.map_dict(image=transform, text=lambda text: torch.from_numpy(tokenize(text)[0])),
        webdataset.to_tuple("image", "text"),
        webdataset.batched(batch, partial=False),
    )
    return iter(webdataset.WebLoader(pipeline, batch_size=None, shuffle=False, num_workers=1, persistent_workers=True))
