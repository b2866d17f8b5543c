"""Your own set: class folders (``DIR/train/CLASS/*.png``, ``DIR/test/CLASS/*.png``), a records folder or a built set.

    python -m plip_jax.evaluate --checkpoint runs/plip --config configs/eval_own.py --out report/ \
        --config.sets.own.data=DIR --config.tasks.zero_shot.prompts=prompts.json --tasks zero_shot,probe

``--tasks`` runs the tasks that the set is fit for: ``zero_shot``, ``probe``, ``few_shot`` and ``similar`` need labels,
``probe`` and ``few_shot`` a training split, ``captions`` captions. All numbers are ours.
"""

from ml_collections import ConfigDict


def _tasks() -> ConfigDict:
    common = {"set": "own", "split": "test"}
    learned = {**common, "train_split": "train"}
    return ConfigDict(
        {
            "zero_shot": ConfigDict(
                {
                    "type": "zero_shot",
                    **common,
                    "prompts": "simulated",  # a name in plip_jax/evaluation/prompts, or a path to a JSON file
                    "missing_classes": "error",  # "allow": the data need not hold every class of the prompts
                    "selection": "published",  # "all": every template by itself too; none is chosen on test
                    "by": "",  # scores by this attribute, too
                    "val_split": "",  # for the temperature
                    "train_split": "",  # the same, from a part that is held out, where there is no val_split
                }
            ),
            "probe": ConfigDict(
                {
                    "type": "linear_probe",
                    **learned,
                    "val_split": "",  # to choose the strength on; "" holds out a fifth of train
                    "strengths": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),  # scikit-learn's C
                    "fractions": (),  # of the training split, besides all of it, such as (0.01, 0.1)
                    "fraction_seeds": (0, 1, 2, 3, 4),
                }
            ),
            "few_shot": ConfigDict(
                {
                    "type": "few_shot",
                    **learned,
                    "neighbours": (20, 1),
                    "shots": (1, 2, 4, 8),  # examples a class; each class needs as many as the most
                    "episodes": 1000,
                    "seed": 0,
                }
            ),
            "similar": ConfigDict(
                {
                    "type": "image_retrieval",
                    **common,
                    "mode": "label",  # or "same_post": the other images of a group
                    "neighbours_at": (1, 5, 10),
                    "exclude_same": "",  # "slide", "patient" or "group": such images are no candidates
                }
            ),
            "captions": ConfigDict(
                {
                    "type": "retrieval",
                    **common,
                    "relevance": "id",  # "caption": every image with the queried caption is right
                    "recall_at": (1, 5, 10, 50),
                }
            ),
        }
    )


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "batch_size": 64,  # images or texts a step; changes speed only
            "compute_dtype": "float32",
            "allow_absent": True,  # a set without a training split: report the tasks that learn as absent, and go on
            "note": "",
            "bootstrap": ConfigDict({"resamples": 2000, "seed": 0, "level": 0.95}),
            # The training records, to be looked for in the set.
            "leakage": ConfigDict(
                {"data": "", "split": "train", "hash_radius": 6, "cosine": 0.98, "pairs_per_image": 3}
            ),
            "sets": ConfigDict(
                {"own": ConfigDict({"data": "", "get": "a folder of class folders, or records (data_prep.build)"})}
            ),
            "tasks": _tasks(),
        }
    )
