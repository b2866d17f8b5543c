"""Faults that the tests of the doctor make, and what they ask of its findings."""

import os
from pathlib import Path

import pytest

from plip_jax.doctoring.finding import Asked, Finding

ASKED = Asked(timeout_seconds=60)


def of(status: str, findings) -> list[Finding]:
    return [finding for finding in findings if finding.status == status]


def only(findings) -> Finding:
    (finding,) = findings
    return finding


def put_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path, **modules: str) -> None:
    """Modules that this process and its children find before any other."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))


def pretend_installed(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, version: str, *needs: str) -> None:
    """A package's metadata, found before that of the real one."""
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata.write_text("\n".join([*lines, *(f"Requires-Dist: {need}" for need in needs)]) + "\n")
    put_on_path(monkeypatch, folder)
