"""colorectal_histology: 5,000 tiles of eight textures (Kather et al. 2016, doi:10.1038/srep27988).

The set of this name that TFDS brings needs TensorFlow to be built. This one reads the same archive into the same
features (image, label, filename) and more: the source that each tile's name tells.
"""

import collections
import re
from collections.abc import Sequence

from data_prep.tfds.base import About, EvaluationSet, Item, SetError, find_files
from data_prep.tfds.splits import unit_parts
from plip_jax.data.split_manifest import Part, SplitScheme

CLASSES = ("tumor", "stroma", "complex", "lympho", "debris", "mucosa", "adipose", "empty")  # as the folders' numbers
_FOLDERS = {f"{number:02d}_{name.upper()}": name for number, name in enumerate(CLASSES, start=1)}
_SOURCE = re.compile(r"CRC-Prim-HE-\d\d")  # 17E8F_CRC-Prim-HE-02_007b.tif_Row_151_Col_301.tif


class ColorectalHistology(EvaluationSet, skip_registration=True):
    """All tiles, with their source as slide where the names tell it."""

    name = "colorectal_histology"
    about = About(
        title="Kather's textures of 2016: 5,000 tiles of eight tissues of colorectal cancer",
        homepage="https://zenodo.org/records/53169",
        licence="CC BY 4.0",
        citation="Kather et al., Scientific Reports 6: 27988, 2016, doi:10.1038/srep27988",
        layout="Kather_texture_2016_image_tiles_5000/01_TUMOR … 08_EMPTY, *.tif",
        classes=CLASSES,
        verified_counts={"": {"": 5000}},
        unverified_counts={"": dict.fromkeys(CLASSES, 625)},
    )

    def find_items(self) -> Sequence[Item]:
        """Each tile by its folder, in the order of the folders' numbers."""
        files = [
            path
            for pattern in ("*.tif", "*.png")
            for path in find_files(self.manual_dir, pattern)
            if path.parent.name in _FOLDERS
        ]
        if not files:
            raise SetError(f"{self.manual_dir} holds no tile below {', '.join(_FOLDERS)}; expected {self.about.layout}")
        times = collections.Counter(path.name for path in files)
        items = []
        for path in sorted(files, key=lambda path: (path.parent.name, path.name)):
            source = _SOURCE.search(path.name)
            name = path.name if times[path.name] == 1 else f"{path.parent.name}/{path.name}"
            items.append(
                Item(name, path.read_bytes, label=_FOLDERS[path.parent.name], slide_id=source[0] if source else "")
            )
        return items

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """By source where every name tells it; and everything to test."""
        names, slides = [item.filename for item in items], [item.slide_id for item in items]
        has_slides = all(slides)
        whole = "every tile to test: for models that were trained on none of them"
        schemes = [SplitScheme("all", whole, {"test": Part(tuple(names))}, is_default=not has_slides)]
        if has_slides:
            parts = unit_parts(names, slides, [item.label for item in items], {"train": 0.7, "test": 0.3})
            description = "70/30 by the source that the name tells; the publisher gives no split, a random one leaks"
            schemes.append(SplitScheme("by_slide", description, parts, is_default=True))
        else:
            self.notes.append("not every name tells its source (…_CRC-Prim-HE-NN_…): no split by slide")
        return schemes
