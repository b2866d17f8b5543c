"""What every notebook of this folder must be like: the rules that ``notebooks.py check`` and the tests hold.

A rule reads cells alone and runs nothing. That a notebook needs no secret and no answer is shown by executing it; here
the calls that ask on the spot are refused.
"""

import ast
import re
from collections.abc import Iterator, Mapping

import nbformat

Notebook = nbformat.NotebookNode

_BADGE = "https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/{name}.ipynb"
_PARAMETERS = {"SMOKE", "SOURCE", "EXTRAS"}
# Notebook -> the accelerator that Colab gives it at first; the others start without.
_ACCELERATORS = {"fine_tune_tpu": "TPU"}
_ASKS = re.compile(r"\b(input|getpass|notebook_login|interpreter_login)\s*\(")
# A shell line, or what else starts a process: a call, or a magic.
_COMMAND = re.compile(
    r"^[ \t]*!(?P<shell>.*)|(?P<call>\b(?:system|Popen|(?:subprocess\.|check_)(?:run|call|output))\s*\(.*"
    r"|^\s*%run\b.*|^%%(?:bash|sh|script)\b.*)"
)
_PLACEHOLDER = re.compile(r"\b(MINUTES|SECONDS|TODO|XXX)\b")
_OWN_OUTPUT = re.compile(r"(?<![\w.])/(tmp|home|root|work|Users)/\S*")


def tags(cell: Notebook) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", ()))


def texts(output: Notebook) -> list[str]:
    """All that an output shows as text."""
    data = output.get("data", {})
    return [output.get("text", ""), *(str(value) for kind, value in data.items() if kind.startswith("text/"))]


def structure_faults(name: str, notebook: Notebook) -> Iterator[str]:
    """What is wrong with the cells of a notebook, a line each."""
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or _BADGE.format(name=name) not in first.source:
        yield f"the first cell has no badge that opens {_BADGE.format(name=name)}"
    accelerator, expected = notebook.metadata.get("accelerator"), _ACCELERATORS.get(name)
    if accelerator != expected:
        yield f"the metadata ask for the accelerator {accelerator}, expected {expected}"
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown" and (found := _PLACEHOLDER.search(cell.source)):
            yield f"cell {number}: {found[0]} stands where a figure belongs"
    yield from _parameter_faults(notebook)
    code = [(number, cell) for number, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    for number, cell in code:
        if found := _ASKS.search(cell.source):
            yield f"cell {number}: {found[0]}…) asks the reader; a notebook must run without"
    yield from _order_faults([(number, cell) for number, cell in code if "setup" not in tags(cell)])


def output_faults(notebook: Notebook) -> Iterator[str]:
    """What should not be kept in a notebook as it is, a line each."""
    if not any(cell.get("outputs") for cell in notebook.cells):
        yield "no output is kept"
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                yield f"cell {number}: an error is kept as output"
            # Folders of the machine that ran it: a reader's are others, and some tell who that was.
            if place := _OWN_OUTPUT.search("".join(texts(output))):
                yield f"cell {number}: the output names a place of one machine, {place.group()}"


def setup_faults(notebooks: Mapping[str, Notebook]) -> Iterator[str]:
    """Notebooks whose setup cell is not, byte for byte, that of ``fine_tune_tpu``."""
    cells = {
        name: [cell.source for cell in notebook.cells if "setup" in tags(cell)] for name, notebook in notebooks.items()
    }
    for name, found in cells.items():
        if len(found) != 1:
            yield f"{name}.py: expected one cell tagged setup, found {len(found)}"
        elif found != cells.get("fine_tune_tpu", found):
            yield f"{name}.py: its setup cell differs from that of fine_tune_tpu.py"


def _parameter_faults(notebook: Notebook) -> Iterator[str]:
    found = [cell.source for cell in notebook.cells if "parameters" in tags(cell)]
    if not found:
        yield "expected a cell tagged parameters, found none"
        return
    statements = [(statement, source) for source in found for statement in ast.parse(source).body]
    names = []
    for statement, source in statements:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            yield "a cell tagged parameters holds more than assignments"
            continue
        names.append(statement.targets[0].id)
        if not _is_literal(statement.value):
            yield f"the parameter {names[-1]} is computed: what follows from other values belongs into another cell"
        line = source.splitlines()[(statement.end_lineno or 1) - 1]
        if "  # " not in line:
            yield f"a parameter without a comment: {line}"
    if missing := sorted(_PARAMETERS - set(names)):
        yield f"no cell tagged parameters assigns {', '.join(missing)}"
    if twice := sorted({name for name in names if names.count(name) > 1}):
        yield f"assigned twice in cells tagged parameters: {', '.join(twice)}"


def _is_literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True


def _order_faults(code: list[tuple[int, Notebook]]) -> Iterator[str]:
    """Commands behind the first use of jax in the kernel: it holds the TPU, or most of the GPU's memory."""
    places = [(number, line) for number, cell in code for line in _lines_that_load_jax(cell.source)]
    for number, cell in code if places else ():
        for line, text in enumerate(cell.source.splitlines(), 1):
            command = _COMMAND.search(text)
            if not command or (number, line) < min(places) or "JAX_PLATFORMS=cpu" in text:
                continue
            # A program of ours, or what may be one because a variable holds it; `!ls` and its like take no device.
            shell, call = command["shell"], command["call"]
            if call is not None or re.match(r"\s*\{", shell) or re.search(r"python|plip-jax|(^|\s|/)(ba)?sh\s", shell):
                yield (
                    f"cell {number}: `{text.strip()[:60]}` comes behind cell {min(places)[0]}, whose process holds the "
                    "device; put it before, or JAX_PLATFORMS=cpu in front of it"
                )


def _lines_that_load_jax(source: str) -> list[int]:
    """Lines that import jax or the package, whose classes do; text that only holds such a line does not count."""
    if source.startswith("%%"):
        return []
    plain = re.sub(r"^(\s*)[!%].*$", r"\1pass", source, flags=re.MULTILINE)
    return [
        node.lineno
        for node in ast.walk(ast.parse(plain))
        for module in _modules(node)
        if module.partition(".")[0] in ("jax", "plip_jax")
    ]


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
