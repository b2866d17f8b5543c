"""Load an exported folder with the transformers of this interpreter and compare with what plip_jax wrote down.

Stands alone: run as ``python check_hf_folder.py FOLDER EXPECTED.npz`` by an interpreter that has torch, transformers
and pillow, and need not have plip_jax. Prints one line of JSON, the versions and the largest differences, and exits
with status 1 if one of them is too large.
"""

import io
import json
import sys

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

# The project's bounds: normalised pixels 1e-6, normalised features 1e-5; ids must be equal.
PIXEL_BOUND = 1e-6
FEATURE_BOUND = 1e-5


def load_processor(folder: str) -> CLIPProcessor:
    """The processor with the PIL image backend: the torchvision one, version 5's default, differs by up to a level."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        return CLIPProcessor.from_pretrained(folder, backend="pil")
    # Not use_fast=False: that would also take the slow tokenizer, which strips accents.
    return CLIPProcessor.from_pretrained(folder)


def main(folder: str, expected_path: str) -> int:
    """Compare; the exit status."""
    expected = np.load(expected_path)
    texts = [str(text) for text in expected["texts"]]
    image = Image.open(io.BytesIO(expected["image_png"].tobytes()))

    model, loading = CLIPModel.from_pretrained(folder, output_loading_info=True)
    model.eval()
    processor = load_processor(folder)
    inputs = processor(text=texts, images=image, return_tensors="pt", padding="max_length", truncation=True)
    with torch.no_grad():
        outputs = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])

    def difference(name: str, ours: torch.Tensor) -> float:
        theirs = expected[name]
        if tuple(ours.shape) != theirs.shape:
            raise SystemExit(f"{name}: expected shape {theirs.shape}, got {tuple(ours.shape)}")
        return float(np.abs(ours.numpy().astype(np.float64) - theirs).max())

    report = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "image_processor": type(processor.image_processor).__name__,
        "tokenizer": type(processor.tokenizer).__name__,
        "not_loaded": sorted(map(str, [*loading["missing_keys"], *loading["unexpected_keys"]])),
        "ids_equal": bool(np.array_equal(inputs["input_ids"].numpy(), expected["input_ids"])),
        "pixel_values": difference("pixel_values", inputs["pixel_values"]),
        "image_features": difference("image_features", outputs.image_embeds),
        "text_features": difference("text_features", outputs.text_embeds),
    }
    good = (
        not report["not_loaded"]
        and report["ids_equal"]
        and report["pixel_values"] <= PIXEL_BOUND
        and report["image_features"] <= FEATURE_BOUND
        and report["text_features"] <= FEATURE_BOUND
    )
    print(json.dumps({"good": good, **report}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
