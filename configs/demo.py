"""The embedded default: a small CLIP from scratch on simulated tissue, two CPU cores, about two minutes.

All numbers are ours, chosen for what two cores learn in two minutes. ``:smoke``
is the same in a few steps.
"""

from ml_collections import ConfigDict

_RECORDS = "demo_out/records"  # where `make demo` writes the simulated tissue


def _model() -> ConfigDict:
    return ConfigDict(
        {
            "preset": "demo",
            "init_from": "",  # from scratch; a folder or a hub id fine-tunes that model
            "tokenizer": "",  # "" learns a vocabulary from the captions
            "compute_dtype": "float32",
            "remat": False,
            "patch_dropout": 0.0,
        }
    )


def _data() -> ConfigDict:
    return ConfigDict(
        {
            "sources": ConfigDict(
                {
                    "tissue": ConfigDict({"path": _RECORDS, "weight": None, "split": "train"}),
                    # A second records folder to mix in; without a path it is left out.
                    "more": ConfigDict({"path": "", "weight": None, "split": "train"}),
                },
            ),
            "global_batch_size": 64,
            "augmentation": "light",
            "num_workers": 0,
            "prefetch": 4,  # batches
            "on_bad_image": "error",
            "packing": True,
            "warp_on_device": False,
        }
    )


def _optim() -> ConfigDict:
    return ConfigDict(
        {
            "learning_rate": 1e-3,
            "warmup_steps": 20,
            "schedule": "cosine",
            "b1": 0.9,
            "b2": 0.98,  # CLIP's for training from scratch (Radford et al. 2021, table 18)
            "eps": 1e-6,  # the same
            "weight_decay": 0.1,
            "decay_mask": "matrices",
            "clip_norm": 1.0,
            "freeze": "",
            "freeze_vision_blocks": 0,
            "freeze_text_blocks": 0,
            "layer_decay": 1.0,
            "vision_rate": 1.0,
            "text_rate": 1.0,
        }
    )


def _train() -> ConfigDict:
    return ConfigDict(
        {
            "epochs": 4.0,
            "steps": 0,
            "stop_at_step": 0,
            "eval_interval_steps": 62,  # an epoch
            "checkpoint_interval_steps": 0,
            "log_interval_steps": 10,
            "accumulation_steps": 1,
            "params_sharding": "replicated",
            "ema_decay": 0.0,
            "max_skipped_steps": 10,
            "stall_limit_seconds": 60.0,
        }
    )


def _eval() -> ConfigDict:
    return ConfigDict(
        {
            "batch_size": 64,
            "tasks": ConfigDict(
                {
                    "tissue": ConfigDict(
                        {
                            "type": "zero_shot",
                            "data": _RECORDS,
                            "split": "test",
                            "prompts": "simulated",
                            "missing_classes": "error",
                        }
                    ),
                    "captions": ConfigDict(
                        {"type": "retrieval", "data": _RECORDS, "split": "test", "relevance": "caption"}
                    ),
                }
            ),
        }
    )


def _checkpoint() -> ConfigDict:
    return ConfigDict(
        {
            "keep": 2,
            "best_metric": "eval/captions/text_to_image_recall@10",
            "best_mode": "max",
            "directory": "",
        }
    )


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "smoke"):
        raise ValueError(f"expected no variant or 'smoke', got {variant!r}")
    config = ConfigDict(
        {
            "seed": 0,
            "model": _model(),
            "data": _data(),
            "loss": ConfigDict({"name": "contrastive", "label_smoothing": 0.0, "chunk_size": 1024, "group_by": ""}),
            "optim": _optim(),
            "train": _train(),
            "eval": _eval(),
            "checkpoint": _checkpoint(),
            "logging": ConfigDict({"tensorboard": False, "wandb": False}),
        }
    )
    if variant == "smoke":
        config.update(
            {
                "model": {"preset": "tiny"},
                "data": {"global_batch_size": 16},
                "optim": {"warmup_steps": 2},
                "train": {"steps": 8, "eval_interval_steps": 4, "log_interval_steps": 1},
                "eval": {"batch_size": 16},
            }
        )
    return config
