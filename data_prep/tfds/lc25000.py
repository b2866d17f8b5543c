"""LC25000: lung and colon tissue, 25,000 images that are 20 copies each of 1,250.

Borkowski et al. 2019, arXiv:1912.12142. The copies are turned, mirrored and shuffled, and the publisher does not say
which belong together, so a random split has a copy of nearly every image on both sides. The clusters of
GeorgeBatch/LC25000-clean say it; without them the set is for zero-shot only. Lung and colon are two sets, because their
classes are told apart separately.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import ClassVar

from data_prep.tfds.base import About, EvaluationSet, Item, SetError, find_files
from data_prep.tfds.splits import unit_parts
from data_prep.tfds.tables import read_table
from plip_jax.data.split_manifest import Part, SplitScheme

# Beginning of the file names (colon carcinoma is colonca, not colonaca) -> folder, which is the class.
_CLASS_OF = {
    "lungaca": "lung_aca",
    "lungn": "lung_n",
    "lungscc": "lung_scc",
    "colonca": "colon_aca",
    "colonn": "colon_n",
}
_NAME = re.compile(rf"({'|'.join(_CLASS_OF)})(\d+)\.(?:jpeg|jpg)")
_CLUSTERS = "final_clusters.csv"
_BEST_CLUSTERS = ("UNI", "resize_only")  # of several encoders and sizes in LC25000-clean, the one read
_COPIES = 20
_SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


class _Lc25000(EvaluationSet, skip_registration=True):
    """What both sets share."""

    organ: ClassVar[str]

    def find_items(self) -> Sequence[Item]:
        """Each image by its name, in the order of class and number, with its cluster where that is known."""
        found: list[tuple[str, int, Path]] = []
        for pattern in ("*.jpeg", "*.jpg"):
            for path in find_files(self.manual_dir, pattern):
                name = _NAME.fullmatch(path.name)
                if name is None or not path.name.startswith(self.organ):
                    continue
                label = _CLASS_OF[name[1]]
                if path.parent.name in _CLASS_OF.values() and path.parent.name != label:
                    raise SetError(f"{path}: the name says {label}, the folder {path.parent.name}")
                found.append((label, int(name[2]), path))
        found.sort(key=lambda image: image[:2])
        cluster_of = self._read_clusters()
        missing = [path.name for _, _, path in found if cluster_of and path.name not in cluster_of]
        if missing:
            raise SetError(
                f"{len(missing)} images are in no {_CLUSTERS}, first {missing[0]}: fetch the annotations again"
            )
        groups = {label: set[str]() for label in self.about.classes}
        items = []
        for label, _, path in found:
            group = f"{label}_{cluster_of[path.name]}" if cluster_of else ""  # numbers begin anew in each class
            groups[label].add(group)
            items.append(Item(f"{label}/{path.name}", path.read_bytes, label=label, group_id=group))
        if cluster_of:
            self.more_counts["clusters"] = {label: len(names) for label, names in groups.items()}
            originals, how = sum(map(len, groups.values())), "clusters"
        else:
            originals, how = len(items) // _COPIES, f"at {_COPIES} copies each; which belong together is not known here"
        self.notes.append(f"{len(items):,} images are copies of {originals:,} originals ({how}): n is {originals:,}")
        return items

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """By cluster where the clusters are known; and everything to test."""
        names = [item.filename for item in items]
        groups = [item.group_id for item in items]
        is_clustered = all(groups)
        caveat = "" if is_clustered else f"; every original is there {_COPIES} times and intervals are far too narrow"
        schemes = [
            SplitScheme(
                "all",
                f"every image to test, for zero-shot only{caveat}",
                {"test": Part(tuple(names))},
                is_default=not is_clustered,
            )
        ]
        if is_clustered:
            parts = unit_parts(names, groups, [item.label for item in items], _SHARES)
            description = "60/20/20 by cluster of copies (GeorgeBatch/LC25000-clean); the publisher gives no split"
            schemes.append(SplitScheme("by_cluster", description, parts, is_default=True))
        return schemes

    def _read_clusters(self) -> dict[str, str]:
        """File name -> number of its cluster within its class; empty without annotations."""
        tables = find_files(self.manual_dir, _CLUSTERS)
        best = [path for path in tables if path.parts[-3:-1] == _BEST_CLUSTERS]
        cluster_of: dict[str, str] = {}
        for path in best or tables:
            for row in read_table(path, ["cluster_label", "img_path"]):
                name = PureWindowsPath(row["img_path"]).name  # takes both kinds of slash
                if cluster_of.setdefault(name, row["cluster_label"]) != row["cluster_label"]:
                    raise SetError(
                        f"{path}: {name} is in cluster {row['cluster_label']} here and in {cluster_of[name]} "
                        f"elsewhere; keep one annotation, such as {'/'.join(_BEST_CLUSTERS)}"
                    )
        return cluster_of


_HOMEPAGE = "https://github.com/tampapath/lung_colon_image_set"
_LICENCE = "freely available to AI researchers, as the paper says; no licence is named (copies name several)"
_CITATION = "Borkowski et al., Lung and Colon Cancer Histopathological Image Dataset (LC25000), arXiv:1912.12142, 2019"
_LAYOUT = (
    "lung_colon_image_set/{0}_image_sets/{1}, NAME.jpeg; and, for splits by cluster, annotations/ of "
    "github.com/GeorgeBatch/LC25000-clean beside it"
)


class Lc25000Lung(_Lc25000, skip_registration=True):
    """Three classes of lung."""

    name = "lc25000_lung"
    organ = "lung"
    about = About(
        title="LC25000, lung: adenocarcinoma, normal, squamous cell carcinoma; 20 copies of each image",
        homepage=_HOMEPAGE,
        licence=_LICENCE,
        citation=_CITATION,
        layout=_LAYOUT.format("lung", "lung_aca, lung_n, lung_scc"),
        classes=("lung_aca", "lung_n", "lung_scc"),
        verified_counts={"": dict.fromkeys(("lung_aca", "lung_n", "lung_scc"), 5_000)},
        unverified_counts={"clusters": dict.fromkeys(("lung_aca", "lung_n", "lung_scc"), 250)},
    )


class Lc25000Colon(_Lc25000, skip_registration=True):
    """Two classes of colon."""

    name = "lc25000_colon"
    organ = "colon"
    about = About(
        title="LC25000, colon: adenocarcinoma, normal; 20 copies of each image",
        homepage=_HOMEPAGE,
        licence=_LICENCE,
        citation=_CITATION,
        layout=_LAYOUT.format("colon", "colon_aca, colon_n"),
        classes=("colon_aca", "colon_n"),
        verified_counts={"": dict.fromkeys(("colon_aca", "colon_n"), 5_000)},
        unverified_counts={"clusters": dict.fromkeys(("colon_aca", "colon_n"), 250)},
    )
