"""``python -m plip_jax.doctor``: what this machine can do, what is wrong, and what to do about it.

Owns the command line, the table of the probes and the page made of their findings. Each probe is a module of
`plip_jax.doctoring`, run in a process of its own, so nothing that is broken on a machine stops the page.
"""

import argparse
import collections
import dataclasses
import getpass
import json
import os
import shutil
import socket
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import plip_jax
from plip_jax.doctoring.child import findings_of
from plip_jax.doctoring.finding import Asked, Finding, without_private

PROBES: dict[str, str] = {
    "packages": "the folder that Python's packages are in does not answer: is it on a network disk?",
    "optional": "try again with a longer --timeout; the first import from a cold disk can take minutes",
    "machine": "a disk that was asked about does not answer: is a network disk gone?",
    "devices": "another process may hold the device, or its driver hangs: end other jax processes, look at nvidia-smi "
    "or restart the TPU's machine; JAX_PLATFORMS=cpu works without it",
    "data": "the data's disk does not answer: is a network disk gone?",
    "checkpoint": "the disk or the hub does not answer; for a hub id that is being fetched, a longer --timeout",
}
"""Probe, a module of `plip_jax.doctoring` -> what to do where it does not answer in time; in the order of the page."""
# Left out where the flag of the same name is not given.
_ON_REQUEST = ("data", "checkpoint")
_COLOURS = {"ok": "32", "note": "36", "warning": "33", "problem": "31"}
_WIDEST = 120

Page = Mapping[str, Sequence[Finding]]


def examine(asked: Asked) -> dict[str, list[Finding]]:
    """Run the probes one after another (a measurement wants the machine to itself): findings by probe."""
    page = {}
    for name, hangs in PROBES.items():
        if name in _ON_REQUEST and not getattr(asked, name):
            continue
        if sys.stderr.isatty():  # an import from a cold disk can take a minute
            print(f"looking at: {name} …", end="\r", file=sys.stderr, flush=True)
        page[name] = findings_of(f"plip_jax.doctoring.{name}", asked, hangs=hangs)
    return page


def count_problems(page: Page) -> int:
    """The findings that are problems."""
    return sum(finding.status == "problem" for findings in page.values() for finding in findings)


def as_text(page: Page, *, width: int = _WIDEST, coloured: bool = False) -> str:
    """The page for a person: a heading for each probe, a line for each finding, its advice below it."""
    indent = " " * (2 + max(map(len, _COLOURS)) + 2)
    lines = [f"plip-jax doctor, plip_jax {plip_jax.__version__}"]
    for name, findings in page.items():
        lines += ["", name]
        for finding in findings:
            label = f"{finding.status:{len(indent) - 4}}"
            if coloured:
                label = f"\x1b[{_COLOURS[finding.status]}m{label}\x1b[0m"
            said = _wrapped(finding.what, width, indent, indent)
            lines.append(f"  {label}  {said[len(indent) :]}")
            if finding.advice:
                lines.append(_wrapped(finding.advice, width, f"{indent}-> ", f"{indent}   "))
    return "\n".join([*lines, "", _summary(page)])


def _wrapped(text: str, width: int, first: str, rest: str) -> str:
    # A command or a path is one word, so that it can be copied.
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _summary(page: Page) -> str:
    counts = collections.Counter(finding.status for findings in page.values() for finding in findings)
    said = [
        f"{counts[status]} {status}{'s' * (counts[status] != 1)}" for status in ("problem", "warning") if counts[status]
    ]
    return ", ".join(said) or "nothing is wrong"


def as_json(page: Page) -> str:
    """The page for a bug report, in ASCII, with what `without_private` knows to be private left out."""
    values = {
        "plip_jax": plip_jax.__version__,
        "problems": count_problems(page),
        "findings": [
            {"probe": name, **dataclasses.asdict(finding)} for name, findings in page.items() for finding in findings
        ],
    }
    return json.dumps(_public(values), indent=2, ensure_ascii=True)


def _public(value: object) -> object:
    """The same value with every text in it fit to be published."""
    if isinstance(value, dict):
        return {key: _public(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_public(one) for one in value]
    if isinstance(value, str):
        return without_private(value, home=str(_home()), user=_user(), host=socket.gethostname())
    return value


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a container whose user has none
        return Path("/")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # the same; Windows without its variables
        return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit status: 1 where there is a problem."""
    parser = argparse.ArgumentParser(
        prog="plip-jax doctor", description="Look at this machine: what works, what is wrong, what to do."
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="PATH",
        help="images to look into: a folder, a list or a tar; again for another",
    )
    parser.add_argument("--checkpoint", help="a model to load: workdir, folder or hub id")
    parser.add_argument("--json", action="store_true", help="print JSON, fit for a public bug report")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page to a file too")
    parser.add_argument(
        "--timeout",
        type=float,
        default=Asked.timeout_seconds,
        metavar="SECONDS",
        help="of each probe (default: %(default)g)",
    )
    flags = parser.parse_args(argv)
    page = examine(Asked(tuple(flags.data), flags.checkpoint, flags.timeout))
    is_terminal = sys.stdout.isatty()
    if flags.json:
        _say(as_json(page))
    else:
        width = min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns)
        _say(as_text(page, width=width, coloured=is_terminal and "NO_COLOR" not in os.environ))
    if flags.out is not None and not _is_written(flags.out, as_json(page) if flags.json else as_text(page)):
        return 1
    return 1 if count_problems(page) else 0


def _say(text: str) -> None:
    """Print; what the terminal's encoding lacks, and bytes of a name that are no text, are printed as escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="backslashreplace").decode(encoding))


def _is_written(path: Path, text: str) -> bool:
    """Write beside the file, then rename; False, and said why, where that cannot be done."""
    try:
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        fresh.replace(path)
    except (OSError, ValueError) as error:  # the path of a file has a name
        print(f"plip-jax doctor: --out {path}: expected a file that can be written, got {error}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
