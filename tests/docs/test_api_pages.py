"""The pages of the API name what exists, and leave out no public name of `plip_jax` and no module of `FOLDERS`.

What each page then shows of a module is the site's: its members are not looked at here, nor whether there is a page for
the programs (modules of `plip_jax` itself) and for `data_prep`. Sources are parsed, not imported.
"""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))

# Folders of which every public module is on a page, or here with the reason why not.
FOLDERS = ("model", "data", "training", "evaluation", "convert", "encoders")
NOT_DOCUMENTED = {
    "plip_jax.convert.image_processor": "one reader of one file, for vit and siglip",
    "plip_jax.convert.program_folder": "what onnx_format and stablehlo share",
    "plip_jax.convert.torch_pickle": "inside torch_file",
    "plip_jax.data.allocator": "a setting of glibc",
    "plip_jax.data.openai_vocabulary": "inside tokenizer",
    "plip_jax.data.workers": "the calls to grain inside pipeline",
    "plip_jax.evaluation.cells": "drawing of the report",
    "plip_jax.evaluation.charts": "drawing of the report",
    "plip_jax.evaluation.classification_report": "what the tasks that learn share",
    "plip_jax.evaluation.document": "drawing of the report",
    "plip_jax.evaluation.pictures": "drawing of the report",
    "plip_jax.evaluation.report_appendix": "drawing of the report",
    "plip_jax.evaluation.report_pictures": "drawing of the report",
    "plip_jax.evaluation.tiled_similarity": "inside retrieval and image_retrieval",
}


def documented() -> list[tuple[str, str]]:
    """Page and name of each ``::: name``."""
    found = re.compile(r"^::: (\S+)$", re.MULTILINE)
    return [(page.name, name) for page in PAGES for name in found.findall(page.read_text())]


def module_file(name: str) -> Path | None:
    path = ROOT.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@functools.cache
def names_in(file: Path) -> dict[str, ast.AST]:
    """What a module defines or imports at its top level, also for type checkers alone."""
    found: dict[str, ast.AST] = {}
    body = list(ast.parse(file.read_text()).body)
    for node in body:
        if isinstance(node, ast.If):
            body.extend(node.body)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
    return found


def exists(name: str) -> bool:
    if module_file(name) is not None:
        return True
    module, _, member = name.rpartition(".")
    file = module_file(module)
    return file is not None and member in names_in(file)


def test_there_are_pages():
    assert len(documented()) > 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_documents_exists(page):
    assert [name for file, name in documented() if file == page.name and not exists(name)] == []


def test_a_name_that_is_gone_is_noticed():
    assert exists("plip_jax.PLIP")
    assert exists("plip_jax.api.Encoder")
    assert not exists("plip_jax.api.Decoder")
    assert not exists("plip_jax.apis")


def test_nothing_is_documented_twice():
    names = [name for _, name in documented()]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_every_public_name_is_on_the_page_of_the_public_api():
    node = names_in(ROOT / "plip_jax" / "__init__.py")["__all__"]
    assert isinstance(node, ast.Assign)
    public = set(ast.literal_eval(node.value)) - {"__version__"}
    assert public
    assert public == {name.removeprefix("plip_jax.") for page, name in documented() if page == "plip.md"} & public


def public_modules() -> list[str]:
    files = [file for folder in FOLDERS for file in (ROOT / "plip_jax" / folder).glob("*.py")]
    return sorted(f"plip_jax.{file.parent.name}.{file.stem}" for file in files if not file.stem.startswith("_"))


def test_every_public_module_is_on_a_page_or_has_a_reason():
    names = [name for _, name in documented()]
    on_a_page = {module for module in public_modules() if any(f"{name}.".startswith(f"{module}.") for name in names)}
    assert set(public_modules()) - on_a_page == set(NOT_DOCUMENTED)


def docstring_lines() -> list[tuple[str, str]]:
    files = [file for package in ("plip_jax", "data_prep") for file in sorted((ROOT / package).rglob("*.py"))]
    return [(str(file.relative_to(ROOT)), line) for file in files for line in file.read_text().splitlines()]


def test_docstrings_have_the_forms_that_the_site_reads():
    """What Google's style, as griffe reads it, or Markdown would show as something else."""
    wrong = {
        "two names with one description (the second would be its type)": r"\s{8,}(?!self\b)[a-z_]+(, [a-z_]+)+: \S",
        "a section that is none (use Examples:)": r"\s*Example:$",
        "reStructuredText's mark of a block (one colon does)": r".*\w::$",
    }
    assert [
        f"{file}: {line.strip()}: {what}"
        for file, line in docstring_lines()
        for what, form in wrong.items()
        if re.match(form, line)
    ] == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "api" / "index.md").read_text()
    assert [page.name for page in PAGES if page.name != "index.md" and f"({page.name})" not in index] == []


def test_a_stated_version_is_that_of_the_code():
    """The table of files in the index against each ``FORMAT_VERSION``."""
    homes = {
        "records.json": "plip_jax.data.records",
        "a checkpoint": "plip_jax.training.checkpoint",
        "manifest.json": "plip_jax.embedding_store",
        "evaluation.json": "plip_jax.evaluation.report_files",
        "wise_ft.json": "plip_jax.evaluation.wise_ft",
        "parity.json": "plip_jax.convert.parity",
        "stablehlo.json": "plip_jax.convert.stablehlo",
        "funnel.json": "data_prep.reports.funnel",
        "decisions.parquet": "data_prep.reports.decisions",
    }
    lines = (ROOT / "docs" / "api" / "index.md").read_text().splitlines()
    rows = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]
    stated = {row[0]: row[1] for row in rows if len(row) == 3 and row[1].isdigit()}
    for start, home in homes.items():
        file = module_file(home)
        assert file is not None
        node = names_in(file)["FORMAT_VERSION"]
        assert isinstance(node, ast.Assign)
        assert [int(version) for what, version in stated.items() if what.startswith(start)] == [
            ast.literal_eval(node.value)
        ], start
    assert len(stated) == len(homes)
