"""PLIP's evaluation: its four labelled sets, its retrieval sets, its protocols (Huang et al., Nature Medicine 2023).

No set is shipped. Build each from its authors' archive (``python -m data_prep.tfds.build --set kather ...``) and give
its folder, for example ``--config.sets.kather.data=SETS/kather``; a set without one is listed as absent in the report,
with where to get it. ``--tasks kather_zero_shot,kather_probe`` runs some of the tasks only.

Where the published split leaks, a second task runs on the corrected one (its name ends in ``_corrected``).
"""

from ml_collections import ConfigDict

# Set -> the scheme of its published split and of the corrected one, None where none is needed; "" is a set's default.
_SCHEMES = {
    "kather": ("", None),  # other patients in the 7K set
    "pannuke": ("as_published", "by_fold"),  # patches of one slide on both sides; wrapped instance numbers
    "digestpath": ("as_published", ""),  # crops of one image on both sides
    "wsss4luad": ("as_published", "by_group"),  # patches of one case on both sides
}
_BY = {"pannuke": "organ"}  # scores by this attribute, too
_VAL = {"by_fold": "by_fold/val"}  # validation parts of the schemes that have one; else a part of train is held out


def _sets() -> ConfigDict:
    where = {
        "kather": "NCT-CRC-HE-100K, CRC-VAL-HE-7K and NCT-CRC-HE-100K-NONORM: https://zenodo.org/records/1214456",
        "pannuke": "its three folds: https://warwick.ac.uk/fac/cross_fac/tia/data/pannuke",
        "digestpath": "its colonoscopy tissue: https://digestpath2019.grand-challenge.org, after registration",
        "wsss4luad": "https://wsss4luad.grand-challenge.org, after registration",
        "kimia_path24c": "KIMIA Lab, on request",
        "twitter": "the held-out tweets were never published: records of posts of your own",
        "pathpedia": "its 210 pairs were never published: records of your own",
        "pubmed": "ARCH's PubMed figures: https://warwick.ac.uk/fac/cross_fac/tia/data/arch",
        "books": "ARCH's textbook figures: https://warwick.ac.uk/fac/cross_fac/tia/data/arch",
    }
    # data: a built set, a folder of class folders, or a records folder.
    return ConfigDict({name: ConfigDict({"data": "", "get": get}) for name, get in where.items()})


def _part(scheme: str, part: str) -> str:
    return f"{scheme}/{part}" if scheme else part


def _zero_shot(name: str, scheme: str, *, part: str = "test", published: str = "") -> ConfigDict:
    return ConfigDict(
        {
            "type": "zero_shot",
            "set": name,
            "split": _part(scheme, part),
            # For the temperature, where the data have it: nothing else is fitted.
            "train_split": _part(scheme, "train") if part == "test" else "",
            "val_split": _VAL.get(scheme, "") if part == "test" else "",
            "published": published,  # whose published numbers stand beside it
            "prompts": name,  # a name in plip_jax/evaluation/prompts, or a path to a JSON file
            "missing_classes": "error",  # "allow": the data need not hold every class of the prompts
            "by": _BY.get(name, ""),
            # Every template and file below alone, median, minimum and maximum: none is chosen on the test split.
            "selection": "all",
            "candidates": (f"{name}_ensemble",),
        }
    )


def _learned(name: str, scheme: str, kind: str, *, published: str = "", **settings: object) -> ConfigDict:
    """A task that learns from the training split; a part of it is held out to choose on."""
    return ConfigDict(
        {
            "type": kind,
            "set": name,
            "split": _part(scheme, "test"),
            "train_split": _part(scheme, "train"),
            "published": published,
            **settings,
        }
    )


# As published, but for the choice of alpha: "test" in alpha_from is the authors'.
_PUBLISHED_PROBE = {
    "alphas": (0.1, 0.01, 0.001, 0.0001),
    "seeds": (1, 2, 3, 4, 5),
    "max_iter": 10_000,
    "alpha_from": "validation",
}
_PROBE = {
    "strengths": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),  # scikit-learn's C
    "fractions": (0.01, 0.05, 0.1, 0.5),  # of the training split, besides all of it
    "fraction_seeds": (0, 1, 2, 3, 4),
}
_FEW_SHOT = {"neighbours": (20, 1), "shots": (1, 2, 4, 8, 16), "episodes": 1000, "seed": 0}


def _fine_tune(name: str, scheme: str) -> ConfigDict:
    # As published: Kather is tested on a tenth of the 100K set and not on the 7K set.
    own_share = name == "kather"
    return ConfigDict(
        {
            "type": "fine_tune",
            "set": name,
            "split": _part(scheme, "train" if own_share else "test"),
            "train_split": _part(scheme, "train"),
            "published": name,
            "test_share": 0.1 if own_share else 0.0,
            "fractions": (0.01, 0.05, 0.1, 0.5, 1.0),  # of the training split
            "seeds": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
            "epochs": 10,  # the last one is used
            "batch_size": 128,
            "weight_decay": 0.1,
            "learning_rates": (1e-6, 1e-5, 1e-4, 1e-3, 1e-2),  # the ends are published, not the steps
            "val_share": 0.3,  # of the subsample, to choose the rate on
            "pixel_statistics": "clip",  # for every model, as published
        }
    )


def _retrieval(name: str) -> ConfigDict:
    return ConfigDict(
        {
            "type": "retrieval",
            "set": name,
            "split": "test",
            "published": name,
            # ARCH shares a caption among the panels of a figure.
            "relevance": "figure" if name in ("pubmed", "books") else "id",
            "recall_at": (10, 50),
        }
    )


def _image_retrieval(name: str, mode: str) -> ConfigDict:
    return ConfigDict({"type": "image_retrieval", "set": name, "split": "test", "mode": mode, "published": name})


def _tasks() -> ConfigDict:
    tasks = {}
    for name, (published, corrected) in _SCHEMES.items():
        tasks[f"{name}_zero_shot"] = _zero_shot(name, published, published=name)
        if corrected is not None:
            tasks[f"{name}_zero_shot_corrected"] = _zero_shot(name, corrected)
        tasks[f"{name}_published_probe"] = _learned(
            name, published, "published_probe", published=name, **_PUBLISHED_PROBE
        )
        right = published if corrected is None else corrected
        val = {"val_split": _VAL[right]} if right in _VAL else {}
        beside = name if corrected is None else ""
        tasks[f"{name}_probe"] = _learned(name, right, "linear_probe", published=beside, **val, **_PROBE)
        tasks[f"{name}_few_shot"] = _learned(name, right, "few_shot", **_FEW_SHOT)
        tasks[f"{name}_fine_tune"] = _fine_tune(name, published)
    # The 100K set with and without colour normalisation: what a model owes to the stain.
    tasks["kather_100k_zero_shot"] = _zero_shot("kather", "", part="train")
    tasks["kather_100k_nonorm_zero_shot"] = _zero_shot("kather", "nonorm", part="train")
    for name in ("kather", "pannuke", "kimia_path24c"):
        tasks[f"{name}_image_retrieval"] = _image_retrieval(name, "label")
    tasks["twitter_image_retrieval"] = _image_retrieval("twitter", "same_post")
    for name in ("twitter", "pathpedia", "pubmed", "books"):
        tasks[f"{name}_retrieval"] = _retrieval(name)
    return ConfigDict(tasks)


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "batch_size": 64,  # images or texts a step; changes speed only
            "compute_dtype": "float32",  # the published scores' precision is not known; this is the exact one
            "allow_absent": True,  # report a set without data as absent, and go on
            "note": "The protocols of Huang et al., Nature Medicine 2023.",
            # Percentile bootstrap over the highest unit known; the published intervals' method is not.
            "bootstrap": ConfigDict({"resamples": 2000, "seed": 0, "level": 0.95}),
            # The training records, to be looked for in every set.
            "leakage": ConfigDict(
                {"data": "", "split": "train", "hash_radius": 6, "cosine": 0.98, "pairs_per_image": 3}
            ),
            "sets": _sets(),
            "tasks": _tasks(),
        }
    )
