"""open_clip_config.json field by field: what is read, what is refused by name, and what is written."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import make_config

from plip_jax.convert.load import load_model
from plip_jax.convert.open_clip_config import (
    OpenClipConfigError,
    config_from_open_clip,
    config_to_open_clip,
    preprocessing_from_open_clip,
    preprocessing_to_open_clip,
)
from plip_jax.convert.safetensors_file import write_safetensors_file
from plip_jax.data.image import CLIP_MEAN, CLIP_STD, Preprocessing
from plip_jax.model.presets import get_preset

# open_clip's own ViT-B-16.json.
VIT_B_16: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}


def changed(**changes: Any) -> dict[str, Any]:
    values = json.loads(json.dumps(VIT_B_16))
    for name, value in changes.items():
        tower, _, field = name.rpartition("__")
        (values[f"{tower}_cfg"] if tower else values)[field] = value
    return values


def test_open_clips_vit_b_16_is_ours_with_gelu() -> None:
    ours = get_preset("ViT-B-16")
    ours = dataclasses.replace(ours, activation="gelu", text=dataclasses.replace(ours.text, eot_pooling="argmax"))
    assert config_from_open_clip(VIT_B_16) == ours
    # Absent sizes are open_clip's defaults, which are those of this model.
    assert config_from_open_clip({"embed_dim": 512, "vision_cfg": {}, "text_cfg": {}}) == ours
    assert config_from_open_clip(changed(quick_gelu=True)).activation == "quick_gelu"
    assert config_from_open_clip(changed(vision__image_size=[224, 224])) == ours


def test_sizes_that_are_not_the_usual_ones() -> None:
    config = config_from_open_clip(
        changed(vision__head_width=96, vision__mlp_ratio=4.9231, text__mlp_ratio=2, text__heads=4)
    )
    assert (config.vision.num_heads, config.vision.mlp_dim) == (8, 3780)  # 768 * 4.9231 = 3780.9, cut
    assert (config.text.num_heads, config.text.mlp_dim) == (4, 1024)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vision__timm_model_name": "vit_base"}, "vision_cfg.timm_model_name 'vit_base'"),
        ({"vision__layers": [3, 4, 6, 3]}, r"vision_cfg.layers [3, 4, 6, 3]: a ResNet"),
        ({"vision__attentional_pool": True}, "vision_cfg.attentional_pool True"),
        ({"vision__pool_type": "avg"}, "vision_cfg.pool_type 'avg': only 'tok'"),
        ({"vision__pool_type": None}, "vision_cfg.pool_type None: only 'tok'"),  # open_clip pools nothing then
        ({"text__proj_type": None}, "text_cfg.proj_type None: only 'linear'"),
        ({"vision__norm_kwargs": {"eps": math.inf}, "text__norm_kwargs": {"eps": math.inf}}, "norm_kwargs {'eps': inf"),
        ({"vision__no_ln_pre": True}, "vision_cfg.no_ln_pre"),
        ({"vision__ls_init_value": 1e-5}, "vision_cfg.ls_init_value"),
        ({"vision__pos_embed_type": "sin_cos_2d"}, "vision_cfg.pos_embed_type"),
        ({"vision__final_ln_after_pool": True}, "vision_cfg.final_ln_after_pool"),
        ({"vision__act_kwargs": {"approximate": "tanh"}}, "vision_cfg.act_kwargs"),
        ({"vision__qk_norm": True}, "vision_cfg.qk_norm"),
        ({"vision__scale_fc": True}, "vision_cfg.scale_fc"),
        ({"vision__output_tokens": True}, "vision_cfg.output_tokens"),
        ({"vision__norm_kwargs": {"eps": 1e-6}}, "the same eps in both towers"),
        ({"vision__norm_kwargs": {"bias": False}}, "vision_cfg.norm_kwargs {'bias': False}: only eps"),
        ({"vision__registers": 4}, "vision_cfg.registers 4: unknown"),
        ({"text__hf_model_name": "bert"}, "text_cfg.hf_model_name 'bert'"),
        ({"text__embed_cls": True}, "text_cfg.embed_cls"),
        ({"text__no_causal_mask": True}, "text_cfg.no_causal_mask"),
        ({"text__pool_type": "last"}, "text_cfg.pool_type 'last': expected argmax or eos"),
        ({"text__pool_type": ["eos"]}, "text_cfg.pool_type ['eos']: expected argmax or eos"),
        ({"text__proj_type": "none"}, "text_cfg.proj_type"),
        ({"text__proj_bias": True}, "text_cfg.proj_bias"),
        ({"text__scaled_cosine_attn": True}, "text_cfg.scaled_cosine_attn"),
        ({"text__tokenizer_kwargs": {"clean": "canonicalize"}}, "text_cfg.tokenizer_kwargs"),
        ({"text__flavour": "new"}, "text_cfg.flavour 'new': unknown"),
        ({"multimodal_cfg": {"width": 512}}, "model_cfg.multimodal_cfg"),
        ({"flavour": "new"}, "model_cfg.flavour 'new': unknown"),
        ({"quick_gelu": "yes"}, "quick_gelu 'yes': expected true or false"),
        ({"vision_cfg": None}, "model_cfg.vision_cfg: expected an object"),
        ({"embed_dim": None}, "embed_dim: expected a positive integer"),
        ({"vision__image_size": [224, 448]}, "vision_cfg.image_size: expected a positive integer"),
        ({"vision__layers": 10**9}, "vision_cfg.layers: expected a positive integer of at most 256"),
        ({"text__vocab_size": 10**9}, "text_cfg.vocab_size: expected a positive integer of at most 1048576"),
        ({"text__layers": True}, "text_cfg.layers: expected a positive integer"),
        ({"vision__head_width": 100}, "expected a divisor of 768"),
        ({"vision__mlp_ratio": 1e-6}, "VisionConfig.mlp_dim: expected a positive integer, got 0"),
        ({"vision__patch_size": 15}, "expected a divisor of vision.image_size"),
        ({"text__width": "512"}, "text_cfg.width: expected a positive integer"),
        ({"text__heads": 7}, "text.num_heads: expected a divisor"),
        ({"text__mlp_ratio": float("nan")}, "text_cfg.mlp_ratio: expected a positive number"),
    ],
)  # fmt: skip
def test_what_our_model_does_not_have_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(OpenClipConfigError) as raised:
        config_from_open_clip(changed(**changes))
    assert named in str(raised.value)


def test_all_refused_settings_are_listed_at_once() -> None:
    with pytest.raises(OpenClipConfigError, match=r"(?s)^3 settings .*flavour.*qk_norm.*embed_cls"):
        config_from_open_clip(changed(vision__qk_norm=True, text__embed_cls=True, flavour="new"))


def test_settings_that_change_nothing_are_taken() -> None:
    plain = config_from_open_clip(VIT_B_16)
    inert = changed(
        custom_text=True,
        init_logit_scale=2.3,
        vision__patch_dropout=0.5,
        vision__timm_pool="avg",
        vision__qk_norm=False,
        text__pad_id=1,
        text__hf_tokenizer_name="owner/name",
        text__hf_proj_type="mlp",
        text__act_kwargs=None,
        text__embed_cls=None,
    )
    assert config_from_open_clip(inert) == plain


@pytest.mark.parametrize("preset", ["ViT-B-32", "ViT-L-14-336", "demo", "tiny"])
def test_what_is_written_is_read_back(preset: str) -> None:
    config = get_preset(preset)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, eot_pooling="argmax"))
    values = json.loads(json.dumps(config_to_open_clip(config, last_token_id=config.text.eot_token_id)))
    assert config_from_open_clip(values) == config


@pytest.mark.parametrize(("width", "mlp_dim"), [(768, 1000), (192, 1), (64, 81), (1408, 6144), (96, 417)])
def test_the_mlp_has_the_width_that_open_clip_computes(width: int, mlp_dim: int) -> None:
    vision = dataclasses.replace(get_preset("ViT-B-32").vision, width=width, num_heads=width // 32, mlp_dim=mlp_dim)
    config = dataclasses.replace(get_preset("ViT-B-32"), vision=vision)
    ratio = config_to_open_clip(config, last_token_id=49407)["vision_cfg"]["mlp_ratio"]
    assert int(width * ratio) == mlp_dim  # open_clip's transformer.py: int(d_model * mlp_ratio)


def test_pooling_is_at_end_of_text_whatever_its_id() -> None:
    config = make_config()
    last = config.text.eot_token_id
    assert "pool_type" not in config_to_open_clip(config, last_token_id=last)["text_cfg"]
    text = config_to_open_clip(config, last_token_id=last + 1)["text_cfg"]
    assert (text["pool_type"], text["eos_id"]) == ("eos", last)
    argmax = dataclasses.replace(config, text=dataclasses.replace(config.text, eot_pooling="argmax"))
    with pytest.raises(OpenClipConfigError, match="pools at the largest token id"):
        config_to_open_clip(argmax, last_token_id=last + 1)


def test_the_image_transform_is_read_and_refused_by_name() -> None:
    assert preprocessing_from_open_clip({}, 224) == Preprocessing(224, CLIP_MEAN, CLIP_STD)
    written = {"size": [224, 224], "mode": "RGB", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "fill_color": 0}
    preprocessing = preprocessing_from_open_clip({**written, "interpolation": "bicubic"}, 224)
    assert preprocessing == Preprocessing(224, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert preprocessing_from_open_clip(preprocessing_to_open_clip(preprocessing), 224) == preprocessing
    for field, value in {
        "interpolation": "bilinear",
        "resize_mode": "squash",
        "mode": "L",
        "size": 336,
        "mean": [0.5, "0.5", 0.5],
        "std": 1.0,
        "crop_pct": 0.9,
    }.items():
        with pytest.raises(OpenClipConfigError, match=rf"preprocess_cfg\.{field} "):
            preprocessing_from_open_clip({field: value}, 224)
    for numbers in ([0.5, 0.5, math.nan], [math.inf] * 3, [10**400] * 3):
        with pytest.raises(OpenClipConfigError, match=r"preprocess_cfg\.mean .*expected three numbers"):
            preprocessing_from_open_clip({"mean": numbers}, 224)
    # As where open_clip merges it: what is null is its default.
    nulls: dict[str, Any] = dict.fromkeys(("mean", "std", "size", "mode", "interpolation", "resize_mode", "fill_color"))
    assert preprocessing_from_open_clip(nulls, 224) == Preprocessing(224, CLIP_MEAN, CLIP_STD)
    with pytest.raises(OpenClipConfigError, match="expected 3 values"):
        preprocessing_from_open_clip({"mean": [0.5]}, 224)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON object"),
        ("[]", "expected a JSON object"),
        ("{}", "expected an object model_cfg"),
        ('{"model_cfg": {"vision_cfg": {}, "text_cfg": []}}', "text_cfg: expected an object"),
        (json.dumps({"model_cfg": VIT_B_16, "preprocess_cfg": 3}), "expected an object preprocess_cfg"),
        (json.dumps({"model_cfg": changed(vision__qk_norm=True)}), "qk_norm"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "open_clip_config.json").write_text(text)
    tensors = {name: np.zeros((), np.float32) for name in ("logit_scale", "visual.class_embedding")}
    write_safetensors_file(tmp_path / "open_clip_model.safetensors", tensors)
    with pytest.raises(ValueError, match=rf"(?s)open_clip_config\.json: .*{message}"):
        load_model(tmp_path)
