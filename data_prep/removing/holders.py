"""Which datasets and which checkpoints held what was removed.

`WORK/fingerprints.jsonl` lists every fingerprint that the records of a folder had (`RecordFolder.fingerprint`, by
split, with the date given), and `WORK/fingerprints/FINGERPRINT` the salted hashes of its records' ids, 16 bytes each,
sorted. So "who held it" is answered long after the ids are gone. A training run records in each checkpoint its
configuration and a hash of the fingerprints it read: only small JSON files are opened here, and no orbax.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.curation.rows import write_atomically
from data_prep.removing.purge_records import record_ids
from data_prep.removing.tombstones import load_salt, seal
from plip_jax.data.records import RecordError, is_records_folder, open_records, read_manifest, records_root

HISTORY_NAME = "fingerprints.jsonl"
IDS_FOLDER = "fingerprints"
_HASH_BYTES = 16
_CERTAIN = ("fingerprint", "earlier step")
_SAMPLING_VERSIONS = (1,)  # that plip_jax.data.sampling has had: a part of what a run hashes


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A state that a split of a records folder was in.

    Attributes:
        out: The folder, absolute.
        split: Its split.
        fingerprint: Of its content.
        records: How many it has.
        date: As given when it was recorded.
    """

    out: str
    split: str
    fingerprint: str
    records: int
    date: str = ""


@dataclasses.dataclass(frozen=True)
class Holder:
    """A checkpoint of a run on removed data.

    Attributes:
        workdir: Of the run.
        step: Of the checkpoint.
        evidence: "fingerprint" (its data's hash is that of a dataset that held it), "earlier step" (an earlier
            checkpoint of the run is), "folder" (its configuration names the folder; which state it read cannot be
            told), "init_from" (it started from the weights of such a run).
    """

    workdir: str
    step: int
    evidence: str


def current_datasets(out: Path, date: str = "") -> list[Dataset]:
    """Return the state of each split of a records folder; none where it is no records folder."""
    if not is_records_folder(out):
        return []
    root = records_root(out)
    splits = [(split, open_records(root, split)) for split in sorted(read_manifest(root).splits)]
    return [Dataset(str(root.resolve()), split, opened.fingerprint, len(opened), date) for split, opened in splits]


def record_fingerprints(work: Path, out: Path, *, date: str = "") -> list[Dataset]:
    """Add the fingerprints of a records folder to the work folder's history; call it after each build.

    Every record is read for its id. What the history has is not read again.

    Args:
        work: The work folder.
        out: The records folder.
        date: For the report; the last entry of a folder and split says it.

    Raises:
        RecordError: The records are damaged.
    """
    history = read_history(work)
    last = {(known.out, known.split): known.fingerprint for known in history}
    now = current_datasets(out, date)
    new = [dataset for dataset in now if last.get((dataset.out, dataset.split)) != dataset.fingerprint]
    salt = load_salt(work) if new else b""
    for dataset in new:
        path = work / IDS_FOLDER / dataset.fingerprint
        if not path.exists():
            ids = record_ids(records_root(out), dataset.split)
            write_atomically(path, b"".join(sorted(bytes.fromhex(seal(salt, "pair", name)) for name in ids)))
    if new:
        lines = (json.dumps(dataclasses.asdict(one), sort_keys=True) + "\n" for one in [*history, *new])
        write_atomically(work / HISTORY_NAME, "".join(lines).encode())
    return now


def read_history(work: Path) -> list[Dataset]:
    """Return all states that were recorded, oldest first."""
    path = work / HISTORY_NAME
    if not path.exists():
        return []
    return [Dataset(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def datasets_that_held(work: Path, hashes: Iterable[str]) -> dict[str, int]:
    """Return how many of some records each recorded fingerprint held, where it held any.

    Args:
        work: The work folder.
        hashes: Of the records' ids, kind "pair" (`tombstones.seal`).
    """
    wanted = {bytes.fromhex(one) for one in hashes}
    counts: dict[str, int] = {}
    for fingerprint in dict.fromkeys(dataset.fingerprint for dataset in read_history(work)):
        data = (work / IDS_FOLDER / fingerprint).read_bytes()
        held = {data[start : start + _HASH_BYTES] for start in range(0, len(data), _HASH_BYTES)} & wanted
        if held:
            counts[fingerprint] = len(held)
    return counts


def find_holders(runs: Iterable[Path], history: Iterable[Dataset], held: Iterable[str]) -> list[Holder]:
    """Find the checkpoints, in and below some folders, of runs on data that held something removed.

    Args:
        runs: Work directories of training, or folders of such.
        history: Of the datasets (`read_history`).
        held: Fingerprints that held it.
    """
    history, held = list(history), set(held)
    checkpoints = {workdir: list(_checkpoints(workdir)) for workdir in _workdirs(runs)}
    found: dict[Path, list[Holder]] = {}
    for workdir, steps in checkpoints.items():
        evidence = ""
        for step, said in steps:
            by_hash = _trained_on(said, history, held)
            later = "earlier step" if evidence in _CERTAIN else _names_folder(said, history, held)
            evidence = "fingerprint" if by_hash else later
            if evidence:
                found.setdefault(workdir, []).append(Holder(str(workdir), step, evidence))
    grown = True
    while grown:
        grown = False
        for workdir, steps in checkpoints.items():
            if workdir not in found and any(_started_from(said, found) for _, said in steps):
                found[workdir] = [Holder(str(workdir), step, "init_from") for step, _ in steps]
                grown = True
    return sorted((holder for holders in found.values() for holder in holders), key=dataclasses.astuple)


def _workdirs(runs: Iterable[Path]) -> list[Path]:
    found: set[Path] = set()
    for run in runs:
        for path in [run, *run.rglob("*")]:
            if (path / "checkpoints").is_dir() or (path / "checkpoints.txt").is_file():
                found.add(path.resolve())
    return sorted(found)


def _checkpoints(workdir: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the steps of a run and what each says of itself; one in a bucket or damaged says nothing."""
    elsewhere = workdir / "checkpoints.txt"
    folder = Path(elsewhere.read_text().strip()) if elsewhere.is_file() else workdir / "checkpoints"
    steps = sorted((int(path.name), path) for path in folder.glob("*") if path.name.isdigit())
    for step, path in steps:
        try:
            said = json.loads((path / "_CHECKPOINT_METADATA").read_text(encoding="utf-8"))["custom_metadata"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(said, dict):
            yield step, said


def _trained_on(said: Mapping[str, Any], history: list[Dataset], held: set[str]) -> bool:
    """Say whether a checkpoint's hash of its data is what some state that held it gives with its configuration.

    A run of `plip_jax.train` hashes [version, fingerprints, examples of each source, seed, global batch size]. Its
    other sources must still be where they were; with weights the count of examples is not known here.
    """
    state, config = said.get("data_state") or {}, said.get("config") or {}
    if held & set(state.get("records", ())):  # where a run records the fingerprints themselves
        return True
    candidates: list[list[tuple[str, int]]] = []
    for source in _sources(config):
        path, split = source["path"], source.get("split") or "train"
        known = [(one.fingerprint, one.records) for one in history if one.split == split]
        candidates.append([*dict.fromkeys(known), *_opened(path, split)])
    for chosen in itertools.product(*candidates) if candidates else ():
        if held & {fingerprint for fingerprint, _ in chosen}:
            for version in _SAMPLING_VERSIONS:
                names, counts = [name for name, _ in chosen], [count for _, count in chosen]
                order = [version, names, counts, config.get("seed"), config.get("data.global_batch_size")]
                if state.get("fingerprint") == hashlib.sha256(json.dumps(order).encode()).hexdigest():
                    return True
    return False


def _sources(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the records folders of a run's flat configuration, in its order."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in config.items():
        head, _, field = name.rpartition(".")
        if head.startswith("data.sources."):
            found.setdefault(head, {})[field] = value
    return [source for source in found.values() if source.get("path")]


def _opened(path: str, split: str) -> list[tuple[str, int]]:
    try:
        records = open_records(path, split)
    except (RecordError, OSError):
        return []
    return [(records.fingerprint, len(records))]


def _names_folder(said: Mapping[str, Any], history: list[Dataset], held: set[str]) -> str:
    folders = {(one.out, one.split) for one in history if one.fingerprint in held}
    named = {
        (str(records_root(source["path"]).resolve()), source.get("split") or "train")
        for source in _sources(said.get("config") or {})
    }
    return "folder" if folders & named else ""


def _started_from(said: Mapping[str, Any], found: Iterable[Path]) -> bool:
    origin = (said.get("config") or {}).get("model.init_from") or ""
    return bool(origin) and Path(origin).resolve() in set(found)
