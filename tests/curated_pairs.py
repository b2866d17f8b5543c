"""Pairs that have passed every stage, with their images in a store, small enough to make in a test."""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.curation.pair import Pair


def small_png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def put(store: Path, data: bytes) -> str:
    """Store bytes as WORK/store/clean does, and return their sha256."""
    digest = hashlib.sha256(data).hexdigest()
    path = store / digest[:2] / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return digest


def kept_pair(number: int, store: Path, *, split: str = "train", source: str = "twitter", **fields) -> Pair:
    given = {
        "conversation_id": f"twitter:{number}",
        "author": f"{number:032x}",
        "created_at": f"2021-{number % 12 + 1:02d}-04T05:06:07Z",
        "permalink": f"https://twitter.com/someone{number}/status/{number}",
        "url": f"https://images.example/{number}.png",
        "licence": "unknown",
        "raw_text": f"raw words of {number}",
        "hashtags": ("BreastPath",),
        "caption": f"a gland number {number}",
        "digest": hashlib.sha256(b"%d" % number).hexdigest(),
        "clean_digest": put(store, small_png(number)),
        "width": 8,
        "height": 9,
        "phash": f"{number:016x}",
        "scores": {"pathology": 0.5},
        "duplicate_group": f"{source}:{number}:0",
        "group_id": f"g{number:016x}",
    } | fields
    return Pair(f"{source}:{number}:0", source, str(number), str(number), "0", split=split, **given)
