"""The notebooks of this folder: the source of each is the percent-format ``.py`` beside it, paired by jupytext.

    python colab/tools/notebooks.py write                      .py -> .ipynb; outputs stay where a cell did not change
    python colab/tools/notebooks.py check                      fails where a pair differs, or breaks a rule (notebook_rules.py)
    python colab/tools/notebooks.py execute --smoke [NAME …]   top to bottom, in seconds, in an empty folder
    python colab/tools/notebooks.py execute --keep NAME        as a reader runs it; the outputs go into the .ipynb

Execution puts a stand-in for ``google.colab`` in the kernel's way, and a cell with other values behind each that is
tagged ``parameters``. Nobody is there to answer a question: a cell that asks one fails.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jupytext
import nbclient
import nbformat
from jupytext.combine import combine_inputs_with_outputs
from nbclient.exceptions import CellExecutionError
from notebook_rules import output_faults, setup_faults, structure_faults, tags

FOLDER = Path(__file__).resolve().parents[1]
ROOT = FOLDER.parent
STAND_IN = Path(__file__).resolve().parent / "stand_in"
# What the notebooks hold in this repository: a reader downloads all of it before the first cell.
_KEPT_BYTES = 400_000
# Seconds for one cell; the longest trains for about two minutes on two cores, and a busy machine takes several times that.
_CELL_SECONDS = 1800
# Notebook -> what its smoke form sets besides SMOKE.
_SMOKE_VALUES: dict[str, dict[str, object]] = {"fine_tune_tpu": {"STORE": "drive", "DRIVE": "drive"}}
# Nearly all the time of the smoke form is compilation, which takes half as long without LLVM's optimisations.
_SMOKE_ENVIRONMENT = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "HF_HUB_OFFLINE": "1"}
_REMEDY = "run: python colab/tools/notebooks.py write"


def sources() -> list[Path]:
    """The percent-format files, in the order of their names."""
    return sorted(FOLDER.glob("*.py"))


def write(source: Path) -> Path:
    """Write the notebook of a source; returns its path."""
    notebook, target = _read(source), source.with_suffix(".ipynb")
    if target.exists():
        notebook = _numbered(combine_inputs_with_outputs(notebook, nbformat.read(target, 4)))
    _save(notebook, target)
    return target


def problems(source: Path) -> list[str]:
    """What is wrong with a pair, a line each."""
    target = source.with_suffix(".ipynb")
    expected = _read(source)
    found = [f"{source.name}: {fault}" for fault in structure_faults(source.stem, expected)]
    if not target.exists():
        return [*found, f"{target.name} is missing; {_REMEDY}"]
    notebook = nbformat.read(target, 4)
    if _content(notebook) != _content(expected):
        found.append(f"{target.name} and {source.name} differ; {_REMEDY}")
    if target.stat().st_size > _KEPT_BYTES:
        found.append(
            f"{target.name} has {target.stat().st_size:,} bytes, more than {_KEPT_BYTES:,}: keep smaller outputs"
        )
    return found + [f"{target.name}, {fault}" for fault in output_faults(notebook)]


def problems_of_all(chosen: Sequence[Path]) -> list[str]:
    """What is wrong with the pairs, each alone and side by side."""
    apart = [problem for source in chosen for problem in problems(source)]
    return apart + list(setup_faults({source.stem: _read(source) for source in chosen}))


def smoke_values(source: Path) -> dict[str, object]:
    """What the smallest form of a notebook sets."""
    return {"SMOKE": True, **_SMOKE_VALUES.get(source.stem, {})}


def execute(
    source: Path, values: Mapping[str, object] | None = None, folder: Path | None = None, *, smoke: bool = False
) -> nbformat.NotebookNode:
    """Run a notebook top to bottom with this interpreter.

    Args:
        source: percent format.
        values: each assigned behind the cell tagged ``parameters`` that names it; its own hold otherwise.
        folder: where it runs; an empty one by default.
        smoke: compile quickly, and reach no hub.

    Raises:
        CellExecutionError: a cell failed.
        ValueError: values for names that no cell tagged ``parameters`` assigns.
    """
    notebook = _read(source)
    if values:
        _inject(notebook, values, source)
    with tempfile.TemporaryDirectory(prefix="plip_jax_") as empty:
        # A copy of the environment is what nbclient hands to the kernel; `!` finds this interpreter's programs first.
        paths = [str(STAND_IN), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            **(_SMOKE_ENVIRONMENT if smoke else {}),
        }
        client = nbclient.NotebookClient(
            notebook,
            timeout=_CELL_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder or empty)}},
            coalesce_streams=True,
            extra_arguments=["--log-level=ERROR"],  # ipykernel warns that it listens on this machine
        )
        client.execute(env=environment)
    return notebook


def _read(source: Path) -> nbformat.NotebookNode:
    return _numbered(jupytext.read(source, fmt="py:percent"))  # a guess takes an indented `!` for another format


def _numbered(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # random otherwise: the file would change each time it is written
    return notebook


def _content(notebook: nbformat.NotebookNode) -> tuple[object, ...]:
    cells = [(cell.cell_type, cell.source, tags(cell), cell.get("id")) for cell in notebook.cells]
    return cells, notebook.metadata.get("accelerator")


def _inject(notebook: nbformat.NotebookNode, values: Mapping[str, object], source: Path) -> None:
    cells, known = [], set()
    for cell in notebook.cells:
        cells.append(cell)
        if "parameters" not in tags(cell):
            continue
        own = re.findall(r"^(\w+) = ", cell.source, re.MULTILINE)
        known.update(own)
        if lines := [f"{name} = {values[name]!r}" for name in own if name in values]:
            cells.append(nbformat.v4.new_code_cell("\n".join(lines), id=f"injected-{len(cells)}"))
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{source.name}: its parameters are {sorted(known)}, and not {unknown}")
    notebook.cells = cells


def _keep(notebook: nbformat.NotebookNode, source: Path) -> None:
    """Save the outputs of a run with the unchanged cells: no injected cell, no times of execution."""
    notebook.cells = [cell for cell in notebook.cells if not cell["id"].startswith("injected")]
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = _as_on_a_terminal(output.text)
    _save(notebook, source.with_suffix(".ipynb"))


def _as_on_a_terminal(text: str) -> str:
    """What stays on the screen of lines that are overwritten (``\\r``) or wiped (``ESC [2K``)."""
    return "\n".join(re.split(r"\r|\x1b\[2K", line.rstrip("\r"))[-1] for line in text.split("\n"))


def _save(notebook: nbformat.NotebookNode, target: Path) -> None:
    notebook.metadata.pop("jupytext", None)
    notebook.metadata.pop("language_info", None)  # the version of Python that ran it last
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, target)


def _has_extras(source: Path) -> bool:
    return 'EXTRAS = ""' not in source.read_text()


def _chosen(names: Sequence[str]) -> list[Path]:
    by_name = {source.stem: source for source in sources()}
    if unknown := sorted(set(names) - set(by_name)):
        raise SystemExit(f"expected names of {', '.join(by_name)}, got {', '.join(unknown)}")
    return [by_name[name] for name in names] if names else list(by_name.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=["write", "check", "execute"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of notebooks, without their endings; all by default")
    parser.add_argument("--smoke", action="store_true", help="execute in the smallest form")
    parser.add_argument("--keep", action="store_true", help="execute, and write the outputs into the .ipynb")
    parser.add_argument("--source", help="what the first cell would install, where plip_jax is not installed")
    flags = parser.parse_intermixed_args(argv)  # NAME may stand behind a flag
    if flags.smoke and flags.keep:
        parser.error("outputs of the smoke form are not kept")
    chosen = _chosen(flags.names)
    if flags.action == "write":
        for source in chosen:
            print(write(source).relative_to(ROOT))
        return 0
    if flags.action == "check":
        found = problems_of_all(chosen)
        print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
        return min(len(found), 1)
    chosen.sort(key=_has_extras)  # in one environment, an extra that a notebook forgot would be there from another
    installed_from = {"SOURCE": flags.source} if flags.source else {}
    failed = [source for source in chosen if not _execute_and_tell(source, flags.smoke, flags.keep, installed_from)]
    return min(len(failed), 1)


def _execute_and_tell(source: Path, smoke: bool, keep: bool, values: Mapping[str, object]) -> bool:
    """Execute a notebook and print how long it took, or which cell failed and why; whether it ran through."""
    start = time.perf_counter()
    try:
        notebook = execute(source, {**(smoke_values(source) if smoke else {}), **values}, smoke=smoke)
    except CellExecutionError as error:
        message = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)).strip()  # the colours of the traceback
        print(
            f"{source.stem}: failed after {time.perf_counter() - start:.0f} s\n{message}", file=sys.stderr, flush=True
        )
        return False
    if keep:
        _keep(notebook, source)
    print(f"{source.stem}: {time.perf_counter() - start:.0f} s", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
