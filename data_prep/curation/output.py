"""What a curation leaves in the output folder: shards, decisions, funnel and datasheet, published by one rename."""

import dataclasses
import functools
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam

from data_prep.curated_shards import ShardKey, ShardSettings, file_of, finish_folder, shard_key, write_shard
from data_prep.curation.close_pairs import report_close_pairs
from data_prep.curation.config import CurationConfig
from data_prep.curation.engine import Engine, StageFolder, fingerprint_of, watch
from data_prep.curation.pair import KEPT, STAGES, Decision, Pair
from data_prep.curation.rows import decode_row, encode_row, part_files, read_part, read_rows, write_atomically
from data_prep.grouping.split_proof import prove_disjoint
from data_prep.images.gates import Gate, load_gates, may_show
from data_prep.removing.purge_records import record_ids
from data_prep.reports.composition import measure_composition
from data_prep.reports.datasheet import DATASHEET_NAME, write_datasheet
from data_prep.reports.decisions import DECISIONS_NAME, write_decisions
from data_prep.reports.funnel import FUNNEL_NAME, StageRows, count_funnel
from data_prep.reports.funnel_page import FUNNEL_PAGE_NAME, funnel_page
from data_prep.reports.thumbnails import choose_thumbnails, show_kept
from data_prep.sources.post import Post
from data_prep.text.clean_text import caption_key
from plip_jax import __version__
from plip_jax.data.records import Manifest, Shard, is_records_folder, read_manifest, records_root

REPORTS_NAME = "reports"
_STAGED_NAME = "staged_shards"


class OutputError(ValueError):
    """The result is not what it must be; the message says what is wrong."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """The stages of a work folder, when all of them are done.

    Attributes:
        work: The work folder.
        config: Of the run.
    """

    work: Path
    config: CurationConfig

    def kept(self, stage: str) -> Path:
        """Part files of what went on from a stage."""
        return StageFolder(self.work / "stages" / stage).kept

    def pairs(self) -> Iterator[Pair]:
        """The pairs of the dataset."""
        return read_rows(self.kept("split"), Pair)

    def decisions(self) -> Iterator[Decision]:
        """Where everything ended: each drop of each stage, and each kept pair."""
        for stage in STAGES:
            yield from read_rows(StageFolder(self.work / "stages" / stage).dropped, Decision)
        for pair in self.pairs():
            yield Decision("pair", pair.id, pair.source, KEPT, pair=pair)

    def plans(self) -> dict[str, Any]:
        """What `duplicate` and `split` counted when they decided."""
        return {name: StageFolder(self.work / "stages" / name).plan() for name in ("duplicate", "split")}

    def versions(self) -> dict[str, Any]:
        """What the result depends on beside the input."""
        return {"plip_jax": __version__, "settings": self.config.flat()}


def write_output(finished: Finished, out: Path, engine: Engine, *, overwrite: bool) -> Manifest:
    """Write the shards and the reports, and publish both as the records folder `out`.

    Raises:
        OutputError: Nothing was kept, and where it all went.
    """
    if next(finished.pairs(), None) is None:
        ended = Counter(f"{decision.stage} {decision.reason}" for decision in finished.decisions())
        where = ", ".join(f"{reason} {count}" for reason, count in ended.most_common()) or "nothing was read"
        raise OutputError(f"nothing was kept. Where it ended: {where}")
    shards = write_shards(finished, out, engine)
    gates = load_gates(finished.config.gate)
    shown = functools.partial(may_show, gates=gates)
    folder = write_reports(finished, gates=gates, may_show=shown)
    manifest = finish_folder(out, finished.work / _STAGED_NAME, shards, reports=folder, overwrite=overwrite)
    shutil.rmtree(folder)
    return manifest


def rebuild_reports(work: Path, out: Path) -> str:
    """Write the reports of a records folder anew, from the rows that are left after a takedown.

    Only kept pairs are shown: the gates that say what else may be are not asked for again.

    Returns:
        Why they were left as they are; empty where they were written.
    """
    unfinished = [stage for stage in STAGES if not (work / "stages" / stage / "DONE.json").is_file()]
    if unfinished:
        return f"the run of the work folder is not finished ({', '.join(unfinished)}): it makes them at its end"
    try:
        finished = Finished(work, CurationConfig.load(work))
        if not _is_made_of(out, finished):
            return "another run of the work folder made it"
        folder = write_reports(finished, gates=(), may_show=show_kept)
    except (ValueError, OSError) as error:  # a run killed half way leaves stages of two runs, which do not add up
        shutil.rmtree(work / REPORTS_NAME, ignore_errors=True)
        return str(error)
    for path in sorted(folder.iterdir()):
        write_atomically(out / path.name, path.read_bytes())
    shutil.rmtree(folder)
    return ""


def _is_made_of(out: Path, finished: Finished) -> bool:
    if not is_records_folder(out):
        return False
    root = records_root(out)
    made = Counter(name for split in read_manifest(root).splits for name in record_ids(root, split))
    return made == Counter(pair.id for pair in finished.pairs())


def write_shards(finished: Finished, out: Path, engine: Engine) -> dict[str, list[Shard]]:
    """Write every shard by a task of its own; those that an unfinished run wrote from the same pairs stay."""
    settings = finished.config.shards
    staged = finished.work / _STAGED_NAME
    task = functools.partial(
        _write_one, staged=staged, clean=finished.work / "store" / "clean", out=out, settings=settings
    )
    parts = part_files(finished.kept("split"))
    splits = sorted({pair.split for pair in finished.pairs()})

    def build(pipeline: beam.Pipeline) -> Any:
        filled = (
            pipeline
            | "parts" >> beam.Create(parts)
            | "spread" >> beam.Reshuffle()
            | "read" >> beam.FlatMap(functools.partial(_read_by_shard, settings=settings))
        )
        # Of each shard at least one element, or an empty one would not be written.
        empty = pipeline | "shards" >> beam.Create(
            [(key, "") for key in itertools.product(splits, range(settings.shards))]
        )
        return (filled, empty) | "both" >> beam.Flatten() | "shuffle" >> beam.GroupByKey() | "write" >> beam.Map(task)

    staged.mkdir(parents=True, exist_ok=True)
    with watch("shards", lambda: len(list(staged.glob("*.json"))), len(splits) * settings.shards):
        engine.run(build)
    return {
        split: [_read_about(staged, out, (split, number), settings) for number in range(settings.shards)]
        for split in splits
    }


def _read_by_shard(path: Path, *, settings: ShardSettings) -> Iterator[tuple[ShardKey, str]]:
    for pair in read_part(path, Pair):
        yield shard_key(pair, settings), encode_row(pair)


def _about_path(staged: Path, out: Path, key: ShardKey, settings: ShardSettings) -> Path:
    return staged / f"{file_of(out, key, settings)}.json"


def _read_about(staged: Path, out: Path, key: ShardKey, settings: ShardSettings) -> Shard:
    return Shard(**json.loads(_about_path(staged, out, key, settings).read_text())["shard"])


def _write_one(
    keyed: tuple[ShardKey, Iterable[str]], *, staged: Path, clean: Path, out: Path, settings: ShardSettings
) -> str:
    """Write a shard and, last, what it was made from."""
    key, lines = keyed
    rows = sorted(line for line in lines if line)
    made_from = fingerprint_of(rows, dataclasses.asdict(settings))
    about = _about_path(staged, out, key, settings)
    path = staged / file_of(out, key, settings)
    if about.is_file() and path.is_file() and json.loads(about.read_text())["made_from"] == made_from:
        return path.name
    shard = write_shard([decode_row(Pair, line) for line in rows], clean, path, settings)
    write_atomically(about, json.dumps({"made_from": made_from, "shard": dataclasses.asdict(shard)}).encode())
    return path.name


def write_reports(finished: Finished, *, gates: tuple[Gate, ...], may_show: Callable[[Decision], bool]) -> Path:
    """Write the decisions, the funnel and the datasheet into the work folder, and return theirs.

    Args:
        finished: The stages.
        gates: Of the run.
        may_show: Whether the image of a decision may be an example on it.

    Raises:
        OutputError: The splits share something that they must not.
        FunnelError: The stages and the decisions do not account for the same posts and pairs.
    """
    config = finished.config
    folder = finished.work / REPORTS_NAME
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    funnel = count_funnel(finished.decisions(), stage_rows(finished))
    composition = measure_composition(finished.pairs())
    proof = prove_disjoint(
        finished.pairs(),
        config.split.keep_together,
        config.duplicates.radius,
        caption_key,
        hash_is_phash=config.duplicates.hash == "phash",
    )
    if not proof["holds"]:
        raise OutputError(
            f"the splits share what they must not ({proof['shared']}): nothing is published. This is an error of the "
            "program; keep the work folder"
        )
    close = report_close_pairs(finished.pairs, finished.work / "vectors", gates, config.duplicates.embedding_threshold)
    thumbnails = choose_thumbnails(finished.decisions(), finished.work / "store" / "clean", may_show=may_show)
    versions = finished.versions()
    write_decisions(finished.decisions(), folder / DECISIONS_NAME, versions=versions)
    write_atomically(folder / FUNNEL_NAME, funnel.to_json().encode())
    page = funnel_page(
        title=config.datasheet.title,
        funnel=funnel,
        composition=composition,
        thumbnails=thumbnails,
        proof={**proof, **finished.plans(), "close": close},
        settings=versions,
    )
    write_atomically(folder / FUNNEL_PAGE_NAME, page.encode())
    write_datasheet(
        folder / DATASHEET_NAME,
        config.datasheet,
        funnel=funnel,
        composition=composition,
        proof=proof,
        run_settings=versions,
    )
    return folder


def stage_rows(finished: Finished) -> dict[str, StageRows]:
    """Count what came into each stage and went on, by source, from the rows that the stages left."""
    went_on = Counter(post.source for post in read_rows(finished.kept("source"), Post))
    ended = read_rows(StageFolder(finished.work / "stages" / "source").dropped, Decision)
    rows = {"source": StageRows(went_on + Counter(decision.source for decision in ended), went_on)}
    for stage in STAGES[1:]:
        came = went_on
        went_on = Counter(pair.source for pair in read_rows(finished.kept(stage), Pair))
        rows[stage] = StageRows(came, went_on)
    return rows
