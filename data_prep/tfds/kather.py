"""NCT-CRC-HE-100K and CRC-VAL-HE-7K: nine tissues of colorectal cancer (Kather et al. 2019, PLoS Medicine 16:e1002730).

The 7K set comes from patients that are not in 100K, so the published split does not leak; but no file name tells the
patient, so no part of 100K can be held out by slide and no interval can resample patients. NCT-CRC-HE-100K-NONORM is
the same tissue without colour normalisation: beside the normalised set it shows what a model owes to the stain.
"""

import re
from collections.abc import Sequence

from data_prep.tfds.base import About, EvaluationSet, Item, SetError, find_files
from plip_jax.data.split_manifest import Part, SplitScheme

CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
_TRAIN = (10407, 10566, 11512, 11557, 8896, 13536, 8763, 10446, 14317)
_TEST = (1338, 847, 339, 634, 1035, 592, 741, 421, 1233)
_NAME = re.compile(rf"({'|'.join(CLASSES)})-(?:TCGA-)?[A-Z]{{8}}\.(?:tif|png)")
_PARTS = {"NCT-CRC-HE-100K": "train", "CRC-VAL-HE-7K": "test", "NCT-CRC-HE-100K-NONORM": "nonorm"}


class Kather(EvaluationSet, skip_registration=True):
    """Train: NCT-CRC-HE-100K; test: CRC-VAL-HE-7K; and NCT-CRC-HE-100K-NONORM where it is there."""

    about = About(
        title="NCT-CRC-HE-100K and CRC-VAL-HE-7K: H&E patches of nine colorectal tissues",
        homepage="https://zenodo.org/records/1214456",
        licence="CC BY 4.0",
        citation="Kather et al., PLoS Medicine 16(1): e1002730, 2019, doi:10.1371/journal.pmed.1002730",
        layout="NCT-CRC-HE-100K/, CRC-VAL-HE-7K/ and, where wanted, NCT-CRC-HE-100K-NONORM/, as the archives unpack",
        classes=CLASSES,
        verified_counts={"test": dict(zip(CLASSES, _TEST, strict=True)), "train": {"": 100_000}},
        unverified_counts={part: dict(zip(CLASSES, _TRAIN, strict=True)) for part in ("train", "nonorm")},
    )

    def find_items(self) -> Sequence[Item]:
        """Each patch by its name; the class is that of the name, and must be that of the folder."""
        items = []
        for path in (*find_files(self.manual_dir, "*.tif"), *find_files(self.manual_dir, "*.png")):
            name = _NAME.fullmatch(path.name)
            if name is None:
                continue
            label = name[1]
            if path.parent.name != label:
                raise SetError(f"{path}: the name says {label}, the folder {path.parent.name}")
            inside = path.relative_to(self.manual_dir).parts
            # The innermost folder counts; the given folder's own name only where nothing inside tells.
            folders = [folder for folder in (self.manual_dir.name, *inside) if folder in _PARTS]
            part = _PARTS[folders[-1]] if folders else None
            if part is None:  # renamed folders: the names of the 7K set all carry TCGA
                part = "test" if "-TCGA-" in path.name else "train"
            items.append(Item(f"{part}/{path.name}", path.read_bytes, part=part, label=label))
        return items

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """The published one, and the set without colour normalisation in the place of the normalised one."""
        names = {part: tuple(item.filename for item in items if item.part == part) for part in _PARTS.values()}
        published = {part: Part(names[part]) for part in ("train", "test") if names[part]}
        description = "100K to train, 7K of other patients to test, as published"
        schemes = [SplitScheme("as_published", description, published, is_default=True)] if published else []
        if names["nonorm"]:
            nonorm = {part: Part(of) for part, of in (("train", names["nonorm"]), ("test", names["test"])) if of}
            description = "100K without colour normalisation to train, 7K to test"
            schemes.append(SplitScheme("nonorm", description, nonorm, is_default=not published))
        return schemes
