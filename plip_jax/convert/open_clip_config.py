"""``open_clip_config.json``, to and from our dataclasses.

Owns the fields, the defaults that open_clip takes for absent ones, and what is refused: a setting that our model or our
preprocessing does not have fails here, by name, and is never ignored. Knows no tensors and no files.

Source: ``model.py`` (``CLIPVisionCfg``, ``CLIPTextCfg``, ``CLIP``), ``transform.py`` (``PreprocessCfg``) and
``factory.py`` of open_clip 3.3; older versions have fewer of the fields.
"""

import math
from collections.abc import Mapping
from typing import Any

from plip_jax.data.image import CLIP_MEAN, CLIP_STD, Preprocessing
from plip_jax.model.presets import CLIPConfig, EotPooling, TextConfig, VisionConfig

CONFIG_FILE = "open_clip_config.json"

# Fields that we have, with open_clip's defaults.
_MODEL_DEFAULTS: dict[str, Any] = {"embed_dim": None, "quick_gelu": False, "vision_cfg": None, "text_cfg": None}
_VISION_DEFAULTS: dict[str, Any] = {
    "layers": 12,
    "width": 768,
    "head_width": 64,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "image_size": 224,
    "norm_kwargs": None,
}
_TEXT_DEFAULTS: dict[str, Any] = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
    "pool_type": "argmax",
    "eos_id": 2,
    "norm_kwargs": None,
}
_PREPROCESS_DEFAULTS: dict[str, Any] = {"size": None, "mean": CLIP_MEAN, "std": CLIP_STD}

# Fields that we do not have, with the one value at which open_clip's network is ours.
_BLOCK_PLAIN: dict[str, Any] = {
    "ls_init_value": None,
    "act_kwargs": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "final_ln_after_pool": False,
    "output_tokens": False,
}
_MODEL_PLAIN: dict[str, Any] = {"multimodal_cfg": None}
_VISION_PLAIN: dict[str, Any] = {
    **_BLOCK_PLAIN,
    "timm_model_name": None,
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "pool_type": "tok",
    "global_average_pool": False,
    "input_patchnorm": False,
}
_TEXT_PLAIN: dict[str, Any] = {
    **_BLOCK_PLAIN,
    "hf_model_name": None,
    "tokenizer_mode": None,
    "tokenizer_kwargs": None,
    "embed_cls": False,
    "no_causal_mask": False,
    "proj_bias": False,
    "proj_type": "linear",
}
_PREPROCESS_PLAIN: dict[str, Any] = {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"}

# Fields that change nothing: of how a new model begins, of training, or of a part that the fields above refuse.
_MODEL_INERT = {"init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "custom_text", "output_dict"}
_VISION_INERT = {
    "patch_dropout",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "timm_proj_bias",
    "timm_drop",
    "timm_drop_path",
}
_TEXT_INERT = {"hf_tokenizer_name", "pad_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"}
_PREPROCESS_INERT = {"fill_color"}

# Beyond these it is no CLIP, and a file that says so would keep what follows busy for minutes.
_MAX_DEPTH = 256
_MAX_SIZE = 1 << 20
_MAX_STATISTIC = 1e6  # Python's JSON reads NaN and Infinity

_TEXT_POOLING: dict[str, EotPooling] = {"argmax": "argmax", "eos": "first_eot"}


class OpenClipConfigError(ValueError):
    """An ``open_clip_config.json`` that is damaged, or asks for what plip_jax does not have."""


def config_from_open_clip(values: Mapping[str, Any]) -> CLIPConfig:
    """Make our configuration from ``model_cfg``.

    open_clip's ``argmax`` pooling names no end-of-text token: the id is the vocabulary's last then, until the
    tokenizer is known.

    Raises:
        OpenClipConfigError: a field of the wrong type, or settings that our model does not have; all are listed.
    """
    faults: list[str] = []
    model = _known(values, "model_cfg", _MODEL_DEFAULTS, _MODEL_PLAIN, _MODEL_INERT, faults)
    for tower in ("vision_cfg", "text_cfg"):
        if not isinstance(model[tower], Mapping):
            raise OpenClipConfigError(f"model_cfg.{tower}: expected an object, got {model[tower]!r:.80}")
    vision = _known(model["vision_cfg"], "vision_cfg", _VISION_DEFAULTS, _VISION_PLAIN, _VISION_INERT, faults)
    text = _known(model["text_cfg"], "text_cfg", _TEXT_DEFAULTS, _TEXT_PLAIN, _TEXT_INERT, faults)
    if isinstance(vision["layers"], list):
        faults.append(f"vision_cfg.layers {vision['layers']}: a ResNet")
    if not isinstance(model["quick_gelu"], bool):
        faults.append(f"quick_gelu {model['quick_gelu']!r}: expected true or false")
    if text["pool_type"] not in tuple(_TEXT_POOLING):  # a tuple: what came may not be hashable
        faults.append(f"text_cfg.pool_type {text['pool_type']!r}: expected {' or '.join(_TEXT_POOLING)}")
    if (eps := _norm_eps(vision, "vision_cfg", faults)) != _norm_eps(text, "text_cfg", faults):
        faults.append("norm_kwargs: expected the same eps in both towers")
    if faults:
        raise OpenClipConfigError(
            f"{len(faults)} settings that plip_jax's CLIP (two Transformers, class token, causal text) does not have:"
            "\n  " + "\n  ".join(faults)
        )
    try:
        return CLIPConfig(
            embed_dim=_integer("embed_dim", model["embed_dim"]),
            vision=_vision(vision),
            text=_text(text),
            activation="quick_gelu" if model["quick_gelu"] else "gelu",
            norm_eps=eps,
        )
    except OpenClipConfigError:
        raise
    except ValueError as error:
        raise OpenClipConfigError(f"model_cfg: {error}") from None


def _vision(vision: Mapping[str, Any]) -> VisionConfig:
    width = _integer("vision_cfg.width", vision["width"])
    head_width = _integer("vision_cfg.head_width", vision["head_width"])
    if width % head_width:
        raise OpenClipConfigError(f"vision_cfg.head_width: expected a divisor of {width}, got {head_width}")
    return VisionConfig(
        image_size=_side("vision_cfg.image_size", vision["image_size"]),
        patch_size=_side("vision_cfg.patch_size", vision["patch_size"]),
        width=width,
        depth=_integer("vision_cfg.layers", vision["layers"]),
        num_heads=width // head_width,
        mlp_dim=int(width * _number("vision_cfg.mlp_ratio", vision["mlp_ratio"])),
    )


def _text(text: Mapping[str, Any]) -> TextConfig:
    width = _integer("text_cfg.width", text["width"])
    vocab_size = _integer("text_cfg.vocab_size", text["vocab_size"])
    pooling = _TEXT_POOLING[text["pool_type"]]
    return TextConfig(
        context_length=_integer("text_cfg.context_length", text["context_length"]),
        vocab_size=vocab_size,
        width=width,
        depth=_integer("text_cfg.layers", text["layers"]),
        num_heads=_integer("text_cfg.heads", text["heads"]),
        mlp_dim=int(width * _number("text_cfg.mlp_ratio", text["mlp_ratio"])),
        eot_token_id=_integer("text_cfg.eos_id", text["eos_id"]) if pooling == "first_eot" else vocab_size - 1,
        eot_pooling=pooling,
    )


def config_to_open_clip(config: CLIPConfig, *, last_token_id: int) -> dict[str, Any]:
    """Make ``model_cfg``; inverse of `config_from_open_clip` but for the pooling.

    Args:
        config: the network.
        last_token_id: the largest id that the tokenizer makes. Where end-of-text is it, as in CLIP's own vocabulary,
            the pooling is ``argmax``, which every version of open_clip knows; else it is ``eos``.

    Raises:
        OpenClipConfigError: open_clip would pool at another token than this model.
    """
    vision, text = config.vision, config.text
    is_last = text.eot_token_id == last_token_id
    if text.eot_pooling == "argmax" and not is_last:
        raise OpenClipConfigError(
            f"the model pools at the largest token id; expected end-of-text to be it ({last_token_id}), got "
            f"{text.eot_token_id}"
        )
    norm = {} if config.norm_eps == 1e-5 else {"norm_kwargs": {"eps": config.norm_eps}}
    vision_heads = {} if vision.width == 64 * vision.num_heads else {"head_width": vision.width // vision.num_heads}
    pooling = {} if is_last else {"pool_type": "eos", "eos_id": text.eot_token_id}
    return {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.depth,
            "width": vision.width,
            "patch_size": vision.patch_size,
            **vision_heads,
            **_mlp_ratio(vision.width, vision.mlp_dim),
            **norm,
        },
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.num_heads,
            "layers": text.depth,
            **_mlp_ratio(text.width, text.mlp_dim),
            **norm,
            **pooling,
        },
    }


def preprocessing_from_open_clip(values: Mapping[str, Any], image_size: int) -> Preprocessing:
    """Make our preprocessing from ``preprocess_cfg``, for a model that takes images of `image_size`.

    Raises:
        OpenClipConfigError: it asks for anything but RGB, short side to S (bicubic), centre crop S x S, mean, std.
    """
    faults: list[str] = []
    values = {name: value for name, value in values.items() if value is not None}  # open_clip's default is taken then
    found = _known(values, "preprocess_cfg", _PREPROCESS_DEFAULTS, _PREPROCESS_PLAIN, _PREPROCESS_INERT, faults)
    if found["size"] is not None and _side("preprocess_cfg.size", found["size"]) != image_size:
        faults.append(f"preprocess_cfg.size {found['size']}: expected the model's image_size {image_size}")
    for field in ("mean", "std"):
        numbers = found[field]
        if not isinstance(numbers, list | tuple) or not all(_is_statistic(n) for n in numbers):
            faults.append(f"preprocess_cfg.{field} {numbers!r:.80}: expected three numbers")
    if faults:
        raise OpenClipConfigError("an image transform that plip_jax does not have:\n  " + "\n  ".join(faults))
    try:
        return Preprocessing(image_size=image_size, mean=found["mean"], std=found["std"])
    except ValueError as error:
        raise OpenClipConfigError(f"preprocess_cfg: {error}") from None


def preprocessing_to_open_clip(preprocessing: Preprocessing) -> dict[str, Any]:
    """Make ``preprocess_cfg``; inverse of `preprocessing_from_open_clip`."""
    return {
        "size": preprocessing.image_size,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        **_PREPROCESS_PLAIN,
    }


def _known(
    values: Mapping[str, Any],
    where: str,
    defaults: Mapping[str, Any],
    plain: Mapping[str, Any],
    inert: set[str],
    faults: list[str],
) -> dict[str, Any]:
    """The fields of `defaults`; every other that is not known, or is not at its plain value, goes to `faults`."""
    for name, value in values.items():
        # Null turns off what is off already; of what is on, such as a pool_type, it is another setting.
        is_plain = name in plain and (value == plain[name] or (value is None and not plain[name]))
        if name in defaults or name in inert or is_plain:
            continue
        wanted = f"only {plain[name]!r} is supported" if name in plain else "unknown"
        faults.append(f"{where}.{name} {value!r:.80}: {wanted}")
    return {name: values.get(name, default) for name, default in defaults.items()}


def _is_statistic(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _MAX_STATISTIC


def _norm_eps(tower: Mapping[str, Any], where: str, faults: list[str]) -> float:
    match tower["norm_kwargs"]:
        case None:
            return 1e-5
        case {"eps": float(eps), **others} if not others and 0 < eps < 1:
            return eps
    faults.append(f"{where}.norm_kwargs {tower['norm_kwargs']!r:.80}: only eps, between 0 and 1, is supported")
    return 1e-5


def _mlp_ratio(width: int, mlp_dim: int) -> dict[str, float]:
    """The field that makes open_clip's ``int(width * mlp_ratio)`` this many features."""
    ratio = mlp_dim / width
    if int(width * ratio) < mlp_dim:  # 1,000 / 768 * 768 is a little less than 1,000
        ratio = math.nextafter(ratio, math.inf)
    return {} if ratio == 4.0 else {"mlp_ratio": ratio}


def _integer(name: str, value: Any) -> int:
    largest = _MAX_DEPTH if name.endswith(".layers") else _MAX_SIZE
    if type(value) is not int or not 1 <= value <= largest:
        raise OpenClipConfigError(f"{name}: expected a positive integer of at most {largest}, got {value!r:.80}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1000:
        raise OpenClipConfigError(f"{name}: expected a positive number, got {value!r:.80}")
    return value


def _side(name: str, value: Any) -> int:
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return _integer(name, value)
