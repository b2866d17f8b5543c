"""Links of README.md, CONTRIBUTING.md and docs/ lead somewhere, the README's table of commands is complete, and the
repository has one address."""

import functools
import html
import os
import re
import tomllib
from pathlib import Path

import pytest
from pages import ROOT, headings, pages, prose

from plip_jax.__main__ import VERBS

LINKED = [*pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|(?:href|src)=\"([^\"]+)\"|^\[[^\]]+\]: +(\S+)", re.M)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")


def address() -> str:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["urls"]["Repository"]


def links(page: Path) -> list[str]:
    text = _CODE.sub("", prose(page))
    return [html.unescape(next(filter(None, groups))) for groups in _LINK.findall(text)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub (repository) and MkDocs (docs/) make of headings; a second one of a name has a number."""
    found: set[str] = set()
    for heading in headings(page):
        if given := re.search(r"\{ *#([\w-]+)[^}]*\} *$", heading):
            found.add(given[1])
            continue
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        text = re.sub(r"[^\w\s-]", "", re.sub(r"<[^>]+>", "", text).replace("`", "")).strip().lower()
        slug = re.sub(r"[-\s]+", "-", text) if page.is_relative_to(ROOT / "docs") else text.replace(" ", "-")
        mark, number = "_" if page.is_relative_to(ROOT / "docs") else "-", 1
        while slug in found:
            slug = f"{slug.removesuffix(f'{mark}{number - 1}')}{mark}{number}"
            number += 1
        found.add(slug)
    return found | set(re.findall(r"<a (?:name|id)=\"([^\"]+)\"", prose(page)))


def problem(page: Path, link: str) -> str:
    """What is wrong with a link; empty where nothing is, or where it leads to another site."""
    repository = re.match(rf"{re.escape(address())}/(?:blob|tree|raw|edit)/(\w+)/([^#?]*)", link)
    colab = re.match(rf"https://colab\.research\.google\.com/github/{_owner()}/blob/(\w+)/([^#?]*)", link)
    if inside := repository or colab:
        return "" if inside[1] == "main" and (ROOT / inside[2]).exists() else "the repository has no such file"
    if "colab.research.google.com/github" in link:
        return "the notebook of another repository"
    if re.match(r"(https?|mailto):", link):
        return ""
    path, _, anchor = link.partition("#")
    target = Path(os.path.normpath(page.parent / path)) if path else page
    if not target.exists():
        return "no such file"
    if page.is_relative_to(ROOT / "docs") and not target.is_relative_to(ROOT / "docs"):
        return f"the site has nothing outside of docs/: link to {address()}/blob/main/"
    if anchor and target.suffix == ".md" and anchor not in _anchors_of(target):
        return f"no such heading; there are {', '.join(sorted(_anchors_of(target)))}"
    return ""


@functools.cache
def _anchors_of(page: Path) -> set[str]:
    return anchors(page)


def _owner() -> str:
    return re.escape(address().removeprefix("https://github.com/"))


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path):
    # The API's pages are anchors of objects, which MkDocs makes of docstrings and checks itself (make docs).
    found = [link for link in links(page) if not re.search(r"(^|/)api/[\w/]*\.md#", link)]
    wrong = [f"{link}: {what}" for link in found if (what := problem(page, link))]
    assert not wrong, "\n".join(wrong)


def test_a_link_that_leads_nowhere_is_found(monkeypatch, tmp_path: Path):
    page = ROOT / "README.md"
    assert len(links(page)) > 5
    wrong = ["docs/none.md", "#none", "docs/curate.md#none", f"{address()}/blob/main/none.md"]
    wrong += ["https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/none.ipynb"]
    wrong += ["https://colab.research.google.com/github/another/plip_jax/blob/main/colab/fine_tune_tpu.ipynb"]
    assert all(problem(page, link) for link in wrong)
    assert "outside of docs" in problem(ROOT / "docs" / "curate.md", "../README.md")
    right = ["docs/curate.md", "docs/curate.md#a-worked-example", "#what-it-is-and-what-it-is-not", "https://x.org/a"]
    right += ["https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/fine_tune_tpu.ipynb"]
    assert not any(problem(page, link) for link in right)
    file = tmp_path / "page.md"
    file.write_text('[a](b.md "title") `[no](x.md)` <img src="c.png">\n```md\n[no](y.md)\n```\n[d](<e.md#f>)\n')
    assert links(file) == ["b.md", "c.png", "e.md#f"]


# The table of commands


def table_of_commands() -> tuple[set[str], set[str]]:
    """Modules and targets of make that the README's table of commands names."""
    table = re.search(r"^\| command \|.*?\n\|[-| :]+\n((?:\|.*\n)+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert table, "the README has no table of commands"
    modules, targets = set(), set()
    for row in table[1].splitlines():
        package = ""
        for code in re.findall(r"`([^`]+)`", row.split("|")[1]):
            if code.startswith("."):  # `python -m benchmarks.a`, `.b`: of the package that was named before
                modules.add(package + code)
            elif match := re.match(r"python -m ([\w.]+)|plip-jax (\w+)", code):
                modules.add(match[1] or f"plip_jax.{match[2]}")
                package = (match[1] or "").rpartition(".")[0]
            elif match := re.match(r"make ([\w-]+)", code):
                targets.add(match[1])
    return modules, targets


def programs() -> set[str]:
    """Every verb, and every module of data_prep/ and benchmarks/ that has a `main`."""
    files = [file for folder in ("data_prep", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    files = [file for file in files if re.search(r"^def main\(", file.read_text(encoding="utf-8"), re.MULTILINE)]
    return {f"plip_jax.{verb}" for verb in VERBS} | {
        ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files
    }


def test_the_table_of_commands_names_every_program_and_no_other():
    modules, targets = table_of_commands()
    assert modules == programs()
    assert len(modules) > 20
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


# The address


def _files_with_an_address() -> list[Path]:
    named = [ROOT / name for name in ("pyproject.toml", "mkdocs.yml", "Makefile", ".ci/run")]
    folders = (
        ("colab", "*.py"),
        ("colab", "*.ipynb"),
        ("plip_jax", "*.py"),
        ("data_prep", "*.py"),
        ("configs", "*.py"),
    )
    return [*LINKED, *named, *(file for folder, kind in folders for file in sorted((ROOT / folder).rglob(kind)))]


def test_the_repository_has_one_address():
    found: dict[str, list[str]] = {}
    for file in _files_with_an_address():
        text = file.read_text(encoding="utf-8")
        for owner in re.findall(r"git(?:hub\.com[/:]|hub/|hubusercontent\.com/)([\w-]+/plip[_-]jax)\b", text):
            found.setdefault(owner, []).append(str(file.relative_to(ROOT)))
    assert set(found) == {address().removeprefix("https://github.com/")}
    assert {"pyproject.toml", "mkdocs.yml", "colab/fine_tune_tpu.py", "docs/install.md"} <= set(*found.values())


def test_a_notebooks_badge_opens_the_notebook_itself():
    notebooks = sorted((ROOT / "colab").glob("*.py"))
    assert notebooks
    for notebook in notebooks:
        opened = re.findall(r"colab\.research\.google\.com/github/[^\s\"')]*/(colab/[^\s\"')]+)", notebook.read_text())
        assert opened[:1] == [f"colab/{notebook.stem}.ipynb"], notebook.name
        assert all((ROOT / name).exists() for name in opened), notebook.name
