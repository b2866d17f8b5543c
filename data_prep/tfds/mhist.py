"""MHIST: colorectal polyps, hyperplastic (HP) or sessile serrated adenoma (SSA) by the vote of seven pathologists.

Wei et al. 2021, arXiv:2101.12355. Loaders number the two classes differently, so names are stored. The split is the
publisher's; nothing tells the patient.
"""

import hashlib
import re
from collections.abc import Sequence

from data_prep.tfds.base import About, EvaluationSet, Item, SetError, find_files
from data_prep.tfds.tables import read_table
from plip_jax.data.split_manifest import Part, SplitScheme

_TABLE = "annotations.csv"
_CHECKSUMS = "MD5SUMs.txt"
_NAME, _LABEL, _PARTITION = "Image Name", "Majority Vote Label", "Partition"
_VOTES = "Number of Annotators who Selected SSA (Out of 7)"
_VOTERS = 7


class Mhist(EvaluationSet, skip_registration=True):
    """The publisher's train and test; votes for SSA and the voters' agreement as texts."""

    name = "mhist"
    about = About(
        title="MHIST: colorectal polyps, hyperplastic or sessile serrated, by seven pathologists' votes",
        homepage="https://bmirds.github.io/MHIST",
        licence="research use agreement, to be signed: bmirds.github.io/MHIST",
        citation="Wei et al., A Petri Dish for Histopathology Image Analysis, arXiv:2101.12355, 2021",
        layout="annotations.csv and images/MHIST_*.png (and MD5SUMs.txt)",
        classes=("HP", "SSA"),
        verified_counts={"train": {"": 2_175}, "test": {"": 977}},
        unverified_counts={"train": {"HP": 1_545, "SSA": 630}, "test": {"HP": 617, "SSA": 360}},
        texts=("votes", "agreement"),
    )

    def find_items(self) -> Sequence[Item]:
        """Each row of the table, in its order."""
        tables = find_files(self.manual_dir, _TABLE)
        if len(tables) != 1:
            got = ", ".join(map(str, tables)) or "none"
            raise SetError(f"{self.manual_dir}: expected one {_TABLE} (it comes apart from images.zip), got {got}")
        self._check_files()
        images = {path.name: path for path in find_files(self.manual_dir, "*.png")}
        rows = read_table(tables[0], [_NAME, _LABEL, _PARTITION])
        missing = [row[_NAME] for row in rows if row[_NAME] not in images]
        if missing and not self.allow_counts:
            raise SetError(
                f"{len(missing)} of {len(rows)} images of {tables[0]} are not there, first {missing[0]}: unpack "
                "images.zip again, or build what is there with --allow-counts"
            )
        items = []
        for row in rows:
            if row[_NAME] not in images:
                continue
            part = row[_PARTITION].lower()
            if part not in ("train", "test"):
                raise SetError(f"{tables[0]}: {row[_NAME]} is in {row[_PARTITION]!r}; expected train or test")
            texts = _read_votes(row.get(_VOTES, ""), row[_LABEL], row[_NAME])
            items.append(Item(row[_NAME], images[row[_NAME]].read_bytes, part=part, label=row[_LABEL], texts=texts))
        if rows and _VOTES not in rows[0]:
            self.notes.append(f"the table has no column {_VOTES!r}: votes and agreement are empty")
        return items

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """The published one."""
        names = {part: tuple(i.filename for i in items if i.part == part) for part in ("train", "test")}
        parts = {part: Part(found) for part, found in names.items() if found}
        description = "the publisher's; nothing tells the patient, so intervals are over images and too narrow"
        return [SplitScheme("as_published", description, parts, is_default=True)]

    def _check_files(self) -> None:
        """Hold what lies in the folder against the publisher's checksums, where they are there.

        Raises:
            SetError: a file differs.
        """
        for sums in find_files(self.manual_dir, _CHECKSUMS):
            listed = re.findall(r"\b([0-9a-fA-F]{32})\b[ *]+(\S.*)", sums.read_text(encoding="utf-8"))
            expected = {name.strip().rsplit("/", 1)[-1]: digest.lower() for digest, name in listed}
            if not expected:
                raise SetError(f"{sums}: expected lines of an MD5 and a file's name; fetch it again or remove it")
            for path in find_files(self.manual_dir, "*"):
                if path.name in expected:
                    with path.open("rb") as file:
                        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
                    if digest != expected[path.name]:
                        raise SetError(f"{path}: expected the MD5 {expected[path.name]}, got {digest}: fetch it again")


def _read_votes(text: str, label: str, name: str) -> dict[str, str]:
    """Votes for SSA, and how many of seven agree with the label.

    Raises:
        SetError: no number of 0 to 7, or the other class has the majority.
    """
    if not text:
        return {}
    votes = int(text) if text.isdigit() else -1
    if not 0 <= votes <= _VOTERS:
        raise SetError(f"{name}: expected 0 to {_VOTERS} votes, got {text!r}")
    majority = "SSA" if 2 * votes > _VOTERS else "HP"
    if majority != label:
        raise SetError(f"{name}: {votes} of {_VOTERS} votes make it {majority}, the table says {label}")
    return {"votes": str(votes), "agreement": f"{max(votes, _VOTERS - votes)}/{_VOTERS}"}
