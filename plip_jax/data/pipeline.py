"""Records to training batches: reading, decoding, augmenting, tokenizing, in the order `sampling` defines.

Owns the iterator that training consumes and its saved state, which is one number: the global batches consumed. Grain
runs the work in threads or worker processes; a batch is a pure function of its number, so neither changes what comes
out. Pixels leave as uint8; they are normalised on the device.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from absl import logging

from plip_jax.data.augment import get_augmentation, get_warped_augmentation
from plip_jax.data.caption_lengths import TokenizeFn, sample_caption_lengths
from plip_jax.data.groups import check_groupings, group_ids
from plip_jax.data.image import ImageError, decode_image
from plip_jax.data.packing import choose_rows, pack_captions, text_lengths
from plip_jax.data.records import Record, RecordError, RecordFolder, open_records
from plip_jax.data.sampling import SAMPLING_VERSION, Draw, Mixture, batch_places, make_mixture
from plip_jax.data.workers import run_ahead

Batch = dict[str, Any]

# Consecutive stand-ins that may fail before the data, not a record, is to blame.
_MAX_REPLACEMENTS = 100
_ENDLESS_SLICES = 2**48
# Rows of a slice at most, 77 MB at 224 pixels: what one worker makes at a time, and what it holds ahead.
_SLICE_ROWS = 512
_AUGMENTATION_STREAM, _CAPTION_STREAM = 0, 1


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One records folder to draw from.

    Attributes:
        path: The folder.
        weight: Its share of the examples, relative to the other sources' weights. None for all sources means shares
            by size: each record once an epoch.
        split: Which split of the folder.
    """

    path: str
    weight: float | None = None
    split: str = "train"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What decides the training batches.

    Attributes:
        sources: Where to draw from.
        global_batch_size: Examples in a step, over all processes.
        image_size: Side of the square images, pixels.
        augmentation: A name in `augment.AUGMENTATIONS`.
        seed: Decides order, captions and augmentation.
        num_workers: Worker processes; 0 works in threads of this process.
        prefetch: Batches made ahead (by each worker), of large batches slices of 512 examples; 0 makes each batch when
            it is asked for.
        on_bad_image: "error" stops at an image that does not decode and names its record; "skip" counts it and puts
            another record of the same source in its place, the same one every time; no other example moves.
        packing: Add captions packed into rows (see `packing`); off by itself where it would save too little.
        text_parts: Equal parts of a process's batch that are packed each by itself: its devices times micro-batches.
        group_by: Names in `groups.GROUPINGS`; two examples that agree in any are not to be pushed apart.
        warp_on_device: Make only the crop here; flip, affine and perspective, by the same random numbers, become one
            homography for each image, in batch["warp"], for `warp.warp_images`.
    """

    sources: tuple[SourceConfig, ...]
    global_batch_size: int
    image_size: int
    augmentation: str = "plip"
    seed: int = 0
    num_workers: int = 0
    prefetch: int = 2
    on_bad_image: str = "error"
    packing: bool = True
    text_parts: int = 1
    group_by: tuple[str, ...] = ()
    warp_on_device: bool = False

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("DataConfig.sources: expected at least one records folder, got none")
        for field, smallest in {
            "global_batch_size": 1,
            "image_size": 1,
            "seed": 0,
            "num_workers": 0,
            "prefetch": 0,
            "text_parts": 1,
        }.items():
            if getattr(self, field) < smallest:
                raise ValueError(f"DataConfig.{field}: expected at least {smallest}, got {getattr(self, field)}")
        if self.on_bad_image not in ("error", "skip"):
            raise ValueError(f"DataConfig.on_bad_image: expected 'error' or 'skip', got {self.on_bad_image!r}")
        get_augmentation(self.augmentation)
        check_groupings(self.group_by)
        if self.warp_on_device:
            get_warped_augmentation(self.augmentation)


def make_train_iterator(
    config: DataConfig, tokenizer: TokenizeFn, *, process_index: int = 0, process_count: int = 1
) -> "TrainIterator":
    """Open the sources and return the endless iterator over this process's part of each global batch.

    Args:
        config: What to read.
        tokenizer: Of the captions; pickled to worker processes.
        process_index: Which slice of each global batch.
        process_count: How many slices.

    Raises:
        RecordError: A source is not a readable records folder; the message says which command makes one.
        ValueError: The processes or the text parts do not divide the batch, or an epoch is smaller than one batch.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index: expected 0 <= index < {process_count}, got {process_index}")
    if config.global_batch_size % process_count:
        raise ValueError(
            f"global_batch_size {config.global_batch_size} does not divide into {process_count} processes: "
            f"choose a multiple of {process_count}"
        )
    if config.global_batch_size // process_count % config.text_parts:
        raise ValueError(
            f"a process's batch of {config.global_batch_size // process_count} does not divide into "
            f"{config.text_parts} text parts (devices of a process times train.accumulation_steps): choose a "
            f"global_batch_size that is a multiple of {config.text_parts * process_count}"
        )
    folders = tuple(open_records(source.path, source.split) for source in config.sources)
    mixture = make_mixture([len(folder) for folder in folders], [s.weight for s in config.sources], config.seed)
    if mixture.examples_per_epoch < config.global_batch_size:
        raise ValueError(
            f"an epoch has {mixture.examples_per_epoch} examples, fewer than one global batch of "
            f"{config.global_batch_size}: lower global_batch_size or add records"
        )
    local = config.global_batch_size // process_count
    # One slice is made by one worker, and a large batch by all of them at once.
    slices = next(count for count in range(1, local + 1) if local % count == 0 and local // count <= _SLICE_ROWS)
    batches = _BatchSource(config, tokenizer, folders, mixture, process_index, process_count, slices)
    if config.packing:
        parts = config.text_parts * process_count
        captions = config.global_batch_size // parts
        lengths, context_length = sample_caption_lengths(folders, mixture, tokenizer)
        rows = choose_rows(lengths, captions, context_length, parts, config.seed)
        batches = dataclasses.replace(batches, packed_rows=rows if rows < captions else None)
    return TrainIterator(batches)


class TrainIterator(Iterator[Batch]):
    """Endless training batches with a saved state of one global position; make it with `make_train_iterator`.

    A batch holds "image" uint8 [b, S, S, 3], "tokens" int32 [b, L], "text_length" int32 [b] (tokens up to and with
    <|endoftext|>) and "index" int64 [b] (the record's number in the concatenation of the sources), b = global batch /
    processes; with `packed_rows` and where every part of it fits, "packed" (the dict of `packing.pack_captions`); with
    `group_by`, "group_ids" int32 [b, names]; with `warp_on_device`, "warp" float32 [b, 8]. The last, partial global
    batch of an epoch is dropped; which examples fall there changes each epoch.

    Attributes:
        steps_per_epoch: Global batches in an epoch.
        num_examples: Records in all sources together.
        examples_per_epoch: Examples in an epoch; more than `num_examples` where weights repeat records.
        fingerprint: Hash of what gives a position its meaning: the records' content, weights, seed, global batch size.
        packed_rows: Rows a text part is packed into, the same on every process; None where captions are not packed.
        skipped: Records that were replaced in this process's batches since the iterator was made.
    """

    def __init__(self, batches: "_BatchSource") -> None:
        config, mixture = batches.config, batches.mixture
        self.steps_per_epoch = batches.steps_per_epoch
        self.num_examples = sum(mixture.sizes)
        self.examples_per_epoch = mixture.examples_per_epoch
        self.packed_rows = batches.packed_rows
        self.skipped = 0
        order = [SAMPLING_VERSION, [f.fingerprint for f in batches.folders], mixture.draws, config.seed]
        self.fingerprint = hashlib.sha256(json.dumps([*order, config.global_batch_size]).encode()).hexdigest()
        self._source = batches
        self._position = 0
        self._running: Any = None  # Grain's iterator, started by the first batch after a (re)start

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
            ImageError: `on_bad_image` is "error" and an image does not decode; the message names its record.
            RecordError: Likewise for a record that cannot be read. The position stays at the failed batch.
        """
        if self._running is None:
            source = dataclasses.replace(self._source, first_step=self._position)
            self._running = iter(run_ahead(source, self._source.config.num_workers, self._source.config.prefetch))
        try:
            parts = [next(self._running) for _ in range(self._source.slices)]
        except BaseException:
            self.close()  # Grain has moved on; a restart stands at the failed batch again
            raise
        batch: Batch = (
            parts[0] if len(parts) == 1 else {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}
        )
        if self.packed_rows is not None:
            text_parts = self._source.config.text_parts
            packed = pack_captions(batch["tokens"], batch["text_length"], text_parts, self.packed_rows)
            if packed is not None:
                batch["packed"] = packed
        for index in batch.pop("replaced").tolist():
            self.skipped += 1
            logging.warning("Skipped %s: its image cannot be used", self.where(index))
        self._position += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return the state, fit for JSON: the global batches consumed (not those made ahead), on any process."""
        return {"position": self._position, "fingerprint": self.fingerprint}

    def set_state(self, state: dict[str, Any], *, allow_changed_data: bool = False) -> None:
        """Continue behind the batches that a saved state has consumed, whatever number of processes saved it.

        Args:
            state: From `get_state`.
            allow_changed_data: Take the position over although it was counted on other data.

        Raises:
            ValueError: Not such a state, or it belongs to other records, weights, seed or global batch size.
        """
        position = state.get("position")
        if type(position) is not int or position < 0:
            raise ValueError(f"not a state of the data iterator: expected a 'position' of 0 or more, got {state}")
        if state.get("fingerprint") != self.fingerprint and not allow_changed_data:
            raise ValueError(
                f"the saved data position {position} belongs to other data (fingerprint {state.get('fingerprint')}, "
                f"now {self.fingerprint}): records, weights, seed or global batch size have changed. Restore them, or "
                "allow changed data to continue at the same count of batches in the new order."
            )
        self.close()
        self._position = position

    def where(self, index: int) -> str:
        """Return the place on disk of a record given by its number in all sources, as "index" holds it."""
        return self._source.where(index)

    def close(self) -> None:
        """Stop worker processes and threads; the iterator can still be used and starts them again."""
        running, self._running = self._running, None
        if running is not None and hasattr(running, "close"):
            running.close()


def _joined(slices: list[Batch]) -> Batch:
    return slices[0] if len(slices) == 1 else {n: np.concatenate([part[n] for part in slices]) for n in slices[0]}


@dataclasses.dataclass(frozen=True)
class _BatchSource:
    """Grain's random access source: the slices of this process's part of global batch `first_step`, and on."""

    config: DataConfig
    tokenizer: TokenizeFn
    folders: tuple[RecordFolder, ...]
    mixture: Mixture
    process_index: int
    process_count: int
    slices: int
    first_step: int = 0
    packed_rows: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.mixture.examples_per_epoch // self.config.global_batch_size

    def __len__(self) -> int:
        return _ENDLESS_SLICES

    def __getitem__(self, index: Any) -> Batch:
        step, part = divmod(int(index), self.slices)
        epoch, places = batch_places(
            self.first_step + step,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=self.config.global_batch_size,
            process=self.process_index,
            processes=self.process_count,
        )
        rows = len(places) // self.slices
        places = places[part * rows : (part + 1) * rows]
        size = self.config.image_size
        images = np.empty((len(places), size, size, 3), np.uint8)
        warps = np.zeros((len(places), 8), np.float32)
        captions: list[str] = []
        indices: list[int] = []
        replaced: list[int] = []
        groups: list[list[int]] = []
        for row, place in enumerate(places):
            draw, record, caption = self._load(self.mixture.draw(epoch, place), images[row], warps[row], replaced)
            indices.append(draw.index)
            captions.append(caption)
            groups.append(group_ids(self.config.group_by, record, caption, draw.source))
        tokens = np.ascontiguousarray(self.tokenizer(captions), dtype=np.int32)
        batch = {
            "image": images,
            "tokens": tokens,
            "text_length": text_lengths(tokens, self.tokenizer.eot_token_id),
            "index": np.asarray(indices, np.int64),
            "replaced": np.asarray(replaced, np.int64),
        }
        if self.config.warp_on_device:
            batch["warp"] = warps
        if self.config.group_by:
            batch["group_ids"] = np.asarray(groups, np.int32)
        return batch

    def where(self, index: int) -> str:
        """Return the place on disk of a record given by its number in all sources."""
        for folder in self.folders:
            if index < len(folder):
                return folder.where(index)
            index -= len(folder)
        raise IndexError(f"no record {index}")

    def _load(self, draw: Draw, pixels: np.ndarray, warp: np.ndarray, replaced: list[int]) -> tuple[Draw, Record, str]:
        """Fill in one example, or its stand-in; return the draw that was used, its record and its caption."""
        used = draw
        for attempt in range(_MAX_REPLACEMENTS):
            try:
                record, caption = self._example(used, pixels, warp)
            except (ImageError, RecordError):
                if self.config.on_bad_image == "error":
                    raise
                replaced.append(used.index)
                used = self.mixture.replacement(draw, attempt)
                continue
            return used, record, caption
        raise RecordError(
            f"{_MAX_REPLACEMENTS} records in a row of {self.folders[draw.source].path} cannot be used, the first "
            f"{self.where(draw.index)}: run python -m data_prep.verify {self.folders[draw.source].path}"
        )

    def _example(self, draw: Draw, pixels: np.ndarray, warp: np.ndarray) -> tuple[Record, str]:
        """Fill in the pixels, and the homography where the device applies it; return the record and its caption."""
        folder = self.folders[draw.source]
        record = folder[draw.record]
        name = f"record {record.id!r} ({folder.where(draw.record)})"
        if not record.captions:
            raise RecordError(f"{name} has no caption")
        rng = functools.partial(_generator, self.config.seed, draw)
        image = decode_image(record.image, name=name)
        augmentation, size, views = self.config.augmentation, self.config.image_size, rng(_AUGMENTATION_STREAM)
        if self.config.warp_on_device:
            pixels[...], warp[...] = get_warped_augmentation(augmentation)(image, size, views)
        else:
            pixels[...] = get_augmentation(augmentation)(image, size, views)
        return record, record.captions[int(rng(_CAPTION_STREAM).integers(len(record.captions)))]


def _generator(seed: int, draw: Draw, stream: int) -> np.random.Generator:
    """Return the randomness of one example: a pure function of (seed, epoch, record), and of the repeat within it."""
    return np.random.default_rng([seed, draw.epoch, draw.index, draw.repeat, stream])
