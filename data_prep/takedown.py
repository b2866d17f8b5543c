"""Remove posts, authors, addresses and images from a work folder and from the records built of it, with all copies.

    python -m data_prep.takedown --work WORK --out OUT [--out OUT2] --requests FILE [--author-key KEY] [--runs DIR]
    python -m data_prep.takedown scan --needles FILE ROOT [ROOT ...]

What goes with a request is said in `removal`, what stays behind in `tombstones`. A journal with nothing but salted
hashes is written first; a run that is killed is finished by the next call, with or without requests. All datasets made
of the work folder must be named. No other program may work in the folders meanwhile. The dumps the posts came from,
files of verdicts and copies of the folders elsewhere, and weights trained on them are yours to deal with;
`WORK/takedown-report.json` names the files, the datasets and the checkpoints. The exit status is 0; 1 where nothing was
removed or something is still found; 2 where it was removed and something needs your eyes: a request that found nothing,
a text that other posts repeat, a file of yours. The second command looks for texts and image files, one a line, in
every file and every decoded form of it.
"""

if __name__ == "__main__":  # before the imports that would fail
    from data_prep.extras import CURATION, need_data

    need_data("data_prep.takedown", *CURATION)

import argparse
import collections
import dataclasses
import datetime
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.curation import authors
from data_prep.curation.output import rebuild_reports
from data_prep.curation.rows import write_atomically
from data_prep.removing.byte_scan import Hit, byte_scan, image_needles, text_needles
from data_prep.removing.holders import (
    current_datasets,
    datasets_that_held,
    find_holders,
    read_history,
    record_fingerprints,
)
from data_prep.removing.purge import ForgetUrls, purge_out, purge_work, verdicts_elsewhere
from data_prep.removing.purge_records import restore_folder
from data_prep.removing.run_facts import read_platforms
from data_prep.removing.takedown_requests import HashAuthor, Request, Requests, read_requests
from data_prep.removing.takedown_search import Found, find_targets
from data_prep.removing.tombstones import Tombstone, Tombstones, add_tombstones, load_salt, make_tombstone
from plip_jax.data.records import records_root

JOURNAL_NAME = "takedown-journal.json"
REPORT_NAME = "takedown-report.json"

REPORTS_DUE_NAME = "takedown-reports-due.json"
"""Lists the records folders whose reports are still to be made anew; there between a purge and the end of that."""

RebuildReports = Callable[[Path, Path], str]
"""Makes funnel, datasheet and decisions of a records folder anew: (work, out) to why not, empty where it did."""


class TakedownError(ValueError):
    """The takedown cannot be done as asked, and nothing was removed; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What other modules do in a takedown.

    Attributes:
        forget_urls: Of the hydration's database; None for `purge.forget_in_sqlite`.
        rebuild_reports: Called for each records folder after its purge; None leaves it without pages that showed
            something removed.
        tell: Called with what is left to you, a line at a time.
    """

    forget_urls: ForgetUrls | None = None
    rebuild_reports: RebuildReports | None = None
    tell: Callable[[str], None] = lambda line: print(f"data_prep.takedown: {line}", file=sys.stderr)


def is_pending(work: Path) -> bool:
    """Say whether a takedown was begun and not finished; nothing may be built from the work folder then."""
    return (work / JOURNAL_NAME).exists()


def take_down(
    work: Path,
    outs: Sequence[Path],
    requests: Iterable[Request],
    *,
    runs: Sequence[Path] = (),
    date: str = "",
    hooks: Hooks | None = None,
) -> Found:
    """Remove what is requested and all that goes with it; a takedown that was killed is finished first.

    Args:
        work: The work folder.
        outs: All records folders built from it.
        requests: May be empty, to finish, or to purge a folder that was not named before.
        runs: Folders with training work directories.
        date: For the report.
        hooks: See `Hooks`.

    Returns:
        What was found, in the clear; it is for `byte_scan`, not for any file.

    Raises:
        TombstoneError: The tombstones are damaged.
        RecordError: A records folder is damaged.
    """
    hooks = hooks or Hooks()
    outs = list({out.resolve(): out for out in [*pending_outs(work), *outs]}.values())
    if is_pending(work):
        _finish(work, outs, runs, hooks)
    for out in outs:
        restore_folder(out)
    requests = list(requests)
    found = find_targets(work, requests, outs)
    _write_journal(work, outs, _tombstones(work, requests, found), found, date)
    _finish(work, outs, runs, hooks)
    _rebuild_reports(work, hooks)
    return found


def pending_outs(work: Path) -> list[Path]:
    """Return the records folders of a takedown that was begun and not finished."""
    return [Path(out) for out in json.loads((work / JOURNAL_NAME).read_text())["outs"]] if is_pending(work) else []


def _rebuild_reports(work: Path, hooks: Hooks) -> None:
    """Make the reports that are due; what fails here is told: the purge is finished, and the next build makes them."""
    for out in _reports_due(work):
        reason = hooks.rebuild_reports(work, out) if hooks.rebuild_reports is not None and out.is_dir() else ""
        if reason:
            hooks.tell(f"{out}: its reports still count what was removed: {reason}")
    (work / REPORTS_DUE_NAME).unlink(missing_ok=True)


def _reports_due(work: Path) -> list[Path]:
    path = work / REPORTS_DUE_NAME
    return [Path(out) for out in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


def _tombstones(work: Path, requests: Sequence[Request], found: Found) -> list[Tombstone]:
    """Return what is not yet among the tombstones, in an order that tells nothing of the values."""
    known = Tombstones.load(work)
    salt = load_salt(work)
    asked = {(request.kind, request.value): request for request in requests}
    new: list[Tombstone] = []
    for kind, value in ((kind, value) for kind, values in found.targets.items() for value in values):
        if not known.has(kind, value):
            request = asked.get((kind, value))
            about = ("requested", request.time, request.request) if request else ("derived",)
            new.append(make_tombstone(salt, kind, value, *about))
    return sorted(new, key=dataclasses.astuple)


def _write_journal(work: Path, outs: Sequence[Path], stones: Sequence[Tombstone], found: Found, date: str) -> None:
    before = [dataset for out in outs for dataset in record_fingerprints(work, out, date=date)]
    journal = {
        "tombstones": [dataclasses.asdict(stone) for stone in stones],
        "outs": [str(out.resolve()) for out in outs],
        "before": [dataclasses.asdict(dataset) for dataset in before],
        "found": found.counts,
        "repeated": found.repeated,
        "date": date,
    }
    write_atomically(work / JOURNAL_NAME, json.dumps(journal, sort_keys=True).encode())


def _finish(work: Path, outs: Sequence[Path], runs: Sequence[Path], hooks: Hooks) -> None:
    """Do what the journal says, from whatever point an earlier run came to."""
    journal = json.loads((work / JOURNAL_NAME).read_text(encoding="utf-8"))
    stones = [Tombstone(**stone) for stone in journal["tombstones"]]
    everything = add_tombstones(work, stones)
    folders = [Path(out) for out in dict.fromkeys([*journal["outs"], *(str(out.resolve()) for out in outs)])]
    changed = purge_work(work, everything, forget_urls=hooks.forget_urls) if len(everything) else 0
    for out in folders:
        changed += purge_out(out, everything) if len(everything) else 0
        record_fingerprints(work, out, date=journal["date"])
    something = changed or stones or journal["found"]["rows"]
    if something or not (work / REPORT_NAME).exists():
        report = _report(work, journal, everything, folders, runs)
        write_atomically(work / REPORT_NAME, (json.dumps(report, indent=2, sort_keys=True) + "\n").encode())
    if something and hooks.rebuild_reports is not None:
        due = sorted({str(out) for out in [*folders, *_reports_due(work)]})
        write_atomically(work / REPORTS_DUE_NAME, json.dumps(due).encode())
    (work / JOURNAL_NAME).unlink()


def _report(
    work: Path, journal: Mapping[str, Any], everything: Tombstones, outs: Sequence[Path], runs: Sequence[Path]
) -> dict[str, Any]:
    """Say what was removed and who held it: counts, names of datasets and runs, no ids."""
    history = read_history(work)
    held = datasets_that_held(work, (stone.hash for stone in everything.stones if stone.kind == "pair"))
    current = [dataset for out in outs for dataset in current_datasets(out, journal["date"])]
    new = collections.Counter((stone["kind"], stone["why"]) for stone in journal["tombstones"])
    return {
        "date": journal["date"],
        "found": journal["found"],
        "still said by other rows": journal.get("repeated", {}),
        "verdicts elsewhere about removed pairs, yours to purge": verdicts_elsewhere(work, everything),
        "tombstones": {f"{kind} {why}": count for (kind, why), count in sorted(new.items())},
        "before": journal["before"],
        "after": [dataclasses.asdict(dataset) for dataset in current],
        "datasets that held removed pairs": [
            {**dataclasses.asdict(one), "held": held[one.fingerprint]} for one in history if one.fingerprint in held
        ],
        "checkpoints that held removed pairs": [
            dataclasses.asdict(holder) for holder in find_holders(runs, history, held)
        ],
    }


def scan_after(roots: Sequence[Path], found: Found) -> list[Hit]:
    """Look in every file for what only removed rows said, and for their images."""
    texts = {str(n): text_needles(text) for n, text in enumerate(sorted(found.needles), start=1)}
    return byte_scan(roots, texts | {f"image {n}": pieces for n, pieces in enumerate(found.images, start=1)})


def _key_check(key: authors.AuthorKey) -> str:
    return authors.key_check(key)


def author_hasher(key_file: Path, *, work: Path, outs: Sequence[Path]) -> HashAuthor:
    """Return the keyed hash of (platform, author) that the pipeline uses.

    Raises:
        TakedownError: The key cannot be used, or is not that of the work folder.
    """
    try:
        keys = [authors.load_author_key(key_file, work=work, out=out) for out in (*outs, work)]
    except authors.AuthorKeyError as error:
        raise TakedownError(f"--author-key: {error}") from error
    check = work / "author_key_check"
    if check.exists() and check.read_text(encoding="utf-8").strip() != _key_check(keys[0]):
        raise TakedownError(f"--author-key {key_file}: {work} was made with another key, which finds nobody; give that")
    return lambda platform, author: authors.hash_author(keys[0], platform, author)


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data_prep.takedown", description="Remove posts and their copies.")
    parser.add_argument("--work", type=Path, required=True, help="work folder of data_prep.curate")
    parser.add_argument("--out", type=Path, action="append", default=[], help="records folder; once for each")
    parser.add_argument("--requests", type=Path, help="JSON lines or CSV; without it a killed takedown is finished")
    parser.add_argument("--author-key", type=Path, metavar="KEY", help="key file of the authors' hashes")
    parser.add_argument("--source", default="", help="source of posts for which a line names none (default: any)")
    parser.add_argument("--events-of", choices=("posts", "users"), default="posts", help="ids of a batch job's result")
    parser.add_argument("--runs", type=Path, action="append", default=[], help="folder with training work directories")
    parser.add_argument("--skip-malformed", action="store_true", help="follow the other lines all the same")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and change nothing")
    parser.add_argument("--no-scan", action="store_true", help="do not look for what was removed afterwards")
    parser.add_argument("--date", help="for the report (default: today, UTC)")
    return parser.parse_args(arguments)


def _read(options: argparse.Namespace) -> Requests:
    if options.requests is None:
        return Requests((), {}, ())
    hasher = author_hasher(options.author_key, work=options.work, outs=options.out) if options.author_key else None
    read = read_requests(
        options.requests,
        hash_author=hasher,
        source=options.source,
        events_of=options.events_of,
        platforms=read_platforms(options.work),
    )
    for place in read.malformed:
        print(f"data_prep.takedown: {place}", file=sys.stderr)
    if read.malformed and not options.skip_malformed:
        raise TakedownError(f"{len(read.malformed)} malformed lines: correct them, or pass --skip-malformed")
    return read


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status, which the module explains."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["scan"]:
        return _scan(arguments[1:])
    options = _parse_arguments(arguments)
    try:
        if not options.work.is_dir():
            raise TakedownError(f"--work {options.work}: no such folder")
        _check_outs(options.work, options.out)
        read = _read(options)
        ignored = "".join(f", {count} {name} ignored" for name, count in read.ignored.items())
        print(f"{len(read.requests)} requests{ignored}")
        if options.dry_run:
            found = find_targets(options.work, read.requests, options.out)
            print(f"would remove {_counted(found)}")
            return _tell_what_is_left(options, read, found)
        date = options.date or datetime.datetime.now(datetime.UTC).date().isoformat()
        hooks = Hooks(rebuild_reports=rebuild_reports)
        scanned = [options.work, *(out for out in [*pending_outs(options.work), *options.out] if out.exists())]
        found = take_down(options.work, options.out, read.requests, runs=options.runs, date=date, hooks=hooks)
    except (ValueError, OSError) as error:
        print(f"data_prep.takedown: {error}", file=sys.stderr)
        return 1
    print(f"removed {_counted(found)} -> {options.work / REPORT_NAME}")
    left = _tell_what_is_left(options, read, found)
    if options.no_scan or not (found.needles or found.images):
        return left
    return _tell(scan_after(scanned, found), len(found.needles) + len(found.images)) or left


def _check_outs(work: Path, outs: Sequence[Path]) -> None:
    """Refuse a folder that is not there, and to leave out a dataset of the work folder that is."""
    if (missing := [str(out) for out in outs if not _is_there(out)]) and not is_pending(work):
        raise TakedownError(f"--out {', '.join(missing)}: no such folder")
    named = {place for out in [*outs, *pending_outs(work)] for place in (out.resolve(), records_root(out).resolve())}
    known = {Path(dataset.out) for dataset in read_history(work)}
    if unnamed := sorted(str(out) for out in known if _is_there(out) and out.resolve() not in named):
        raise TakedownError(
            f"{', '.join(unnamed)}: made of {work} too, and would keep what is removed. Pass --out for each of them"
        )


def _is_there(out: Path) -> bool:
    """Say whether there is a folder, be it beside its place, where a publishing that was killed left it."""
    return out.exists() or any(out.parent.glob(f".{out.name}.*old"))


def _tell_what_is_left(options: argparse.Namespace, read: Requests, found: Found) -> int:
    """Name what needs somebody's eyes; returns the exit status for it."""
    unmatched = set(found.unmatched)
    nothing = {one.line for one in found.unmatched} - {one.line for one in read.requests if one not in unmatched}
    events = sum(request.line == 0 for request in found.unmatched)
    lines = sorted(nothing - {0})
    told = []
    if lines:
        named = ", ".join(map(str, lines[:_MOST_NAMED])) + (" ..." if len(lines) > _MOST_NAMED else "")
        told.append(
            f"{len(lines)} requests are about nothing that is here: {options.requests.name} line {named}. Look at "
            "their ids, platforms and links (what was taken down before is not here either)"
        )
    if found.repeated:
        said = " of removed posts, still said by {rows} other rows, which nothing tells to go"
        told.append(f"{found.repeated['ids and texts']} ids and texts{said.format(**found.repeated)}: look for them")
    if not options.dry_run:
        for path, count in verdicts_elsewhere(options.work, Tombstones.load(options.work)).items():
            if count is None:
                told.append(f"{path}, with verdicts, is no longer there: purge it where it is")
            elif count:
                told.append(f"{path} has {count} verdicts about removed pairs: it is yours to purge")
    if events:
        print(f"{events} events are about nothing that is here")
    for line in told:
        print(f"data_prep.takedown: {line}", file=sys.stderr)
    return 2 if told else 0


def _counted(found: Found) -> str:
    return ", ".join(f"{count} {name}" for name, count in found.counts.items())


def _tell(hits: Sequence[Hit], needles: int) -> int:
    for hit in hits:
        print(f"{hit.path}: needle {hit.needle} ({hit.form})")
    print(f"byte scan for {needles} needles: {len(hits)} found")
    return int(bool(hits))


def _scan(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep.takedown scan", description="Look for bytes in files.")
    parser.add_argument("--needles", type=Path, required=True, help="a text, or the path of an image file, a line")
    parser.add_argument("roots", type=Path, nargs="+", metavar="ROOT", help="folder or file to search")
    options = parser.parse_args(arguments)
    needles: dict[str, tuple[bytes, ...]] = {}
    try:
        for number, line in enumerate(options.needles.read_text(encoding="utf-8").splitlines(), start=1):
            if text := line.strip():
                image = options.needles.parent / text
                is_file = len(text) < _LONGEST_NAME and image.is_file()
                needles[f"line {number}"] = image_needles(image.read_bytes()) if is_file else text_needles(text)
        hits = byte_scan(options.roots, needles)
    except OSError as error:
        print(f"data_prep.takedown: {error}", file=sys.stderr)
        return 1
    return _tell(hits, len(needles))


_MOST_NAMED = 50
_LONGEST_NAME = 255  # bytes, on the common file systems; a longer line is a text


if __name__ == "__main__":
    sys.exit(main())
