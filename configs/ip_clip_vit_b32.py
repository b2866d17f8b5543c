"""IP-CLIP: CLIP ViT-B/32 fine-tuned on IPATH, 45,609 pairs from Instagram (Zenodo record 14278846), 5,000 held out.

The authors published the pairs and the scores, not the fine-tuning: their repository trains a linear head alone. So
only the network and the data are theirs [ipath]; the rest is PLIP's published run [plip], as the nearest known recipe,
or a choice of this project [ours]. ``:smoke`` is the same recipe in a size that two CPU cores finish in a minute.
"""

from ml_collections import ConfigDict

_SMOKE_STEPS = 8


def _model() -> ConfigDict:
    return ConfigDict(
        {
            "preset": "ViT-B-32",  # read where nothing is fine-tuned
            "init_from": "openai/clip-vit-base-patch32",  # [ipath] OpenAI's weights; a folder or a hub id
            "tokenizer": "",  # "" is that of the starting weights
            "compute_dtype": "bfloat16",  # [ours]
            "remat": False,  # [ours] the batch is small
            "patch_dropout": 0.0,
        }
    )


def _data() -> ConfigDict:
    return ConfigDict(
        {
            "sources": ConfigDict(
                {
                    # [ipath] 40,609 of the pairs; the others are the split ``retrieval``.
                    "ipath": ConfigDict({"path": "", "weight": None, "split": "train"}),
                    # A further folder to mix in, such as OpenPath; without a path it is left out.
                    "more": ConfigDict({"path": "", "weight": None, "split": "train"}),
                },
            ),
            "global_batch_size": 128,  # [plip]
            "augmentation": "plip",  # [plip] resize 512, crop 224, flip, affine, perspective
            "num_workers": -1,  # [ours] processes that decode: one for each core; 0 works in threads
            "prefetch": 2,  # [ours] batches ahead, by each worker
            "on_bad_image": "error",
            "packing": True,  # [ours] several captions in a row of the text tower; changes no number
            "warp_on_device": False,  # True does flip, affine and perspective as one warp on the device
        }
    )


def _loss() -> ConfigDict:
    return ConfigDict(
        {
            "name": "contrastive",  # [plip] every other pair of the batch is a negative
            "label_smoothing": 0.0,  # [plip]
            "chunk_size": 1024,  # [ours] side of a tile of logits, in the losses that never hold them all
            # "caption", "group" or both: pairs that share them are not pushed apart. [plip] none
            "group_by": "",
        }
    )


def _optim() -> ConfigDict:
    return ConfigDict(
        {
            "learning_rate": 1e-5,  # [plip]
            "warmup_steps": 50,  # [plip]
            "schedule": "cosine",  # [plip]
            "b1": 0.9,  # [plip]
            "b2": 0.999,  # [plip] PyTorch's, not the .98 of CLIP
            "eps": 1e-8,  # [plip]
            "weight_decay": 0.1,  # [plip]
            "decay_mask": "all",  # [plip] norms and biases decay too
            "clip_norm": 0.0,  # [plip] no clipping
            # [plip] both towers are trained whole and alike.
            "freeze": "",  # "vision", "text"
            "freeze_vision_blocks": 0,  # the first N, with the embeddings
            "freeze_text_blocks": 0,
            "layer_decay": 1.0,  # rate of a block to that of the block above
            "vision_rate": 1.0,  # times the learning rate
            "text_rate": 1.0,
        }
    )


def _train() -> ConfigDict:
    return ConfigDict(
        {
            "epochs": 12.0,  # [plip]
            "steps": 0,
            "stop_at_step": 0,
            "eval_interval_steps": 317,  # [ours] an epoch
            "checkpoint_interval_steps": 0,  # [ours] at each evaluation
            "log_interval_steps": 10,  # [ours]
            "accumulation_steps": 1,  # micro-batches of the exact step in two passes
            "params_sharding": "replicated",  # "fsdp" splits weights and moments over the devices
            "ema_decay": 0.0,  # [plip] no average of the weights
            "max_skipped_steps": 10,  # [ours] not finite, in a row; then the run stops
            "stall_limit_seconds": 60.0,  # [ours] a longer wait for data is said
        }
    )


def _eval() -> ConfigDict:
    return ConfigDict(
        {
            "batch_size": 128,
            # Sets by name, as in configs/eval_plip.py. A set without data is left out.
            "tasks": ConfigDict(
                {
                    # configs/data/ipath.py names its hold-out so.
                    "heldout": ConfigDict(
                        {"type": "retrieval", "data": "", "split": "retrieval", "relevance": "caption"}
                    ),
                    "kather": ConfigDict(
                        {
                            "type": "zero_shot",
                            "data": "",
                            "split": "",
                            "prompts": "kather",
                            "missing_classes": "error",
                        }
                    ),
                }
            ),
        }
    )


def _checkpoint() -> ConfigDict:
    return ConfigDict(
        {
            "keep": 3,  # [ours]
            "best_metric": "",  # such as eval/heldout/text_to_image_recall@10
            "best_mode": "max",
            "directory": "",  # elsewhere than in the work directory: a folder or gs://BUCKET/RUN
        }
    )


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "smoke"):
        raise ValueError(f"expected no variant or 'smoke', got {variant!r}")
    config = ConfigDict(
        {
            "seed": 0,  # [ours]
            "model": _model(),
            "data": _data(),
            "loss": _loss(),
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
                "model": {"preset": "tiny", "init_from": "", "compute_dtype": "float32"},
                "data": {"global_batch_size": 16, "num_workers": 0},
                "optim": {"warmup_steps": 2},
                "train": {
                    "steps": _SMOKE_STEPS,
                    "eval_interval_steps": _SMOKE_STEPS // 2,
                    "log_interval_steps": 1,
                },
                "eval": {"batch_size": 16},
            }
        )
    return config
