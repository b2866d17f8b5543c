"""The sets of the field that neither paper's suite holds: zero-shot, and linear probe where there is a training part.

Build each with ``python -m data_prep.tfds.build`` and give its folder, for example
``--config.sets.mhist.data=SETS/mhist``; a set without one is listed as absent in the report.
"""

from ml_collections import ConfigDict

# Task -> set, test split, training split ("" for none), prompts, and settings of its own.
_TASKS = {
    "mhist": ("mhist", "test", "train", "mhist", {"by": "agreement"}),
    "breakhis_40x": ("breakhis", "by_patient_40X/test", "by_patient_40X/train", "breakhis", {"by": "type"}),
    "breakhis_100x": ("breakhis", "by_patient_100X/test", "by_patient_100X/train", "breakhis", {"by": "type"}),
    "breakhis_200x": ("breakhis", "by_patient_200X/test", "by_patient_200X/train", "breakhis", {"by": "type"}),
    "breakhis_400x": ("breakhis", "by_patient_400X/test", "by_patient_400X/train", "breakhis", {"by": "type"}),
    "patch_camelyon": ("patch_camelyon", "test", "train", "patch_camelyon", {"val_split": "val"}),
    "colorectal_histology": ("colorectal_histology", "test", "train", "colorectal_histology", {}),
    "wsss4luad_three": ("wsss4luad", "single_flag/test", "single_flag/train", "wsss4luad_3", {}),
    "wsss4luad_labels": ("wsss4luad", "by_group/test", "", "wsss4luad_3", {"multi_label": True}),
    "sicapv2_labels": ("sicapv2", "multi/test", "", "sicapv2", {"multi_label": True}),
    "skin_tumours": (
        "skin_cancer",
        "tumour_only/test",
        "tumour_only/train",
        "skin_cancer_tumour",
        {"val_split": "tumour_only/val"},
    ),
    "skin_malignancy": (
        "skin_cancer",
        "malignancy/test",
        "malignancy/train",
        "skin_cancer_malignancy",
        {"val_split": "malignancy/val"},
    ),
}


def _sets() -> ConfigDict:
    where = {
        "mhist": "https://bmirds.github.io/MHIST, after signing its agreement",
        "breakhis": "https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis",
        "patch_camelyon": "https://zenodo.org/records/2546921",
        "colorectal_histology": "https://zenodo.org/records/53169",
        "wsss4luad": "https://wsss4luad.grand-challenge.org, after registration",
        "sicapv2": "https://data.mendeley.com/datasets/9xxm58dvs3",
        "skin_cancer": "https://doi.org/10.11588/data/7QCR8S",
    }
    # data: a built set, a folder of class folders, or a records folder.
    return ConfigDict({name: ConfigDict({"data": "", "get": get}) for name, get in where.items()})


def get_config() -> ConfigDict:
    tasks = {}
    for name, (of, test, train, prompts, settings) in _TASKS.items():
        common = {"set": of, "split": test}
        # The training part gives the temperature, where there is no validation part.
        shown = {"prompts": prompts, "train_split": train, **settings}
        tasks[f"{name}_zero_shot"] = ConfigDict({"type": "zero_shot", **common, **shown})
        if train:
            val = {key: value for key, value in settings.items() if key == "val_split"}
            tasks[f"{name}_probe"] = ConfigDict({"type": "linear_probe", **common, "train_split": train, **val})
    return ConfigDict(
        {
            "batch_size": 64,  # images or texts a step; changes speed only
            "compute_dtype": "float32",
            "allow_absent": True,  # report a set without data as absent, and go on
            "note": "",
            "bootstrap": ConfigDict({"resamples": 2000, "seed": 0, "level": 0.95}),
            # The training records, to be looked for in every set.
            "leakage": ConfigDict(
                {"data": "", "split": "train", "hash_radius": 6, "cosine": 0.98, "pairs_per_image": 3}
            ),
            "sets": _sets(),
            "tasks": ConfigDict(tasks),
        }
    )
