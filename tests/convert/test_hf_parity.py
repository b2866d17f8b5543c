"""A transformers model saved to disk and loaded here gives the same features and logits."""

from pathlib import Path

import numpy as np
import pytest
from small_models import CAPTIONS, NO_TORCH, make_tokenizer, make_torch_model, save_torch_folder

from plip_jax.api import PLIP
from plip_jax.data.image import normalize_pixels

torch = pytest.importorskip("torch", reason=NO_TORCH)

# With an empty caption and one longer than the shorter context.
TEXTS = [*CAPTIONS, "", "mucus " * 40]


@pytest.mark.parametrize(
    ("hidden_act", "legacy_eos", "context_length"),
    [("quick_gelu", False, 77), ("quick_gelu", True, 16), ("gelu", False, 16), ("gelu", True, 24)],
)
def test_features_and_logits_equal_transformers(
    tmp_path: Path, hidden_act: str, legacy_eos: bool, context_length: int
) -> None:
    reference = make_torch_model(hidden_act=hidden_act, legacy_eos=legacy_eos, context_length=context_length)
    model = PLIP.from_pretrained(save_torch_folder(tmp_path / "hf", reference), batch_size=8)
    assert model.encoder.config.activation == hidden_act
    assert model.encoder.config.text.eot_pooling == ("argmax" if legacy_eos else "first_eot")
    assert model.encoder.config.text.context_length == context_length

    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    pixels = normalize_pixels(images, model.encoder.preprocessing).transpose(0, 3, 1, 2)
    tokens = make_tokenizer(context_length)(TEXTS)
    with torch.no_grad():
        expected = reference(input_ids=torch.from_numpy(tokens).long(), pixel_values=torch.from_numpy(pixels))

    # Tolerances of the project: 1e-5 for a normalised feature, 1e-4 for a logit.
    np.testing.assert_allclose(model.encode_images(images), expected.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(model.encode_text(TEXTS), expected.text_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(model.logits_per_image(images, TEXTS), expected.logits_per_image.numpy(), atol=1e-4)
