"""What is resampled: the highest unit of a split that is known to be independent.

Patches of one slide, slides of one patient and copies of one image are alike; an interval that resamples patches as if
they were independent is too narrow. So the unit is the patient where it is known, else the slide, else the group (a
post, a cluster of duplicates), and the patch only where nothing better is known, labelled as such.
"""

import dataclasses

import numpy as np

from plip_jax.evaluation.examples import Examples

PATCH_LEVEL = "patch-level: too narrow"


@dataclasses.dataclass(frozen=True)
class Units:
    """Which unit each example belongs to.

    Attributes:
        kind: "patient", "slide", "group" or "patch".
        of_item: int64 [N], in [0, count).
        count: units.
    """

    kind: str
    of_item: np.ndarray
    count: int

    @property
    def label(self) -> str:
        """What a report says of intervals over these units."""
        return PATCH_LEVEL if self.kind == "patch" else f"{self.kind}-level"

    def take(self, rows: np.ndarray) -> "Units":
        """The units of some examples, numbered anew."""
        found, of_item = np.unique(self.of_item[rows], return_inverse=True)
        return Units(self.kind, of_item.astype(np.int64), len(found))


def choose_units(examples: Examples) -> Units:
    """The highest unit that every example names: patient, slide, group; else each example is its own."""
    for kind, names in (
        ("patient", examples.patient_ids),
        ("slide", examples.slide_ids),
        ("group", examples.group_ids),
    ):
        # A group of its own for every example is no more than a patch.
        if names and all(names) and (kind != "group" or len(set(names)) < len(names)):
            return units_of(kind, names)
    return Units("patch", np.arange(len(examples.ids), dtype=np.int64), len(examples.ids))


def units_of(kind: str, names: tuple[str, ...]) -> Units:
    """Number the units in the order of their first example."""
    number: dict[str, int] = {}
    of_item = np.asarray([number.setdefault(name, len(number)) for name in names], np.int64)
    return Units(kind, of_item, len(number))
