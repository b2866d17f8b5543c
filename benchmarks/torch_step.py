"""The peers of `benchmarks.train_step`: a training step of PyTorch's CLIP, of Hugging Face or of open_clip.

Imports torch, transformers and open_clip where they are installed; the package itself needs none of them. The networks
have ours' sizes and random weights. Each peer gets its best settings: scaled dot-product attention, a fused AdamW, and
under bfloat16 autocast over float32 weights (open_clip's ``amp_bf16``).
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from plip_jax.data.image import CLIP_MEAN, CLIP_STD
from plip_jax.model.presets import CLIPConfig

LEARNING_RATE, WEIGHT_DECAY = 1e-5, 0.1


def make_torch_step(
    library: str, config: CLIPConfig, batch: dict[str, np.ndarray], *, dtype: str, compiled: bool, remat: bool
) -> tuple[Callable[[], float], Callable[[], int]]:
    """Build a peer's training step on one batch.

    Args:
        library: ``"hf"`` or ``"open_clip"``.
        config: sizes of a published network; open_clip knows it by `open_clip_name`.
        batch: ``image`` uint8 [b, S, S, 3] and ``tokens`` int [b, L].
        dtype: ``"float32"``, or ``"bfloat16"`` for autocast.
        compiled: by ``torch.compile``.
        remat: gradient checkpointing.

    Returns:
        A function that takes one step from host memory and returns the loss, and one that returns the peak of the
        device's memory in bytes (0 on a CPU).

    Raises:
        ImportError: torch or the library is not installed.
    """
    torch: Any = importlib.import_module("torch")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    build = {"hf": _hugging_face, "open_clip": _open_clip}[library]
    model, loss_of = build(torch, config, batch["tokens"].shape[1], device, remat)
    if compiled:
        loss_of = torch.compile(loss_of)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    image, tokens = torch.from_numpy(batch["image"]), torch.from_numpy(batch["tokens"].astype(np.int64))

    def step() -> float:
        # Copied and normalised on the device, as ours are.
        pixels = (image.to(device).permute(0, 3, 1, 2).float() / 255 - mean) / std
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(pixels, tokens.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step, lambda: torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def _hugging_face(torch: Any, config: CLIPConfig, length: int, device: Any, remat: bool) -> tuple[Any, Callable]:
    transformers: Any = importlib.import_module("transformers")

    def tower(ours: Any, **more: Any) -> dict[str, Any]:
        return {
            "hidden_size": ours.width,
            "intermediate_size": ours.mlp_dim,
            "num_hidden_layers": ours.depth,
            "num_attention_heads": ours.num_heads,
            "hidden_act": config.activation,
            **more,
        }

    text, vision = config.text, config.vision
    hf_config = transformers.CLIPConfig(
        text_config=tower(text, vocab_size=text.vocab_size, eos_token_id=text.eot_token_id),
        vision_config=tower(vision, image_size=vision.image_size, patch_size=vision.patch_size),
        projection_dim=config.embed_dim,
        attn_implementation="sdpa",
    )
    model = transformers.CLIPModel(hf_config).to(device).train()
    if remat:
        model.gradient_checkpointing_enable()
    return model, lambda pixels, tokens: model(input_ids=tokens, pixel_values=pixels, return_loss=True).loss


def _open_clip(torch: Any, config: CLIPConfig, length: int, device: Any, remat: bool) -> tuple[Any, Callable]:
    open_clip: Any = importlib.import_module("open_clip")
    model = open_clip.create_model(open_clip_name(config), precision="amp_bf16", device=device, output_dict=False)
    if length < model.positional_embedding.shape[0]:
        # Its text tower adds all positions; the shorter context is the same network on shorter captions.
        model.positional_embedding = torch.nn.Parameter(model.positional_embedding.detach()[:length].clone())
        model.attn_mask = model.attn_mask[:length, :length]
    if remat:
        model.set_grad_checkpointing()
    loss = open_clip.ClipLoss()

    def loss_of(pixels: Any, tokens: Any) -> Any:
        image_features, text_features, logit_scale = model(pixels, tokens)
        return loss(image_features, text_features, logit_scale)

    return model.train(), loss_of


def open_clip_name(config: CLIPConfig) -> str:
    """open_clip's name of a published network, with OpenAI's activation as ours."""
    side, patch = config.vision.image_size, config.vision.patch_size
    size = {768: "B", 1024: "L"}[config.vision.width]
    return f"ViT-{size}-{patch}{'' if side == 224 else f'-{side}'}-quickgelu"
