"""config.json and preprocessor_config.json: HF's defaults, its older forms, and refusal of what we do not have."""

import dataclasses
from typing import Any

import pytest
from transformers import CLIPConfig as TransformersConfig

from plip_jax.convert.hf_config import (
    HFConfigError,
    config_from_hf,
    config_to_hf,
    preprocessing_from_hf,
    preprocessing_to_hf,
)
from plip_jax.data.image import Preprocessing
from plip_jax.model.presets import PRESETS, get_preset

EOT = 49407


@pytest.mark.parametrize("name", list(PRESETS))
def test_written_config_reads_back(name: str) -> None:
    config = PRESETS[name]
    eot = config.text.eot_token_id
    values = config_to_hf(config, last_token_id=eot, bos_token_id=eot - 1, pad_token_id=eot)
    assert config_from_hf(values, eot_token_id=config.text.eot_token_id) == config


def test_absent_fields_are_those_of_vit_b_32() -> None:
    assert config_from_hf({"text_config": {}, "vision_config": {}}, eot_token_id=EOT) == get_preset("ViT-B-32")


def test_transformers_own_default_config_is_vit_b_32() -> None:
    assert config_from_hf(TransformersConfig().to_dict(), eot_token_id=EOT) == get_preset("ViT-B-32")


def test_older_nested_form_wins_with_its_defaults() -> None:
    """As transformers reads it: what text_config_dict leaves out is the default, not text_config's value."""
    values = {
        "text_config": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2},
        "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12},
        "vision_config": {"patch_size": 16},
        "vision_config_dict": None,
        "projection_dim": 768,
    }
    ours = config_from_hf(values, eot_token_id=EOT)
    theirs: Any = TransformersConfig(**values)
    assert (ours.text.width, ours.text.depth, ours.text.num_heads) == (768, 12, 12)
    assert (theirs.text_config.hidden_size, theirs.text_config.num_hidden_layers) == (768, 12)
    assert ours.vision.patch_size == theirs.vision_config.patch_size == 16
    assert ours.embed_dim == 768


def test_legacy_eos_selects_argmax_and_takes_the_id_from_the_tokenizer() -> None:
    text = config_from_hf({"text_config": {"eos_token_id": 2}}, eot_token_id=49407).text
    assert (text.eot_pooling, text.eot_token_id) == ("argmax", 49407)
    text = config_from_hf({"text_config": {"eos_token_id": [49407]}}, eot_token_id=5).text
    assert (text.eot_pooling, text.eot_token_id) == ("first_eot", 49407)


def test_pooling_that_transformers_cannot_express_is_refused() -> None:
    tiny = get_preset("tiny")
    last: dict[str, Any] = {"last_token_id": 599, "bos_token_id": 598, "pad_token_id": 599}
    # Rows of the table beyond the vocabulary are no token's: end-of-text is the largest id still.
    for rows in (600, 608):
        text = dataclasses.replace(tiny.text, eot_pooling="argmax", vocab_size=rows)
        argmax = dataclasses.replace(tiny, text=text)
        assert config_to_hf(argmax, **last)["text_config"]["eos_token_id"] == 599
    inside = dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, eot_pooling="argmax", eot_token_id=7))
    with pytest.raises(HFConfigError, match="largest token id"):
        config_to_hf(inside, **last)
    two = dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, eot_token_id=2))
    with pytest.raises(HFConfigError, match="put the special tokens last"):
        config_to_hf(two, **last)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "expected text_config and vision_config"),
        ({"model_type": "siglip", "text_config": {}}, "model_type 'clip'"),
        ({"text_config": []}, "text_config to be an object"),
        ({"text_config": {"hidden_act": "gelu"}}, "one hidden_act for both towers"),
        ({"text_config": {"hidden_act": "relu"}, "vision_config": {"hidden_act": "relu"}}, "activation"),
        ({"text_config": {"layer_norm_eps": 1e-6}}, "one layer_norm_eps"),
        ({"vision_config": {"num_channels": 1}}, "num_channels 3"),
        ({"vision_config": {"patch_size": 33}}, "divisor of vision.image_size"),
        ({"vision_config": {"patch_size": 0}}, "positive"),
        ({"vision_config": {"patch_size": [16, 32]}}, "patch_size: expected an integer"),
        ({"text_config": {"hidden_size": "512"}}, "hidden_size: expected an integer"),
        ({"text_config": {"hidden_size": True}}, "hidden_size: expected an integer"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers: expected an integer from 0 to 256"),
        ({"text_config": {"vocab_size": 10**12}}, "vocab_size: expected an integer"),
        ({"text_config": {"eos_token_id": [1, 2]}}, "eos_token_id: expected an integer"),
        ({"text_config": {"eos_token_id": None}}, "eos_token_id: expected an integer"),
        ({"text_config": {}, "projection_dim": 0}, "embed_dim"),
        ({tower: {"layer_norm_eps": float("inf")} for tower in ("text_config", "vision_config")}, "layer_norm_eps"),
    ],
)
def test_config_that_we_cannot_honour_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(HFConfigError, match=message):
        config_from_hf(values, eot_token_id=EOT)


def test_preprocessing_reads_back_and_defaults_are_clips() -> None:
    preprocessing = Preprocessing(image_size=64, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert preprocessing_from_hf(preprocessing_to_hf(preprocessing)) == preprocessing
    assert preprocessing_from_hf({}) == Preprocessing()
    # As PLIP's and OpenAI's own folders have it.
    assert preprocessing_from_hf({"size": 224, "crop_size": 224, "resample": 3}) == Preprocessing()


@pytest.mark.parametrize(
    "values",
    [
        {"image_processor_type": "CLIPImageProcessor", "_valid_processor_keys": ["images"], "do_convert_rgb": True},
        {"feature_extractor_type": "CLIPFeatureExtractor", "processor_class": "CLIPProcessor"},
        # What CLIPImageProcessorFast of transformers 4.57.6 writes.
        {
            "crop_size": {"height": 224, "width": 224},
            "data_format": "channels_first",
            "default_to_square": False,
            "device": None,
            "disable_grouping": None,
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_pad": None,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_processor_type": "CLIPImageProcessorFast",
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "input_data_format": None,
            "pad_size": None,
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "return_tensors": None,
            "size": {"shortest_edge": 224},
        },
    ],
)
def test_settings_that_change_no_pixel_are_taken(values: dict[str, Any]) -> None:
    assert preprocessing_from_hf(values) == Preprocessing()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_resize": False}, "do_resize true"),
        ({"do_center_crop": False}, "do_center_crop true"),
        ({"do_normalize": None}, "do_normalize true"),
        ({"do_rescale": False}, "do_rescale true"),
        ({"resample": 2}, "bicubic"),
        ({"rescale_factor": 1}, "1/255"),
        ({"rescale_factor": "x"}, "expected a number"),
        ({"size": {"height": 224, "width": 224}}, "shortest_edge"),
        ({"size": 256}, "size and crop_size to be equal"),
        ({"size": "224"}, "size: expected an integer"),
        ({"crop_size": {"height": 224, "width": 200}}, "square crop_size"),
        ({"image_mean": [0.5]}, "three numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "positive"),
        ({"image_std": [0.5, 0.5, "1"]}, "expected a number"),
        ({"image_std": [float("inf")] * 3}, "image_std: expected a number below"),
        ({"image_mean": [float("nan")] * 3}, "image_mean: expected a number below"),
        ({"image_mean": [10**400] * 3}, "image_mean: expected a number below"),
        ({"image_processor_type": "ViTImageProcessor"}, "image_processor_type of CLIPImageProcessor, .*got 'ViTImage"),
        ({"feature_extractor_type": "ViTFeatureExtractor"}, "got 'ViTFeatureExtractor'"),
        ({"do_flip_channel_order": True, "do_pad": True}, "do_flip_channel_order True, do_pad True: settings that"),
        ({"default_to_square": True}, "default_to_square True"),
        ({"use_square_size": True}, "use_square_size True"),
    ],
)
def test_preprocessing_that_we_cannot_honour_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(HFConfigError, match=message):
        preprocessing_from_hf(values)
