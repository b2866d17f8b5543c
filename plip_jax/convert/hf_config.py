"""``config.json`` and ``preprocessor_config.json`` of a Hugging Face CLIP folder, to and from our dataclasses.

Owns the fields, the defaults that HF takes for absent ones, and what is refused: a setting that our model or our
preprocessing does not have fails here, by name, and is never ignored. Knows no tensors and no files.

Source: ``configuration_clip.py`` and ``image_processing_clip.py`` of transformers (4.40 to 5.x agree on all of it).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plip_jax.data.image import CLIP_MEAN, CLIP_STD, Preprocessing
from plip_jax.model.presets import CLIPConfig, TextConfig, VisionConfig

_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_PROJECTION_DIM = 512

# The id that selects pooling at the largest token id (transformers before PR 24773 wrote it into every config).
LEGACY_EOS_TOKEN_ID = 2
_BICUBIC = 3  # PIL's number


class HFConfigError(ValueError):
    """A JSON file of a Hugging Face folder is damaged, or asks for what plip_jax does not have."""


PREPROCESSING_FILES = ("preprocessor_config.json", "processor_config.json")


def find_processor_settings(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """The image settings of a folder and the name of their file; None where there are none.

    Raises:
        HFConfigError: a damaged file.
    """
    for name in PREPROCESSING_FILES:
        if (folder / name).is_file():
            values: Any = read_json(folder / name)
            if name == "processor_config.json":
                values = values.get("image_processor")
            if isinstance(values, dict):
                return name, values
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        HFConfigError: it is none.
    """
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise HFConfigError(f"{path}: expected a JSON object, got {type(error).__name__}: {error}") from None
    if not isinstance(values, dict):
        raise HFConfigError(f"{path}: expected a JSON object, got a {type(values).__name__}")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write one JSON object, indented."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def config_from_hf(values: dict[str, Any], *, eot_token_id: int) -> CLIPConfig:
    """Make our configuration from ``config.json``.

    Args:
        values: the file's content; towers nested as ``text_config`` and ``vision_config``, or in the older
            ``text_config_dict`` and ``vision_config_dict``, which win where both are given, as in transformers.
        eot_token_id: the tokenizer's end-of-text token, which a config with the legacy ``eos_token_id`` 2 does
            not name.

    Raises:
        HFConfigError: not a CLIP, a field of the wrong type, or a setting that our model does not have.
    """
    if values.get("model_type", "clip") != "clip":
        raise HFConfigError(f"config.json: expected model_type 'clip', got {values['model_type']!r}")
    if not any(f"{tower}_config{form}" in values for tower in ("text", "vision") for form in ("", "_dict")):
        raise HFConfigError(f"config.json: expected text_config and vision_config, got only {sorted(values)[:12]}")
    text = _tower(values, "text", _TEXT_DEFAULTS)
    vision = _tower(values, "vision", _VISION_DEFAULTS)
    for field in ("hidden_act", "layer_norm_eps"):
        if text[field] != vision[field]:
            raise HFConfigError(
                f"config.json: expected one {field} for both towers, got {text[field]!r} (text) and {vision[field]!r}"
            )
    if vision["num_channels"] != 3:
        raise HFConfigError(f"config.json: expected vision_config.num_channels 3, got {vision['num_channels']!r}")
    eos = text["eos_token_id"]
    eos = eos[0] if isinstance(eos, list) and len(eos) == 1 else eos
    legacy = eos == LEGACY_EOS_TOKEN_ID
    try:
        return CLIPConfig(
            embed_dim=_integer("projection_dim", values.get("projection_dim", _PROJECTION_DIM)),
            vision=VisionConfig(
                image_size=_side("vision_config.image_size", vision["image_size"]),
                patch_size=_side("vision_config.patch_size", vision["patch_size"]),
                **_sizes("vision_config", vision),
            ),
            text=TextConfig(
                context_length=_integer("text_config.max_position_embeddings", text["max_position_embeddings"]),
                vocab_size=_integer("text_config.vocab_size", text["vocab_size"]),
                eot_token_id=eot_token_id if legacy else _integer("text_config.eos_token_id", eos),
                eot_pooling="argmax" if legacy else "first_eot",
                **_sizes("text_config", text),
            ),
            activation=text["hidden_act"],
            norm_eps=_number("layer_norm_eps", text["layer_norm_eps"]),
        )
    except HFConfigError:
        raise
    except ValueError as error:
        raise HFConfigError(f"config.json: {error}") from None


def config_to_hf(
    config: CLIPConfig, *, last_token_id: int, bos_token_id: int, pad_token_id: int, dtype: str = "float32"
) -> dict[str, Any]:
    """Make ``config.json``; inverse of `config_from_hf` but for the pooling.

    ``eos_token_id`` is always the true end-of-text id, so HF pools at its first occurrence. For a model that pools
    at the largest id that is the same token, as long as end-of-text is the tokenizer's largest
    id, ``last_token_id``; the embedding table may have more rows.

    Raises:
        HFConfigError: HF would pool at another token than this model.
    """
    text, vision = config.text, config.vision
    if text.eot_token_id == LEGACY_EOS_TOKEN_ID:
        raise HFConfigError(
            f"the end-of-text token has id {LEGACY_EOS_TOKEN_ID}, which makes transformers pool at the largest id "
            "instead; put the special tokens last in the vocabulary"
        )
    if text.eot_pooling == "argmax" and text.eot_token_id != last_token_id:
        raise HFConfigError(
            f"the model pools at the largest token id; expected end-of-text to be it ({last_token_id}), "
            f"got {text.eot_token_id}: no setting of transformers says the same"
        )
    shared = {"hidden_act": config.activation, "layer_norm_eps": config.norm_eps, "projection_dim": config.embed_dim}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "torch_dtype": dtype,  # 5.x reads it too, and writes it as "dtype"
        "projection_dim": config.embed_dim,
        # Only what a freshly initialised model would start from (ln 1/0.07); the trained value is a tensor.
        "logit_scale_init_value": 2.6592,
        "initializer_factor": 1.0,
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "hidden_size": text.width,
            "intermediate_size": text.mlp_dim,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.num_heads,
            "bos_token_id": bos_token_id,
            "eos_token_id": text.eot_token_id,
            "pad_token_id": pad_token_id,
            **shared,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "num_channels": 3,
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_dim,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.num_heads,
            **shared,
        },
    }


def preprocessing_from_hf(values: dict[str, Any]) -> Preprocessing:
    """Make our preprocessing from ``preprocessor_config.json``.

    Raises:
        HFConfigError: it asks for anything but RGB, short side to S (bicubic), centre crop S x S, 1/255, mean, std.
    """
    kind = values.get("image_processor_type") or values.get("feature_extractor_type")
    if kind is not None and kind not in _PROCESSORS:
        raise HFConfigError(
            f"preprocessor_config.json: expected an image_processor_type of {', '.join(_PROCESSORS)}, got {kind!r:.80}"
        )
    known = {*preprocessing_to_hf(Preprocessing()), *_INERT}
    strange = [name for name, value in values.items() if name not in known and value not in (None, False)]
    if strange:
        listing = ", ".join(f"{name} {values[name]!r:.80}" for name in strange[:8])
        raise HFConfigError(
            f"preprocessor_config.json: {listing}: settings that plip_jax does not have; take out what changes nothing"
        )
    for field in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if values.get(field, True) is not True:
            raise HFConfigError(f"preprocessor_config.json: expected {field} true, got {values[field]!r}")
    if values.get("resample", _BICUBIC) != _BICUBIC:
        raise HFConfigError(f"preprocessor_config.json: expected resample 3 (bicubic), got {values['resample']!r}")
    factor = _number("rescale_factor", values.get("rescale_factor", 1 / 255))
    if abs(factor * 255 - 1) > 1e-6:
        raise HFConfigError(f"preprocessor_config.json: expected rescale_factor 1/255, got {factor}")
    size = values.get("size", 224)
    if isinstance(size, dict):
        if set(size) != {"shortest_edge"}:
            raise HFConfigError(f"preprocessor_config.json: expected size {{'shortest_edge': …}}, got {size!r}")
        size = size["shortest_edge"]
    crop = values.get("crop_size", 224)
    if isinstance(crop, dict):
        if set(crop) != {"height", "width"} or crop["height"] != crop["width"]:
            raise HFConfigError(f"preprocessor_config.json: expected a square crop_size, got {crop!r}")
        crop = crop["height"]
    if _integer("size", size) != _integer("crop_size", crop):
        raise HFConfigError(
            f"preprocessor_config.json: expected size and crop_size to be equal, got {size} and {crop}: resizing the "
            "short side beyond the crop is not supported"
        )
    mean, std = (_three(field, values.get(field, default)) for field, default in _STATISTICS.items())
    try:
        return Preprocessing(image_size=size, mean=mean, std=std)
    except ValueError as error:
        raise HFConfigError(f"preprocessor_config.json: {error}") from None


# What transformers calls CLIP's transform: before 4.27, since, and with other libraries underneath. Others squash.
_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")
# Fields that change no pixel: names, what the caller gets, and on what it is computed. Any other field may be there if
# it is off (null or false), as do_pad and default_to_square of 4.57 are.
_INERT = {
    "feature_extractor_type",
    "processor_class",
    "_processor_class",
    "_valid_processor_keys",
    "transformers_version",
    "_name_or_path",
    "_commit_hash",
    "data_format",
    "input_data_format",
    "device",
    "disable_grouping",
    "return_tensors",
    "image_seq_length",
    "pad_size",  # of do_pad
}
_STATISTICS = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}


def preprocessing_to_hf(preprocessing: Preprocessing) -> dict[str, Any]:
    """Make ``preprocessor_config.json``; inverse of `preprocessing_from_hf`."""
    side = preprocessing.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _tower(values: dict[str, Any], tower: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """The fields of one tower; the older ``*_config_dict`` replaces, with HF's defaults, what ``*_config`` says."""
    for form in (f"{tower}_config_dict", f"{tower}_config"):
        given = values.get(form)
        if given is None:
            continue
        if not isinstance(given, dict):
            raise HFConfigError(f"config.json: expected {form} to be an object, got {given!r:.80}")
        return {field: given.get(field, default) for field, default in defaults.items()}
    return dict(defaults)


def _sizes(tower: str, values: dict[str, Any]) -> dict[str, int]:
    names = {
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "mlp_dim": "intermediate_size",
    }
    return {ours: _integer(f"{tower}.{theirs}", values[theirs]) for ours, theirs in names.items()}


# A network beyond these is no CLIP; a lying config must not make us allocate for it.
_MAX_SIZE = 1 << 20
_MAX_DEPTH = 256
_MAX_NUMBER = 1e6


def _integer(field: str, value: Any) -> int:
    largest = _MAX_DEPTH if field.endswith("num_hidden_layers") else _MAX_SIZE
    if type(value) is not int or not 0 <= value <= largest:
        raise HFConfigError(f"{field}: expected an integer from 0 to {largest}, got {value!r:.80}")
    return value


def _number(field: str, value: Any) -> float:
    # Python's JSON reads NaN, Infinity and integers of any length.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MAX_NUMBER:
        raise HFConfigError(f"{field}: expected a number below {_MAX_NUMBER:g}, got {value!r:.80}")
    return float(value)


def _side(field: str, value: Any) -> int:
    """A side in pixels, given as one number or as two equal ones."""
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return _integer(field, value)


def _three(field: str, value: Any) -> tuple[float, float, float]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise HFConfigError(f"preprocessor_config.json: expected {field} of three numbers, got {value!r:.80}")
    red, green, blue = (_number(field, channel) for channel in value)
    return red, green, blue
