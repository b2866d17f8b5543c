"""Lies that the JSON and text files beside weights can tell: sizes, types, activations, tokenizers.

Owns `SETTINGS`: by name, the layout of the source, the file in it, and what becomes of the file's content.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple


class Lie(NamedTuple):
    """What `change` makes of the content of `file` in the sound source of `layout`."""

    layout: str
    file: str
    change: Callable[[bytes], bytes]


def _set(layout: str, file: str, path: str, value: Any) -> Lie:
    """One field changed; ``a.b`` is field b of object a, ``both.b`` that of both towers."""

    def change(content: bytes) -> bytes:
        values = json.loads(content)
        for place in (path.replace("both", "text_config"), path.replace("both", "vision_config")):
            *parents, last = place.split(".")
            node = values
            for parent in parents:
                node = node[parent]
            node[last] = value
        return json.dumps(values).encode()

    return Lie(layout, file, change)


def _whole(layout: str, file: str, content: bytes) -> Lie:
    return Lie(layout, file, lambda _: content)


_NAN, _INF = float("nan"), float("inf")
_DEEP = b'{"a": ' + b"[" * 100_000

_CONFIG = {
    "vision_config.hidden_size": (1 << 60, 1 << 20, "32", 32.0, True, None, -32, 0, [32], {"a": 1}, 10**4000),
    "vision_config.num_hidden_layers": (10**9, 256, 0, "two"),
    "vision_config.num_attention_heads": (0, 5, 1 << 19),
    "vision_config.patch_size": (0, 7, [16, 8], -16, 1 << 20),
    "vision_config.image_size": (1 << 20, 0, "224x224"),
    "vision_config.num_channels": (4, "3", None),
    "both.hidden_act": ("relu", "gelu_new", [], {"a": 1}, None, 3, "__import__('os').system('touch canary')"),
    "both.layer_norm_eps": (_NAN, _INF, -1.0, "1e-5", None, 0),
    "text_config.vocab_size": (1 << 60, 3, 0),
    "text_config.max_position_embeddings": (1 << 20, 1, 0, -1),
    "text_config.eos_token_id": ([], [1, 2], 10**9, "2", -1),
    "projection_dim": (1 << 60, 0, [], "16", _NAN),
    "model_type": ("bert", [], 3),
    "text_config": ([], 3, "text", {}),
    "vision_config_dict": ([1], {"hidden_size": 1 << 60}),
}
_PROCESSOR = {
    "size": (1 << 60, 0, -1, [], {"shortest_edge": "32"}, {"longest_edge": 32}, {"shortest_edge": _NAN}),
    "crop_size": ({"height": 32}, {"height": 32, "width": 31}, 31),
    "image_mean": ([_NAN, 0, 0], [0, 0], "abc", [[0], [0], [0]], [10**400, 0, 0]),
    "image_std": ([0, 1, 1], [-1, 1, 1], [_NAN, 1, 1], [_INF, 1, 1]),
    "rescale_factor": (1, _NAN, "1/255", 10**400),
    "resample": (99, [], _NAN),
    "do_resize": (False, "yes"),
}
_OPEN_CLIP = {
    "model_cfg.embed_dim": (None, 1 << 60, "16", _NAN),
    "model_cfg.quick_gelu": ("true", 1, []),
    "model_cfg.vision_cfg": ([], None, "ViT-B-32"),
    "model_cfg.vision_cfg.layers": ([3, 4, 6, 3], 10**9, 0),
    "model_cfg.vision_cfg.head_width": (0, 7),
    "model_cfg.vision_cfg.mlp_ratio": (_NAN, _INF, 1e300, "4"),
    "model_cfg.vision_cfg.timm_model_name": ("vit_base_patch16_224",),
    "model_cfg.vision_cfg.norm_kwargs": ({"eps": _NAN}, {"eps": 1e-5, "elementwise_affine": False}, []),
    "model_cfg.text_cfg.pool_type": ("last", [], {"a": 1}),
    "model_cfg.text_cfg.hf_model_name": ("bert-base-uncased",),
    "model_cfg.text_cfg.heads": (0, 7),
    "model_cfg": ([], None),
    "preprocess_cfg": ([], {"size": 1 << 60}, {"mean": [_NAN, 0, 0]}, {"std": [0, 0, 0]}, {"mode": "L"}),
}
_TOKENIZER_CONFIG = {
    "model_max_length": (0, -5, [], _NAN, -_INF),
    "pad_token": ({"a": 1}, {"content": 3}, 3, "<|nothing|>", {"content": []}),
}
_NO_OBJECTS = {
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "deep": _DEEP,
    "bytes": b"\xff\xfe\x00",
    "code": b"import os\n",
}


def _named(layout: str, file: str, lies: dict[str, tuple[Any, ...]]) -> dict[str, Lie]:
    return {
        f"{file}: {path} = {value!r:.40}": _set(layout, file, path, value)
        for path, values in lies.items()
        for value in values
    }


SETTINGS: dict[str, Lie] = {
    **_named("hf", "config.json", _CONFIG),
    **_named("hf", "preprocessor_config.json", _PROCESSOR),
    **_named("open_clip", "open_clip_config.json", _OPEN_CLIP),
    **_named("hf", "tokenizer_config.json", _TOKENIZER_CONFIG),
    **{
        f"{file}: {what}": _whole(layout, file, content)
        for what, content in _NO_OBJECTS.items()
        for layout, file in (
            ("open_clip", "open_clip_config.json"),
            ("hf", "preprocessor_config.json"),
            ("hf", "tokenizer.json"),
            ("hf", "tokenizer_config.json"),
            ("hf", "special_tokens_map.json"),
        )
    },
}
