"""KIMIA Path24C: patches of 24 slides, each slide a class (Shafiei et al. 2021, arXiv:2102.07611).

The class is the slide, so a result measures how well slide and stain are told apart, not a diagnosis.
"""

import re
from collections.abc import Sequence

from data_prep.tfds.base import About, EvaluationSet, Item, SetError, find_files, find_folder
from plip_jax.data.split_manifest import Part, SplitScheme

CLASSES = tuple(f"s{number}" for number in range(24))  # by number: s10 comes after s9
_FOLDER = re.compile(r"s?0*(\d+)", re.IGNORECASE)


class KimiaPath24c(EvaluationSet, skip_registration=True):
    """The test patches."""

    name = "kimia_path24c"
    about = About(
        title="KIMIA Path24C: test patches of 24 slides; the class is the slide",
        homepage="https://kimia.uwaterloo.ca",
        licence="ask KIMIA Lab, University of Waterloo; no licence is known",
        citation="Shafiei et al., Colored Kimia Path24 Dataset, arXiv:2102.07611, 2021",
        layout="KIMIA_Path24C/Test-patches/s0 … s23, *.jpg at any depth below",
        classes=CLASSES,
        verified_counts={"": {"": 1_325}},
    )

    def find_items(self) -> Sequence[Item]:
        """Each test patch by the folder of its slide."""
        root = find_folder(self.manual_dir, "Test-patches")
        items = []
        for path in find_files(root, "*.jpg"):
            name = path.relative_to(root).as_posix()
            folder, inside, _ = name.partition("/")
            slide = _FOLDER.fullmatch(folder)
            if slide is None or not inside:
                raise SetError(f"{path}: expected a folder s0 … s23 below {root.name}, got {folder}")
            label = f"s{slide[1]}"
            items.append(Item(name, path.read_bytes, label=label, slide_id=label))
        return sorted(items, key=lambda item: (int(item.label[1:]), item.filename))

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """All of them to test, as PLIP has it: neighbours are sought among the other test patches."""
        description = "the publisher's test patches; class and slide are one, so no split by slide can be made"
        parts = {"test": Part(tuple(item.filename for item in items))}
        return [SplitScheme("as_published", description, parts, is_default=True)]
