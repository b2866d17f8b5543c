"""Curates a week of posts and looks at what came of it, shared by the tests of the whole pipeline."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from curation_week import Week, plan_week
from image_server import ImageServer
from week_dumps import week_config, write_dumps
from week_images import DistinctImages

from data_prep import verify
from data_prep.curate import curate
from data_prep.curation.authors import load_author_key, make_author_key
from data_prep.curation.config import CurationConfig
from data_prep.removing.holders import record_fingerprints
from data_prep.reports.decisions import DecisionRow, read_decisions
from plip_jax.data.records import open_records, read_manifest

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Curated:
    """A week, and where it was curated: `folder` / "key", "work" and "out"."""

    week: Week
    config: CurationConfig
    folder: Path

    @property
    def work(self) -> Path:
        """Of the first run."""
        return self.folder / "work"

    @property
    def out(self) -> Path:
        """Of the first run."""
        return self.folder / "out"

    def again(self, work: Path, out: Path, **engine: object) -> None:
        """Curate it once more, with another engine."""
        config = dataclasses.replace(self.config, engine=dataclasses.replace(self.config.engine, **engine))
        key = load_author_key(self.folder / "key", work=work, out=out)
        curate(config, work, out, key, acknowledge_missing=True, overwrite=True)

    def copy(self, folder: Path, **blocks: object) -> "Curated":
        """The same week with folders of its own, which a test may change, and other blocks of the configuration."""
        for name in ("work", "out"):
            shutil.copytree(self.folder / name, folder / name)
        shutil.copy(self.folder / "key", folder / "key")
        # The copy was made of the copied work folder, and of no other.
        (folder / "work" / "fingerprints.jsonl").unlink()
        record_fingerprints(folder / "work", folder / "out")
        return dataclasses.replace(self, folder=folder, config=dataclasses.replace(self.config, **blocks))


def curate_week(
    folder: Path,
    server: ImageServer,
    images: DistinctImages,
    plan: Callable[[Week], None],
    change: Callable[[dict[str, Path]], object] = week_config,
) -> Curated:
    """Plant a week, write its dumps and curate them.

    Args:
        folder: Gets everything.
        server: Of the images.
        images: Where they come from.
        plan: Plants the posts.
        change: Makes the configuration for the folders of the dumps.
    """
    week = Week(folder / "dumps", server, images)
    plan(week)
    return curate_folders(folder, week, CurationConfig.read(change(write_dumps(week))))


def curate_folders(folder: Path, week: Week, config: CurationConfig) -> Curated:
    """Curate a week whose dumps are written."""
    make_author_key(folder / "key")
    curated = Curated(week, config, folder)
    curated.again(curated.work, curated.out)
    return curated


def small_week(week: Week) -> None:
    """Two dozen posts that are kept, and one of each fault."""
    plan_week(week, plain=24)


def dataset_bytes(out: Path) -> dict[str, bytes]:
    """Every file of a records folder."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def kept_captions(out: Path) -> dict[str, tuple[str, ...]]:
    """Captions of all records, by id."""
    return {record.id: record.captions for split in read_manifest(out).splits for record in open_records(out, split)}


def split_sizes(out: Path) -> dict[str, int]:
    """Records of each split."""
    return {split: sum(shard.num_examples for shard in shards) for split, shards in read_manifest(out).splits.items()}


def rows_of(out: Path) -> list[DecisionRow]:
    """All decisions."""
    return list(read_decisions(out / "decisions.parquet"))


def assert_truth(curated: Curated) -> None:
    """What was planted is what was decided, the records are those of the kept pairs, and they are sound."""
    assert curated.week.differences(rows_of(curated.out)) == {}
    assert kept_captions(curated.out) == {one: (caption,) for one, caption in curated.week.captions.items()}
    assert verify.main([str(curated.out)]) == 0


def assert_reconciles(out: Path) -> dict:
    """What comes in is what goes on and what is dropped, stage by stage; returns the funnel."""
    funnel = json.loads((out / "funnel.json").read_text())
    for sources in (*funnel["units"].values(), funnel["totals"]):
        for steps in sources.values():
            for step, following in zip(steps, [*steps[1:], None], strict=True):
                assert step["in"] == step["kept"] + sum(step["dropped"].values())
                assert following is None or following["in"] == step["kept"]
    return funnel
