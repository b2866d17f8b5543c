"""PLIP's zero-shot evaluation: its four sets, its prompts (Huang et al., Nature Medicine 2023, fig. 2).

The sets are not shipped. Give each a folder of class folders or of records, for example
``--config.tasks.kather.data=/data/CRC-VAL-HE-7K``; a set without one is listed as absent in the report.
"""

from ml_collections import ConfigDict


def _zero_shot(prompts: str) -> ConfigDict:
    return ConfigDict(
        {
            "type": "zero_shot",
            "data": "",  # a folder of class folders, or of records
            "split": "",  # a sub-folder of class folders, or a split of records; "" is the folder itself
            "prompts": prompts,  # a name in plip_jax/evaluation/prompts, or a path to a JSON file
            "missing_classes": "error",  # "allow": the data need not hold every class of the prompts
        }
    )


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "batch_size": 64,  # images or texts a step; changes speed only
            "compute_dtype": "float32",  # the published scores' precision is not known; this is the exact one
            "allow_absent": True,  # report a set without data as absent, and go on
            "tasks": ConfigDict(
                {
                    "kather": _zero_shot("kather"),
                    "pannuke": _zero_shot("pannuke"),
                    "digestpath": _zero_shot("digestpath"),
                    "wsss4luad": _zero_shot("wsss4luad"),
                    # Tweets after the training data, or any held-out pairs.
                    "heldout": ConfigDict({"type": "retrieval", "data": "", "split": "test", "relevance": "caption"}),
                }
            ),
        }
    )
