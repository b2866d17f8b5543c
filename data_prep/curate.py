r"""Curate raw posts into a records folder in which every kept pair and every dropped post is accounted for.

    python -m data_prep.curate --config configs/data/openpath.py --work WORK --out OUT --author-key KEY \
        --config.sources.twitter.path=DUMPS

The stages run one after the other, each from the rows of the one before to its own folder in WORK, and each only if its
input or settings changed: a run that was killed goes on with the same command. WORK holds what people wrote and what
was fetched and stays private; OUT is the dataset.
"""

if __name__ == "__main__":  # before the imports that would fail
    from data_prep.extras import CURATION, need_data

    need_data("data_prep.curate", *CURATION)

import argparse
import contextlib
import dataclasses
import datetime
import functools
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL

from data_prep.curation import stages
from data_prep.curation.authors import (
    AuthorKey,
    check_key_place,
    check_same_key,
    key_check,
    load_author_key,
    make_author_key,
)
from data_prep.curation.config import CurationConfig, CurationError
from data_prep.curation.deletions import find_deletions
from data_prep.curation.engine import Engine, StageFolder, fingerprint_of, run_here, run_stage
from data_prep.curation.output import Finished, write_output
from data_prep.curation.pair import Decision, Pair
from data_prep.curation.rows import part_files, read_rows, write_atomically
from data_prep.curation.verdicts import Verdicts, ids_of, read_verdicts
from data_prep.fetching.hydration_settings import PACE
from data_prep.fetching.hydration_state import HydrationState
from data_prep.fetching.store import Store
from data_prep.grouping.duplicates import judge_duplicate, plan_duplicates
from data_prep.grouping.split import judge_split, plan_splits
from data_prep.hydrate import hydrate
from data_prep.images.gates import load_gates
from data_prep.removing.holders import record_fingerprints
from data_prep.removing.removal import TAKEDOWN
from data_prep.removing.tombstones import Tombstone, Tombstones, add_tombstones, seal
from data_prep.reports.datasheet import check_datasheet
from data_prep.shards import check_out, sha256_of
from data_prep.sources.post import Post
from data_prep.sources.table import input_files
from data_prep.takedown import is_pending
from plip_jax.config_file import parse_config_args
from plip_jax.data.records import Manifest

CODE_VERSION = 2
"""Grows when the code of a stage changes what it keeps: what an older one left is then made anew."""

_PUBLISHING_NAME = "publishing"


class Curation:
    """One run over a work folder: the stages in their order, each with a fingerprint of all that it depends on."""

    def __init__(self, config: CurationConfig, work: Path, key: AuthorKey, engine: Engine) -> None:
        self.config = config
        self.work = work
        self.fingerprint = fingerprint_of(CODE_VERSION)
        self._key = key
        self._engine = engine
        self._sources = config.by_source()
        self._tombstones = Tombstones.load(work)

    def folder(self, name: str) -> StageFolder:
        """The folder of a stage."""
        return StageFolder(self.work / "stages" / name)

    def run(self) -> None:
        """Run all stages, or what is left of them."""
        for run_one in (
            self._source,
            self._thread,
            self._text,
            self._hydrate_and_image,
            self._gate,
            self._verdict,
            self._duplicate,
            self._split,
        ):
            run_one()

    def _depend_on(self, *facts: Any) -> None:
        """Take facts into the fingerprints of the next stage and of all behind it."""
        self.fingerprint = fingerprint_of(self.fingerprint, *facts)

    def _on_beam(
        self,
        name: str,
        before: str,
        task: Callable[..., Any],
        *,
        kind: Any = Pair,
        read: Callable[[Path], Iterable[Any]] = stages.read_same,
    ) -> None:
        previous = self.folder(before)
        run_stage(
            self._engine,
            self.folder(name),
            self.fingerprint,
            inputs=part_files(previous.kept),
            read=read,
            kind=kind,
            task=task,
            expected=previous.counts()["kept"],
        )

    def _here(self, name: str, before: str, task: Callable[..., Any], plan: Mapping[str, Any] | None = None) -> None:
        previous = self.folder(before)
        run_here(
            self.folder(name),
            self.fingerprint,
            inputs=part_files(previous.kept),
            kind=Pair,
            task=task,
            expected=previous.counts()["kept"],
            plan=plan,
        )

    def _source(self) -> None:
        files = [(one.name, path) for one in self.config.sources for path in input_files(one.kind, one.path)]
        # Those that a reader is told of besides are known by what is in them.
        named = [getattr(one.settings, "rows_file", "") for one in self.config.sources]
        # A folder that is read as a whole is known by the files in it.
        inside = [
            (name, file) for name, path in files for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        ]
        seen = [(name, file.name, file.stat().st_size, file.stat().st_mtime_ns) for name, file in inside]
        readers = [(one.name, one.kind, dataclasses.asdict(one.settings)) for one in self.config.sources]
        self._depend_on(seen, readers, _file_hashes(path for path in named if path), key_check(self._key))
        partitions = self._engine.settings.partitions
        run_stage(
            self._engine,
            self.folder("source"),
            self.fingerprint,
            inputs=files,
            read=functools.partial(stages.read_items, sources=self._sources, key=self._key, partitions=partitions),
            kind=stages.Item,
            task=functools.partial(stages.judge_items, tombstones=self._tombstones, sources=self._sources),
        )

    def _thread(self) -> None:
        self._depend_on([(one.name, dataclasses.asdict(one.threads)) for one in self.config.sources])
        partitions = self._engine.settings.partitions
        found = stages.find_all_conversations(read_rows(self.folder("source").kept, Post))
        platforms = {one.name: one.platform for one in self.config.sources}
        deletions = find_deletions(read_rows(self.folder("source").kept, Post), platforms)
        self._on_beam(
            "thread",
            "source",
            functools.partial(stages.pair_conversations, sources=self._sources, deletions=deletions),
            kind=Post,
            read=functools.partial(stages.read_by_conversation, found=found, partitions=partitions),
        )

    def _text(self) -> None:
        self._depend_on(
            [
                (one.name, dataclasses.asdict(one.text), dataclasses.asdict(one.text_of_laion))
                for one in self.config.sources
            ]
        )
        self._on_beam("text", "thread", functools.partial(stages.clean_texts, sources=self._sources))

    def _hydrate_and_image(self) -> None:
        """Fetch and clean; where copies of removed images came back, once more without them."""
        before = self.fingerprint
        self._hydrate()
        self._image()
        if len(self._tombstones) and self._remove_copies():
            self.fingerprint = before
            self._hydrate()
            self._image()

    def _remove_copies(self) -> int:
        """Take down the images that the stage `image` knew for copies of removed ones; returns how many there were.

        Only it sees pixels, and `hydrate`, which knows files, must refuse them from now on.
        """
        ended = {one.id for one in read_rows(self.folder("image").dropped, Decision) if one.reason == TAKEDOWN}
        pairs = read_rows(self.folder("hydrate").kept, Pair) if ended else ()
        digests = sorted({pair.digest for pair in pairs if pair.id in ended})
        if digests:
            with HydrationState(self.work / "hydration.sqlite") as state:
                state.begin_generation()  # first: a run that is killed here finds them again
            salt = self._tombstones.salt
            stones = [Tombstone("image", seal(salt, "image", digest), "derived") for digest in digests]
            self._tombstones = add_tombstones(self.work, stones)
        return len(digests)

    def _hydrate(self) -> None:
        """Fetch what is not there yet, then look each pair's image up: on this machine, which owns the state."""
        previous = self.folder("text")
        state, store = HydrationState(self.work / "hydration.sqlite"), Store(self.work / "store" / "originals")
        try:
            urls = (pair.url for pair in read_rows(previous.kept, Pair) if pair.url)
            hydrate(urls, store, state, self.config.hydration, is_removed=self._tombstones.has)
            asked = {
                name: value for name, value in dataclasses.asdict(self.config.hydration).items() if name not in PACE
            }
            folders = [(one.name, str(one.images.absolute())) for one in self.config.sources]
            self._depend_on(asked, folders)
            if self._has_missing_file_come():
                state.begin_generation()
            self._depend_on(state.generation)
            task = functools.partial(
                stages.find_images,
                sources=self._sources,
                settings=self.config.hydration,
                store=store,
                state=state,
                tombstones=self._tombstones,
            )
            self._here("hydrate", "text", task)
        finally:
            state.close()

    def _has_missing_file_come(self) -> bool:
        """Whether a local image that was missing is there now; a takedown, which removes rows, changes no answer."""
        for decision in read_rows(self.folder("hydrate").dropped, Decision):
            pair = decision.pair
            if pair is not None and decision.reason == "missing_file" and pair.path:
                with contextlib.suppress(ValueError):  # a name with a zero byte
                    if (self._sources[stages.source_of(pair)].images / pair.path).is_file():
                        return True
        return False

    def _image(self) -> None:
        # What must be encoded again depends on the encoder.
        self._depend_on(dataclasses.asdict(self.config.image), PIL.__version__)
        task = functools.partial(
            stages.clean_images, settings=self.config.image, work=self.work, tombstones=self._tombstones
        )
        read = functools.partial(stages.read_by_digest, partitions=self._engine.settings.partitions)
        self._on_beam("image", "hydrate", task, read=read)

    def _gate(self) -> None:
        gates, settings = load_gates(self.config.gate), self.config.verdicts
        contents = tuple(_file_hashes(settings.files))
        self._depend_on([dataclasses.asdict(gate) for gate in gates], contents, dataclasses.asdict(settings))
        gating = functools.partial(
            stages.apply_all_gates, settings=self.config.gate, verdicts=settings, contents=contents, work=self.work
        )
        self._on_beam("gate", "image", gating)

    def _verdict(self) -> None:
        settings = self.config.verdicts
        contents = tuple(_file_hashes(settings.files))
        judging = functools.partial(stages.apply_verdicts, settings=settings, contents=contents, sources=self._sources)
        self._on_beam("verdict", "gate", judging)
        if settings.files:
            self._say_unused_verdicts(read_verdicts(settings.files))

    def _say_unused_verdicts(self, verdicts: Verdicts) -> None:
        """Name the lines that say nothing, and count those about no pair that came so far."""
        known = {one for pair in read_rows(self.folder("image").kept, Pair) for one in ids_of(pair)}
        for fault in verdicts.malformed:
            print(f"verdicts: {fault}", file=sys.stderr)
        if unknown := verdicts.unknown(known):
            print(f"verdicts: {len(unknown)} are about no pair there is, the first {unknown[0]!r}", file=sys.stderr)

    def _duplicate(self) -> None:
        self._depend_on(dataclasses.asdict(self.config.duplicates))
        if self.folder("duplicate").is_done(self.fingerprint):
            return
        clean = self.work / "store" / "clean"
        plan = plan_duplicates(read_rows(self.folder("verdict").kept, Pair), self.config.duplicates, clean)
        self._here(
            "duplicate", "verdict", lambda part, pairs: [judge_duplicate(pair, plan) for pair in pairs], plan.report
        )

    def _split(self) -> None:
        self._depend_on(dataclasses.asdict(self.config.split))
        if self.folder("split").is_done(self.fingerprint):
            return
        plan = plan_splits(read_rows(self.folder("duplicate").kept, Pair), self.config.split)
        self._here("split", "duplicate", lambda part, pairs: [judge_split(pair, plan) for pair in pairs], plan.report)


def _file_hashes(paths: Iterable[str]) -> list[str]:
    return [sha256_of(Path(path)) for path in paths]


def curate(
    config: CurationConfig,
    work: Path,
    out: Path,
    key: AuthorKey,
    *,
    overwrite: bool = False,
    acknowledge_missing: bool = False,
) -> Manifest:
    """Curate raw posts into the records folder `out`.

    Args:
        config: All settings.
        work: Folder of the stages; private. Made where it is not there.
        out: Folder to make.
        key: Of the authors' hashes.
        overwrite: Replace the records in `out` when all is written.
        acknowledge_missing: Go on where the datasheet lacks required fields.

    Raises:
        DatasheetError: Required fields are missing and that is not acknowledged.
        FileExistsError: `out` holds something else, or records that may not be replaced.
        ValueError: A source, a setting, a gate, the key or the result cannot be used; the message says what to change.
    """
    check_datasheet(config.datasheet, acknowledge_missing=acknowledge_missing)
    publishing = work / _PUBLISHING_NAME
    # A run that was killed while it published may have left its own result.
    check_out(out, overwrite=overwrite or _names(publishing, out))
    if is_pending(work):
        raise CurationError(f"a takedown in {work} was begun and not finished: finish it first (data_prep.takedown)")
    check_same_key(key, work)
    with Engine(config.engine) as engine:
        Curation(config, work, key, engine).run()
        config.save(work)
        overwrite = overwrite or _names(publishing, out)
        write_atomically(publishing, str(out.absolute()).encode())
        manifest = write_output(Finished(work, config), out, engine, overwrite=overwrite)
    record_fingerprints(work, out, date=datetime.datetime.now(datetime.UTC).date().isoformat())
    publishing.unlink()
    return manifest


def _names(publishing: Path, out: Path) -> bool:
    """Whether the last run was killed while it published this folder."""
    return publishing.is_file() and publishing.read_text() == str(out.absolute())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status: 0, or 1 with a message when nothing could be made."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.curate", description="Raw posts -> records.")
    parser.add_argument("--work", type=Path, required=True, help="folder of the stages; private")
    parser.add_argument("--out", type=Path, required=True, help="records folder to make")
    parser.add_argument(
        "--author-key", type=Path, required=True, help="file of the key that authors are hashed with, outside of both"
    )
    parser.add_argument("--make-author-key", action="store_true", help="make the key where there is none yet")
    parser.add_argument("--overwrite", action="store_true", help="replace the records in --out when all is written")
    parser.add_argument(
        "--acknowledge-missing", action="store_true", help="go on where the datasheet lacks required fields"
    )
    flags, config = parse_config_args(parser, argv)
    started = time.monotonic()
    try:
        if flags.make_author_key and not flags.author_key.exists():
            check_key_place(flags.author_key, work=flags.work, out=flags.out)
            make_author_key(flags.author_key)
        key = load_author_key(flags.author_key, work=flags.work, out=flags.out)
        manifest = curate(
            CurationConfig.read(config),
            flags.work,
            flags.out,
            key,
            overwrite=flags.overwrite,
            acknowledge_missing=flags.acknowledge_missing,
        )
    except (ValueError, OSError) as error:
        print(f"data_prep.curate: {error}", file=sys.stderr)
        return 1
    kept = {split: sum(shard.num_examples for shard in shards) for split, shards in manifest.splits.items()}
    splits = ", ".join(f"{split} {count}" for split, count in kept.items())
    print(f"kept {sum(kept.values())} pairs ({splits}) in {time.monotonic() - started:.0f} s -> {flags.out}")
    print(f"look:   {flags.out / 'funnel.html'} and {flags.out / 'datasheet.md'}")
    print(f"check:  python -m data_prep.verify {flags.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
