"""Each probe in a process of its own: one that hangs is ended, one that crashes is reported; the page comes either way.

A device that another process holds, a network folder that is gone and a compiled reader of a damaged file all can do
either. ``python -m plip_jax.doctoring.NAME`` is such a probe: it reads what is asked from its argument and prints its
findings.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

from plip_jax.doctoring.finding import Asked, Finding, Probe, guarded, one_line

_MARK = "plip-jax findings: "


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: the exit status, negative for a signal; None where it was ended because its time was over.
        output: its standard output.
        errors: its standard error.
    """

    status: int | None
    output: str
    errors: str


def run(command: Sequence[str], timeout_seconds: float) -> Ended:
    """Run a command to its end, or to the end of its time; it and its children are then killed."""
    # Files and not pipes: a grandchild that stays alive would hold a pipe open.
    with _scratch_file() as output, _scratch_file() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
        )
        try:
            status: int | None = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode("utf-8", errors="replace"))
    return Ended(status, *texts)


def _scratch_file() -> IO[bytes]:
    # In memory where the system has that (Linux): a machine without a folder for temporary files has its page too.
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):
            return open(os.memfd_create("plip-jax doctor"), "w+b")
    return tempfile.TemporaryFile()


def last_words(errors: str) -> str:
    """The last line of what a process wrote to standard error: a traceback's exception, or what came before a crash."""
    lines = [line for line in errors.splitlines() if line.strip()]
    return one_line(lines[-1].strip()) if lines else "it said nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # pyright: ignore[reportAttributeAccessIssue] # not on Windows
        else:
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)  # one that waits inside the kernel, for a dead network folder, cannot be ended: leave it


def findings_of(module: str, asked: Asked, *, hangs: str) -> list[Finding]:
    """Run a probe's module.

    Args:
        module: its dotted name; it calls `answer` when it is run.
        asked: passed on.
        hangs: what to do where the time was over.
    """
    try:
        ended = run([sys.executable, "-m", module, json.dumps(dataclasses.asdict(asked))], asked.timeout_seconds)
    except OSError as error:  # no memory, no process more, no temporary file, an argument that is too long
        return [Finding("problem", f"the process that looks cannot be started: {one_line(error)}")]
    findings = []
    for line in ended.output.splitlines():
        with contextlib.suppress(ValueError, TypeError):  # the last one, where the process was ended within it
            if line.startswith(_MARK):
                findings.append(Finding(**json.loads(line.removeprefix(_MARK))))
    if ended.status is None:
        findings.append(Finding("problem", f"no answer in {asked.timeout_seconds:g} s, so it was ended", hangs))
    elif ended.status != 0:
        how = f"status {ended.status}" if ended.status > 0 else f"signal {-ended.status}"
        what = f"the process that looked ended with {how}: {last_words(ended.errors)}"
        findings.append(Finding("problem", what, f"python -m {module} shows all that it says"))
    return findings


def answer(probe: Probe) -> None:
    """Print the findings of a probe, each as it comes; the main part of a probe's own process."""
    values = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    asked = Asked(**{**values, "data": tuple(values.get("data", ()))})
    for finding in guarded(probe(asked)):
        print(_MARK + json.dumps(dataclasses.asdict(finding)), flush=True)
