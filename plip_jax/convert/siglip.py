"""A Hugging Face SigLIP folder, run in PyTorch through transformers (the extra ``torch``).

Owns what SigLIP asks for besides its weights: text padded to the full context, of which every position is attended to,
and its own preprocessing. torch and transformers are imported when a model is opened.

Source: ``modeling_siglip.py`` and ``image_processing_siglip.py`` of transformers (Zhai et al. 2023).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.convert.hf_config import PREPROCESSING_FILES, HFConfigError, read_json
from plip_jax.convert.hub import SourceError
from plip_jax.convert.image_processor import read_image_settings
from plip_jax.convert.names import WeightsError
from plip_jax.convert.safetensors_file import read_safetensors_file, read_safetensors_shards
from plip_jax.data.image import normalize_pixels
from plip_jax.model.clip import COMPUTE_DTYPES

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")
SIGLIP_FILES = ("config.json", *PREPROCESSING_FILES, *TOKENIZER_FILES)
SIGLIP_WEIGHTS = (("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),)

# What SiglipImageProcessor takes for absent fields; 3 is bicubic.
_IMAGE_DEFAULTS = {"size": 224, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_INSTALL = "pip install torch sentencepiece"


class Siglip:
    """A SigLIP in evaluation mode, on the GPU where torch has one.

    Attributes:
        settings: its preprocessing.
        feature_dim: features of the joint space.
        context_length: tokens of every text.
        logit_scale: exp of the learned one. The bias, the same for all pairs, is left out.
        weights_hash: SHA-256 (hex) of the tensors.
        tokenizer_hash: SHA-256 (hex) of the tokenizer's files.
        config: what config.json says.
    """

    def __init__(self, folder: Path, compute_dtype: str):
        """Load the model.

        Raises:
            SourceError: torch or transformers is not installed.
            HFConfigError: a JSON file is absent, damaged, or not SigLIP's.
            WeightsError: weights that are absent, damaged or incomplete.
        """
        if compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(f"compute_dtype: expected one of {', '.join(COMPUTE_DTYPES)}, got {compute_dtype!r}")
        torch, transformers = _import()
        if not (folder / "config.json").is_file():
            raise HFConfigError(f"{folder}: expected a Hugging Face SigLIP folder, no config.json")
        self.config = read_json(folder / "config.json")
        if self.config.get("model_type") != "siglip":
            raise HFConfigError(
                f"{folder}/config.json: expected model_type 'siglip' (SigLIP 2 of a fixed size has it too), got "
                f"{self.config.get('model_type')!r}"
            )
        self.weights_hash = _hash_tensors(_read_weights(folder))
        self.tokenizer_hash = _hash_files(folder, TOKENIZER_FILES)
        self._torch = torch
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        except ImportError as error:  # sentencepiece, where there is no tokenizer.json
            raise SourceError(f"{folder}: its tokenizer needs more: {_INSTALL} ({error})") from error
        self._dtype = getattr(torch, compute_dtype)
        # safetensors only: torch's own files are pickles, which are programs.
        model, report = transformers.SiglipModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
        if report["missing_keys"]:
            raise WeightsError(f"{folder}: tensors that SigLIP needs are not there: {sorted(report['missing_keys'])}")
        vision, text = model.config.vision_config, model.config.text_config
        self.settings = read_image_settings(folder, _IMAGE_DEFAULTS, image_size=vision.image_size)
        self.logit_scale = float(np.exp(model.logit_scale.item()))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.eval().requires_grad_(False).to(self._device, self._dtype)
        self.context_length: int = text.max_position_embeddings
        self.feature_dim: int = vision.hidden_size

    def image_features(self, pixels: np.ndarray) -> np.ndarray:
        """Features float32 [B, feature_dim] of uint8 pixels [B, image_size, image_size, 3], not normalised."""
        channels_first = np.ascontiguousarray(normalize_pixels(pixels, self.settings).transpose(0, 3, 1, 2))
        values = self._torch.from_numpy(channels_first).to(self._device, self._dtype)
        return self._run(self._model.get_image_features, pixel_values=values)

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """Features float32 [N, feature_dim] of texts, not normalised; one too long is cut and keeps its last token."""
        # To the full context, and no mask: SigLIP was trained with its padding in sight.
        tokens = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        return self._run(self._model.get_text_features, input_ids=tokens["input_ids"].to(self._device))

    def _run(self, function: Callable[..., Any], **inputs: Any) -> np.ndarray:
        with self._torch.inference_mode():
            output = function(**inputs)
        # transformers 5 returns an output object, 4 the features.
        return getattr(output, "pooler_output", output).float().cpu().numpy()


def _import() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise SourceError(
            f"SigLIP runs in PyTorch through transformers, and {error.name} is not installed: {_INSTALL}; or give its "
            "embeddings as files (files:FOLDER)"
        ) from error
    return torch, transformers


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    if (folder / "model.safetensors").is_file():
        return read_safetensors_file(folder / "model.safetensors")
    if (folder / "model.safetensors.index.json").is_file():
        return read_safetensors_shards(folder / "model.safetensors.index.json")
    raise WeightsError(f"{folder}: expected model.safetensors, of one file or of shards with their index")


def _hash_tensors(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} {tensors[name].dtype.name}\n".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def _hash_files(folder: Path, names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()
