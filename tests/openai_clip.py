"""OpenAI's CLIP as torch modules under OpenAI's names, and archives of it as ``torch.jit.save`` writes them.

The network that the released archives hold (``clip/model.py`` of github.com/openai/CLIP), as compact as it goes; shared
by the tests that need such an archive. Import it where torch is installed only.
"""

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from plip_jax.model.presets import CLIPConfig


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, mask: torch.Tensor | None):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1 = nn.LayerNorm(width)
        layers = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", QuickGELU()), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ln_2 = nn.LayerNorm(width)
        self.attn_mask = mask  # an attribute, as in OpenAI's: a TorchScript archive keeps it, a state dict does not

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.attn_mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, depth: int, mask: torch.Tensor | None = None):
        super().__init__()
        self.width, self.layers = width, depth
        self.resblocks = nn.Sequential(*(Block(width, mask) for _ in range(depth)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.resblocks(x.permute(1, 0, 2)).permute(1, 0, 2)


class VisionTransformer(nn.Module):
    def __init__(self, config: CLIPConfig):
        super().__init__()
        vision = config.vision
        self.input_resolution = vision.image_size
        self.conv1 = nn.Conv2d(3, vision.width, vision.patch_size, vision.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(vision.width))
        self.positional_embedding = nn.Parameter(torch.empty(vision.num_tokens, vision.width))
        self.ln_pre = nn.LayerNorm(vision.width)
        self.transformer = Transformer(vision.width, vision.depth)
        self.ln_post = nn.LayerNorm(vision.width)
        self.proj = nn.Parameter(torch.empty(vision.width, config.embed_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x).flatten(2).permute(0, 2, 1)
        first = self.class_embedding.expand(x.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([first, x], dim=1) + self.positional_embedding)
        return self.ln_post(self.transformer(x)[:, 0]) @ self.proj


class OpenAIClip(nn.Module):
    """Random values everywhere, norms and biases too; sizes as attributes or, as OpenAI's have them, as tensors."""

    def __init__(self, config: CLIPConfig, *, sizes_as_tensors: bool, seed: int = 0):
        super().__init__()
        text = config.text
        sizes = {
            "input_resolution": config.vision.image_size,
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
        }
        for name, size in sizes.items():
            if sizes_as_tensors:
                self.register_buffer(name, torch.tensor(size))
            else:
                setattr(self, name, size)
        self.visual = VisionTransformer(config)
        mask = torch.full((text.context_length, text.context_length), float("-inf")).triu_(1)
        self.transformer = Transformer(text.width, text.depth, mask)
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.empty(text.width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.empty([]))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                mean = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
                scale = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
                parameter.copy_(mean + scale * torch.randn(parameter.shape, generator=generator))
            self.logit_scale.fill_(2.6592)
        self.eval()

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of images [n, 3, side, side] and texts [m, context_length], not normalised."""
        x = self.transformer(self.token_embedding(text) + self.positional_embedding)
        pooled = self.ln_final(x)[torch.arange(x.shape[0]), text.argmax(dim=-1)]
        return self.visual(image), pooled @ self.text_projection


def make_inputs(config: CLIPConfig, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images [2, side, side, 3] and captions [3, context_length] of different lengths."""
    rng = np.random.default_rng(seed)
    text = config.text
    images = rng.normal(size=(2, config.vision.image_size, config.vision.image_size, 3)).astype(np.float32)
    tokens = rng.integers(0, text.vocab_size - 2, (3, text.context_length)).astype(np.int32)
    for row, length in zip(tokens, (2, text.context_length // 2, text.context_length), strict=True):
        row[0] = text.vocab_size - 2
        row[length - 1 :] = text.vocab_size - 1
    return images, tokens


def torch_features(model: nn.Module, images: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the torch model computes."""
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        image_features, text_features = model(pixels, torch.from_numpy(tokens).long())
    return image_features.numpy(), text_features.numpy()


def halve(module: nn.Module) -> None:
    """Hold matrices in float16 and vectors in float32, much as OpenAI's archives do."""
    for parameter in module.parameters():
        if parameter.ndim >= 2:
            parameter.data = parameter.data.half()


def save_archive(
    path: Path, model: OpenAIClip, config: CLIPConfig, how: Literal["script", "trace"], half: bool
) -> None:
    """Save the model as a TorchScript archive."""
    images, tokens = make_inputs(config)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # new versions of torch deprecate what OpenAI's archives were made with
        if how == "script":
            compiled: Any = torch.jit.script(model)
        else:
            example = (torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(tokens).long())
            compiled = torch.jit.trace(model, example, check_trace=False)
        if half:
            halve(compiled)
        torch.jit.save(compiled, path)
