"""WSSS4LUAD: patches of lung adenocarcinoma that show tumour, stroma, normal tissue, or several of them.

Only the training patches carry image-level labels, three flags in the file name (Han et al. 2022, arXiv:2204.06455).
"""

import re
from collections.abc import Sequence

from data_prep.tfds.base import About, EvaluationSet, Item, SetError, find_files, find_folder
from data_prep.tfds.splits import random_parts, unit_parts
from plip_jax.data.split_manifest import SplitScheme

CLASSES = ("tumor", "stroma", "normal")  # in the order of the flags
_NAME = re.compile(r"(?P<id>.+?)-(?P<x>\d+)-(?P<y>\d+)-\[([01]), ?([01]), ?([01])\]\.png")
_SHARES = {"train": 0.7, "test": 0.3}


class Wsss4luad(EvaluationSet, skip_registration=True):
    """The label is PLIP's, tumor against all else; the label set holds what the flags say."""

    name = "wsss4luad"
    about = About(
        title="WSSS4LUAD: patches of lung adenocarcinoma, multi-label (tumor, stroma, normal)",
        homepage="https://wsss4luad.grand-challenge.org",
        licence="the terms are on the challenge's site",
        citation="Han et al., WSSS4LUAD, arXiv:2204.06455, 2022",
        layout="1.training/*.png, named like '1004470-38643-28941-[0, 0, 1].png'",
        classes=CLASSES,
        verified_counts={"": {"": 10_091, "tumor": 6_579, "normal": 3_512}},
        verified_schemes={
            "as_published/train": {"": 7_063},
            "as_published/test": {"": 3_028},
            "single_flag": {"tumor": 1_181, "stroma": 1_680, "normal": 1_832},
        },
    )

    def find_items(self) -> Sequence[Item]:
        """Each training patch by the flags of its name, in the order of the names."""
        items = []
        for path in sorted(find_files(find_folder(self.manual_dir, "1.training"), "*.png"), key=lambda path: path.name):
            name = _NAME.fullmatch(path.name)
            if name is None:
                raise SetError(f"{path}: expected a name like '1004470-38643-28941-[0, 0, 1].png'")
            seen = tuple(label for label, flag in zip(CLASSES, name.groups()[3:], strict=True) if flag == "1")
            label = "tumor" if "tumor" in seen else "normal"
            items.append(Item(path.name, path.read_bytes, label=label, label_set=seen, group_id=name["id"]))
        return items

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """By the slide or case of the name; PLIP's at random; the patches with one flag, in three classes."""
        names, labels = [item.filename for item in items], [item.label for item in items]
        single = [item for item in items if len(item.label_set) == 1]
        return [
            SplitScheme(
                "by_group",
                "70/30 by the number that begins the name, which is the slide or the case; tumor against all else, the "
                "flags as label set",
                unit_parts(names, [item.group_id for item in items], labels, _SHARES),
                is_default=True,
            ),
            SplitScheme(
                "as_published",
                "PLIP's: shuffled, 70/30, so patches of one slide are on both sides; normal holds 1,680 patches of "
                "pure stroma. Its members depend on a listing order that was not published: ours is by name. Published "
                "test: 2,015 tumor, 1,013 normal",
                random_parts(names),
            ),
            SplitScheme(
                "single_flag",
                "patches with exactly one flag, in three classes, 70/30 by the number that begins the name",
                unit_parts(
                    [item.filename for item in single],
                    [item.group_id for item in single],
                    [item.label_set[0] for item in single],
                    _SHARES,
                    own_labels=True,
                ),
            ),
        ]
