"""docs/install.md says what pyproject.toml says: the extras, and the oldest versions."""

import re
import tomllib

from pages import ROOT

PAGE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")


def project() -> dict:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def test_every_extra_is_in_the_table_and_no_other():
    table = PAGE[PAGE.index("| extra | for |") :].partition("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`([\w-]+)`", row.split("|")[1])]
    assert sorted(named) == sorted(project()["optional-dependencies"])


def test_the_oldest_versions_are_those_of_the_package():
    floors = dict(re.findall(r"^(jax|flax)>=([\d.]+)$", "\n".join(project()["dependencies"]), re.MULTILINE))
    assert f"jax >= {floors['jax']} and flax >= {floors['flax']}" in PAGE
    oldest = project()["requires-python"].removeprefix(">=")
    newest = max(re.findall(r"Python :: 3\.(\d+)", "\n".join(project()["classifiers"])), key=int)
    assert f"Python {oldest} to 3.{newest}" in PAGE
