"""Twenty training steps against PyTorch: CLIPModel, torch AdamW, the same schedule, the same batches, float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plip_jax import sharding
from plip_jax.convert import names
from plip_jax.data.image import Preprocessing, normalize_pixels
from plip_jax.model import clip
from plip_jax.model.presets import get_preset
from plip_jax.training.losses import LOGIT_SCALE_RANGE, LossConfig, get_loss
from plip_jax.training.optim import OptimConfig, learning_rate_schedule, make_optimizer
from plip_jax.training.state import init_state
from plip_jax.training.step import Task, UpdateRule, make_train_step

torch = pytest.importorskip("torch", reason="the parity tests need PyTorch (the test extra installs it)")

STEPS, BATCH = 20, 16
CONFIG = get_preset("tiny")
PIXELS = Preprocessing(image_size=32)
OPTIM = OptimConfig(learning_rate=1e-3, warmup_steps=5, weight_decay=0.1, clip_norm=1.0)


def make_torch_model(params):
    """The tiny network as a CLIPModel with our weights."""
    from transformers import CLIPConfig, CLIPModel

    def tower(ours, **more):
        return {
            "hidden_size": ours.width,
            "intermediate_size": ours.mlp_dim,
            "num_hidden_layers": ours.depth,
            "num_attention_heads": ours.num_heads,
            "hidden_act": "quick_gelu",
            **more,
        }

    text = CONFIG.text
    hf_config = CLIPConfig(
        text_config=tower(
            text,
            vocab_size=text.vocab_size,
            max_position_embeddings=text.context_length,
            bos_token_id=text.eot_token_id - 1,
            eos_token_id=text.eot_token_id,
            pad_token_id=text.eot_token_id,
        ),
        vision_config=tower(CONFIG.vision, image_size=32, patch_size=16),
        projection_dim=CONFIG.embed_dim,
        attn_implementation="eager",
    )
    model = CLIPModel(hf_config)
    tensors = names.from_params(jax.tree.map(np.asarray, params), CONFIG, "hf")
    missing, extra = model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()}, strict=False)
    assert not extra
    assert all(name.endswith("position_ids") for name in missing)
    return model.train()


def make_batches():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 500, (STEPS, BATCH, 16)).astype(np.int32)
    lengths = rng.integers(4, 17, (STEPS, BATCH))
    tokens[np.arange(16) >= lengths[..., None] - 1] = CONFIG.text.eot_token_id
    images = rng.integers(0, 256, (STEPS, BATCH, 32, 32, 3), dtype=np.uint8)
    return [{"image": image, "text": row} for image, row in zip(images, tokens, strict=True)]


def our_losses(params, batches):
    model = clip.build(CONFIG)
    task = Task(
        lambda p, batch, keys: model.encode_image(p, normalize_pixels(batch["image"], PIXELS), keys),
        model.encode_text,
        get_loss(LossConfig("contrastive")),
        seed=0,
    )
    optimizer = make_optimizer(OPTIM, STEPS)
    step = make_train_step(
        task, UpdateRule(optimizer, learning_rate_schedule(OPTIM, STEPS), task.loss.logit_scale_range)
    )
    mesh = sharding.make_mesh(jax.devices()[:1])
    state = init_state(params, optimizer, sharding.replicated(mesh))
    losses, rates = [], []
    for batch in batches:
        state, metrics = step(state, sharding.put_batch(mesh, batch))
        losses.append(float(metrics["loss"]))
        rates.append(float(metrics["learning_rate"]))
    return losses, rates


def torch_losses(params, batches, rates):
    model = make_torch_model(params)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    losses = []
    for batch, rate in zip(batches, rates, strict=True):
        pixels = np.asarray(normalize_pixels(batch["image"], PIXELS)).transpose(0, 3, 1, 2).copy()
        tokens = torch.from_numpy(batch["text"].astype(np.int64))
        loss = model(input_ids=tokens, pixel_values=torch.from_numpy(pixels), return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(*LOGIT_SCALE_RANGE)
        losses.append(float(loss.detach()))
    return losses


def schedule_by_hand() -> list[float]:
    rates = []
    for step in range(STEPS):
        warm = (step + 1) / 5
        after = 0.5 * (1 + np.cos(np.pi * (step - 5) / (STEPS - 5)))
        rates.append(1e-3 * (warm if step < 5 else after))
    return rates


def test_twenty_steps_lose_what_pytorch_loses():
    params = jax.tree.map(np.asarray, jax.jit(clip.build(CONFIG).init)(jax.random.key(1)))
    batches = make_batches()
    ours, rates = our_losses(params, batches)
    np.testing.assert_allclose(rates, schedule_by_hand(), rtol=1e-5, atol=1e-9)  # float32 cosine
    theirs = torch_losses(params, batches, schedule_by_hand())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)  # the project's bound
    assert abs(ours[0] - ours[-1]) > 0.1  # something was learned: the comparison is not of a standstill
    assert jnp.isfinite(jnp.asarray(ours)).all()
