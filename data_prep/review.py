"""Make a page (or contact sheets) on which a person judges pairs, and take the answers in.

    python -m data_prep.review --work WORK --out review.html [--group held|gate|kept] [--sample 200] [--seed 0]
    python -m data_prep.review --work WORK --out FOLDER                                contact sheets and a table
    python -m data_prep.review --collect FOLDER/index.csv --out verdicts.jsonl         the filled-in table as verdicts

What it writes is private: it shows what no report may show. It goes into no records folder, and not into the work
folder, where a takedown would not find it. Delete it once the verdicts are saved.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.curation.rows import write_atomically
from data_prep.reviewing.contact_sheets import collect_verdicts, write_sheets
from data_prep.reviewing.review_items import GROUPS, ReviewError, sample_items
from data_prep.reviewing.review_page import make_page
from plip_jax.data.records import MANIFEST_NAME


def review(work: Path, out: Path, *, group: str, count: int, seed: int, source: str) -> str:
    """Write a page where `out` ends in .html, contact sheets elsewhere; return what was written, in a line.

    Raises:
        ReviewError: Nothing to review, or a place where it must not be.
    """
    check_place(out, work)
    items, total = sample_items(work, group, count, seed)
    if out.suffix.lower() in (".html", ".htm"):
        title = f"{len(items)} of {total} pairs, group {group}"
        _write_private(out, make_page(items, title=title, source=source))
    else:
        write_sheets(items, out)
    return f"{len(items)} of {total} pairs of the group {group!r} -> {out} (private: do not share, delete after use)"


def check_place(out: Path, work: Path | None = None) -> None:
    """Refuse a place inside a records folder, which is given away, or inside the work folder.

    Raises:
        ReviewError: It is one of them.
    """
    place = Path(os.path.abspath(out)).resolve()
    for folder in (place, *place.parents):
        if (folder / MANIFEST_NAME).is_file():
            raise ReviewError(f"{out} is in the records folder {folder}, and a review is private: choose another place")
        if work is not None and folder == work.resolve():
            raise ReviewError(f"{out} is in the work folder, whose files takedown purges by name: choose another place")


def _write_private(path: Path, data: bytes) -> None:
    write_atomically(path, data)
    path.chmod(0o600)


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data_prep.review", description="Judge pairs by eye.")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--work", type=Path, metavar="DIR", help="work folder of a curation")
    task.add_argument("--collect", type=Path, metavar="CSV", help="a table of contact sheets that was filled in")
    parser.add_argument(
        "--out", type=Path, required=True, help="FILE.html, a folder for sheets, or with --collect a file"
    )
    parser.add_argument(
        "--group",
        "--stage",
        choices=GROUPS,
        default="held",
        help="held for review, dropped at a gate, or kept by the last finished stage (default: held)",
    )
    parser.add_argument("--sample", type=int, default=200, metavar="N", help="most pairs to show (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="another seed shows others (default: 0)")
    parser.add_argument("--reviewer", default="", metavar="NAME", help="noted in the verdicts as human:NAME")
    options = parser.parse_args(arguments)
    if options.sample < 1:
        parser.error("--sample: expected 1 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status: 0, or 1 with a message when nothing could be made."""
    options = _parse_arguments(arguments)
    source = f"human:{options.reviewer}" if options.reviewer else "human"
    try:
        if options.collect:
            check_place(options.out)
            lines, count = collect_verdicts(options.collect, source)
            _write_private(options.out, lines)
            print(f"{count} verdicts -> {options.out}")
        else:
            print(
                review(
                    options.work,
                    options.out,
                    group=options.group,
                    count=options.sample,
                    seed=options.seed,
                    source=source,
                )
            )
    except (OSError, ValueError) as error:
        print(f"data_prep.review: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
