"""A model, a config and two small sets to evaluate, shared by the tests of the evaluation program."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.shards import RecordsWriter
from plip_jax.data.records import Record

MODEL = "hf"  # the name of the checkpoint's folder, so of the model in reports
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({"batch_size": 8, "compute_dtype": "float32", "allow_absent": False, "tasks": ConfigDict({
        "kather": ConfigDict({"type": "zero_shot", "data": "", "split": "test", "prompts": "kather",
                              "missing_classes": "allow"}),
        "pairs": ConfigDict({"type": "retrieval", "data": "", "split": "", "relevance": "id", "recall_at": (1, 5)}),
    }), "bootstrap": ConfigDict({"resamples": 50, "seed": 0, "level": 0.95})})
"""


def draw(seed: int) -> bytes:
    """An image whose embedding differs from the others': coarse random blocks, not square."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((60, 50), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def write_config(folder: Path) -> str:
    path = folder / "eval_test.py"
    path.write_text(CONFIG)
    return str(path)


def write_class_folders(root: Path) -> Path:
    """21 images of 3 classes under test/: with 8 devices the batch is 8, and the last one holds 5."""
    for index in range(21):
        folder = root / "test" / ("TUM", "ADI", "STR")[0 if index < 9 else 1 + index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:02d}.png").write_bytes(draw(index))
    return root


def write_pairs(folder: Path) -> Path:
    """11 images with 16 captions, one of them five times."""
    with RecordsWriter(folder) as writer:
        for index in range(11):
            captions = (f"smooth muscle number {index}", "an H&E image") if index % 2 else (f"{index} lymphocytes",)
            writer.write(Record(f"r{index}", draw(100 + index), captions), "test")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_evaluation(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def report_of(evaluation: dict[str, Any], task: str, model: str = MODEL) -> dict[str, Any]:
    """What a model's task found."""
    return evaluation["tasks"][task]["models"][model]
