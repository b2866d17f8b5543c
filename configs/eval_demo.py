"""The demo's evaluation: zero-shot and retrieval on the held-out split of the simulated tissue."""

from ml_collections import ConfigDict

_RECORDS = "demo_out/records"  # where `make demo` writes; change both tasks' data for another folder


def get_config() -> ConfigDict:
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
                            "data": _RECORDS,
                            "split": "test",
                            "prompts": "simulated",
                            "missing_classes": "error",
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
