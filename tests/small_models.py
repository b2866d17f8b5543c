"""A tokenizer and CLIPs small enough to make in a test, shared by the tests that need a whole model."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from plip_jax.convert.load import LoadedModel, hash_params
from plip_jax.data.image import Preprocessing
from plip_jax.data.tokenizer import Tokenizer, train_tokenizer
from plip_jax.model import clip
from plip_jax.model.presets import CLIPConfig, get_preset

NO_TORCH = "torch, the reference for numbers, is not installed for this Python"
CAPTIONS = [
    "An H&E image of colorectal adenocarcinoma epithelium.",
    "An H&E image of normal colon mucosa.",
    "lymphocytes in cancer-associated stroma, smooth muscle and mucus",
    "adipose tissue beside debris",
]


@functools.cache
def make_tokenizer(context_length: int = 16) -> Tokenizer:
    return train_tokenizer(CAPTIONS, vocab_size=560, context_length=context_length)


def make_config(context_length: int = 16, **changes: Any) -> CLIPConfig:
    tiny = get_preset("tiny")
    tokenizer = make_tokenizer(context_length)
    text = dataclasses.replace(
        tiny.text,
        context_length=context_length,
        vocab_size=tokenizer.vocab_size,
        eot_token_id=tokenizer.eot_token_id,
    )
    return dataclasses.replace(tiny, text=text, **changes)


def make_params(config: CLIPConfig, seed: int = 0) -> dict[str, Any]:
    """Every value random, norms and biases too, so that no two tensors can be exchanged unseen."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        mean = {"scale": 1.0, "logit_scale": 2.6592}.get(path[-1].key, 0.0)
        return rng.normal(mean, 0.15, leaf.shape).astype(np.float32) if leaf.ndim else np.float32([mean]).reshape(())

    return jax.tree_util.tree_map_with_path(draw, clip.build(config).abstract_params())


def make_model(seed: int = 0) -> LoadedModel:
    config = make_config()
    params = make_params(config, seed)
    preprocessing = Preprocessing(image_size=config.vision.image_size)
    return LoadedModel(config, params, make_tokenizer(), preprocessing, "made in a test", "none", hash_params(params))


def make_torch_model(
    *, context_length: int = 16, hidden_act: str = "quick_gelu", legacy_eos: bool = False, seed: int = 0
) -> Any:
    """A transformers model with every parameter random, in float32; skips the test where torch is not installed."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    import transformers

    tokenizer = make_tokenizer(context_length)
    shared = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": hidden_act,
    }
    config = transformers.CLIPConfig(
        text_config={
            **shared,
            "vocab_size": tokenizer.vocab_size,
            "max_position_embeddings": context_length,
            "bos_token_id": tokenizer.bot_token_id,
            "eos_token_id": 2 if legacy_eos else tokenizer.eot_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**shared, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    torch.manual_seed(seed)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def save_torch_folder(folder: Path, model: Any) -> Path:
    """The folder as transformers itself saves it (model.safetensors), with tokenizer and image settings."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(model.config.text_config.max_position_embeddings).save(folder)
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    model.save_pretrained(folder)
    return folder
