"""A modern fine-tuning of CLIP ViT-B/32 on OpenPath: a large exact batch, meant for one 80 GB GPU or a TPU v5e slice.

departs: everything that is not the network or the data is chosen here and not PLIP's. Sources: [plip] as
configs/plip_vit_b32.py; [clip] Radford et al. 2021, tables 18 and 20; [ours] a choice of this project, not tuned: no
accelerator was at hand when it was written. On smaller devices raise ``train.accumulation_steps``: the loss and its
gradient stay those of the whole batch. ``:smoke`` is the same recipe in a size that two CPU cores finish in a minute.
"""

from ml_collections import ConfigDict

_SMOKE_STEPS = 8


def _model() -> ConfigDict:
    return ConfigDict(
        {
            "preset": "ViT-B-32",  # read where nothing is fine-tuned
            "init_from": "openai/clip-vit-base-patch32",  # [plip] OpenAI's weights; a folder or a hub id
            "tokenizer": "",  # "" is that of the starting weights
            "compute_dtype": "bfloat16",  # [ours]
            "remat": True,  # [ours] a forward pass more, for activations of one block instead of twelve
            "patch_dropout": 0.0,  # [ours] the images are few; with millions 0.5 halves the cost
        }
    )


def _data() -> ConfigDict:
    return ConfigDict(
        {
            # OpenPath: tweets, replies and LAION, in one folder or three. A weight of None draws every record
            # once an epoch.
            "sources": ConfigDict(
                {
                    "openpath": ConfigDict({"path": "", "weight": None, "split": "train"}),
                    # Further folders to mix in; one without a path is left out.
                    "more": ConfigDict({"path": "", "weight": None, "split": "train"}),
                    "still_more": ConfigDict({"path": "", "weight": None, "split": "train"}),
                },
            ),
            "global_batch_size": 4096,  # [ours] 50 steps an epoch of OpenPath
            "augmentation": "plip",  # [plip] resize 512, crop 224, flip, affine, perspective
            "num_workers": -1,  # [ours] processes that decode: one for each core; 0 works in threads
            "prefetch": 2,  # [ours] slices of 512 examples ahead, by each worker
            "on_bad_image": "error",
            "packing": True,  # [ours] several captions in a row of the text tower; changes no number
            "warp_on_device": True,  # [ours] flip, affine and perspective as one warp on the device
        }
    )


def _loss() -> ConfigDict:
    return ConfigDict(
        {
            "name": "contrastive_ring",  # [ours] the same number as "contrastive", without the whole matrix
            "label_smoothing": 0.0,  # [clip]
            "chunk_size": 1024,  # [ours] side of a tile of logits, in the losses that never hold them all
            # [ours] in 4,096 pairs of 200,000 some share a post or a caption; they are not pushed apart
            "group_by": "caption,group",
        }
    )


def _optim() -> ConfigDict:
    return ConfigDict(
        {
            # [ours] PLIP's 1e-5 times the root of 4096 / 128, as Adam's rate scales with the batch (Malladi et
            # al. 2022, https://arxiv.org/abs/2205.10287)
            "learning_rate": 5.7e-5,
            "warmup_steps": 100,  # [ours] two epochs
            "schedule": "cosine",  # [plip]
            "b1": 0.9,  # [clip]
            "b2": 0.98,  # [clip]
            "eps": 1e-6,  # [clip]
            "weight_decay": 0.1,  # [plip]
            "decay_mask": "matrices",  # [clip]
            "clip_norm": 1.0,  # [ours]
            "freeze": "",  # "vision", "text"
            "freeze_vision_blocks": 0,  # the first N, with the embeddings
            "freeze_text_blocks": 0,
            "layer_decay": 0.8,  # [ours] the rate of a block to that of the block above; keeps what CLIP knows
            "vision_rate": 1.0,  # times the learning rate
            "text_rate": 1.0,
        }
    )


def _train() -> ConfigDict:
    return ConfigDict(
        {
            "epochs": 20.0,  # [ours] about 1,000 steps
            "steps": 0,
            "stop_at_step": 0,
            "eval_interval_steps": 50,  # [ours] an epoch
            "checkpoint_interval_steps": 0,  # [ours] at each evaluation
            "log_interval_steps": 10,  # [ours]
            "accumulation_steps": 1,  # [ours] micro-batches of the exact step in two passes
            "params_sharding": "replicated",  # "fsdp" splits weights and moments over the devices
            "ema_decay": 0.99,  # [ours] two epochs of memory; the average is what is evaluated and exported
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
                    "heldout": ConfigDict({"type": "retrieval", "data": "", "split": "test", "relevance": "caption"}),
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
