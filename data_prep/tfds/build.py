"""``python -m data_prep.tfds.build``: an archive as its authors publish it -> a TFDS dataset with split manifests.

    python -m data_prep.tfds.build --set kather --manual-dir DOWNLOADS --out SETS

The built set is ``SETS/NAME/VERSION``; ``--config.tasks.NAME.data=SETS/NAME`` evaluates on it.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from data_prep.tfds.arch import ArchBooks, ArchPubmed
from data_prep.tfds.bach import Bach
from data_prep.tfds.base import EvaluationSet, SetError
from data_prep.tfds.breakhis import Breakhis
from data_prep.tfds.colorectal_histology import ColorectalHistology
from data_prep.tfds.digestpath import DigestPath
from data_prep.tfds.kather import Kather
from data_prep.tfds.kimia_path24c import KimiaPath24c
from data_prep.tfds.lc25000 import Lc25000Colon, Lc25000Lung
from data_prep.tfds.mhist import Mhist
from data_prep.tfds.osteosarcoma import Osteosarcoma
from data_prep.tfds.pannuke import PanNuke
from data_prep.tfds.patch_camelyon import PatchCamelyon
from data_prep.tfds.sicapv2 import Sicapv2
from data_prep.tfds.skin_cancer import SkinCancer
from data_prep.tfds.wsss4luad import Wsss4luad
from plip_jax.data.image import ImageError
from plip_jax.data.split_manifest import SplitManifestError, write_scheme

SETS: dict[str, type[EvaluationSet]] = {
    "arch_books": ArchBooks,
    "arch_pubmed": ArchPubmed,
    "bach": Bach,
    "breakhis": Breakhis,
    "colorectal_histology": ColorectalHistology,
    "digestpath": DigestPath,
    "kather": Kather,
    "kimia_path24c": KimiaPath24c,
    "lc25000_colon": Lc25000Colon,
    "lc25000_lung": Lc25000Lung,
    "mhist": Mhist,
    "osteosarcoma": Osteosarcoma,
    "pannuke": PanNuke,
    "patch_camelyon": PatchCamelyon,
    "sicapv2": Sicapv2,
    "skin_cancer": SkinCancer,
    "wsss4luad": Wsss4luad,
}
"""``--set`` -> builder. Another one is a file with an `EvaluationSet`, and a line here."""


def build(
    name: str, manual_dir: str | Path, out: str | Path, *, allow_counts: bool = False, overwrite: bool = False
) -> Path:
    """Build one set.

    Args:
        name: of the set, a key of ``SETS``.
        manual_dir: the unpacked archive.
        out: folder of built sets.
        allow_counts: build although verified counts are off.
        overwrite: replace a set that was built before.

    Returns:
        The version folder.

    Raises:
        SetError: the archive is not what its authors publish, or the set is there already.
    """
    if name not in SETS:
        raise SetError(f"no set {name!r}; known: {', '.join(SETS)}")
    out = Path(out)
    # Built in a hidden folder and moved into place when whole: a build that fails leaves an older set as it was.
    partial = out / f".{name}.partial-{os.getpid()}"
    builder = SETS[name](data_dir=partial, manual_dir=manual_dir, allow_counts=allow_counts)
    made = Path(builder.data_dir)
    folder = out / made.relative_to(partial)
    if folder.exists() and not overwrite:
        raise SetError(f"{folder} is there already: choose another --out, or pass --overwrite")
    print(f"{builder.about.title}\nlicence: {builder.about.licence}\nsource: {builder.about.homepage}", flush=True)
    schemes = builder.schemes  # everything that can be wrong is found before anything is written
    for note in builder.notes:
        print(f"note: {note}", flush=True)
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(compute_stats=tfds.download.ComputeStatsMode.SKIP)
        )
        for scheme in schemes:
            write_scheme(made, scheme)
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        made.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for scheme in schemes:
        parts = ", ".join(f"{part} {len(content.filenames):,}" for part, content in scheme.parts.items())
        default = " (default)" if scheme.is_default else ""
        print(f"split {scheme.name}{default}: {parts}; sha256 {scheme.sha256[:16]}…\n  {scheme.description}")
    print(f"wrote {folder}")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit status: 0, or 1 with a message."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.tfds.build", description="Build an evaluation set.")
    parser.add_argument("--set", required=True, choices=sorted(SETS))
    parser.add_argument("--manual-dir", required=True, type=Path, help="where the archive was unpacked")
    parser.add_argument("--out", required=True, type=Path, help="folder of built sets")
    parser.add_argument("--allow-counts", action="store_true", help="build although verified counts are off")
    parser.add_argument("--overwrite", action="store_true", help="replace a set that was built before")
    flags = parser.parse_args(argv)
    try:
        build(flags.set, flags.manual_dir, flags.out, allow_counts=flags.allow_counts, overwrite=flags.overwrite)
    except (SetError, SplitManifestError, ImageError, OSError) as error:
        print(f"data_prep.tfds.build: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
