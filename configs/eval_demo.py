"""The demo's evaluation: zero-shot, linear probe and retrieval on the held-out split of the simulated tissue.

    python -m plip_jax.evaluate --checkpoint demo_out/run --config configs/eval_demo.py --out report/ \
        --config.tasks.tissue.data=DIR --config.tasks.captions.data=DIR

``tissue_probe`` follows ``tissue`` where it has no ``data`` of its own. A folder without a training split has nothing
to probe with: ``--tasks tissue,captions``. For a set of your own there is ``configs/eval_own.py``.
"""

from ml_collections import ConfigDict, FieldReference

_RECORDS = "demo_out/records"  # where `make demo` writes


def get_config() -> ConfigDict:
    labelled = FieldReference(_RECORDS)
    return ConfigDict(
        {
            "batch_size": 64,  # images or texts a step; changes speed only
            "compute_dtype": "float32",
            "allow_absent": False,
            "bootstrap": ConfigDict({"resamples": 2000, "seed": 0, "level": 0.95}),
            "tasks": ConfigDict(
                {
                    "tissue": ConfigDict(
                        {
                            "type": "zero_shot",
                            "data": labelled,
                            "split": "test",
                            "prompts": "simulated",
                            "missing_classes": "error",
                            # Every template alone, and two that no caption has: how far the wording matters.
                            "selection": "all",
                            "candidates": ("{}", "A photo of {}."),
                        }
                    ),
                    "tissue_probe": ConfigDict(
                        {
                            "type": "linear_probe",
                            "data": labelled.identity(),  # follows; a folder of its own does not move the other's
                            "split": "test",
                            "train_split": "train",
                            "strengths": (100.0, 1000.0, 10_000.0, 100_000.0),  # scikit-learn's C; 128 features
                        }
                    ),
                    "captions": ConfigDict(
                        {
                            "type": "retrieval",
                            "data": _RECORDS,
                            "split": "test",
                            # Simulated captions repeat: every image with the queried caption is a right answer.
                            "relevance": "caption",
                            "recall_at": (1, 5, 10, 50),
                            "pictured_queries": 6,  # rows of the picture
                            "pictured_images": 5,  # and its columns
                        }
                    ),
                }
            ),
        }
    )
