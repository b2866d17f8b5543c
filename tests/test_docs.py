"""The training commands of README.md and docs/ are understood: every flag, every field."""

import re
import shlex
from pathlib import Path

import pytest

from plip_jax import train as program

ROOT = Path(__file__).parents[1]


def training_commands() -> list[str]:
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
    blocks = re.findall(r"^```(?:sh|yaml)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.split("plip_jax.train", 1)[1] for line in lines if "plip_jax.train" in line]


def test_there_are_commands():
    assert len(training_commands()) >= 6


@pytest.mark.parametrize("command", training_commands())
def test_a_command_gets_as_far_as_its_data(command, monkeypatch, capsys):
    monkeypatch.setattr("plip_jax.distributed.start_from_flags", lambda flags: None)  # there is no cluster here
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(re.sub(r"\$\w+", "0", re.sub(r" >.*", "", command)))
    records = next(word.partition("=")[2] for word in arguments if "sources.openpath.path=" in word)
    assert program.main(arguments) == 1
    message = capsys.readouterr().err
    assert records.rstrip("/") in message
    assert "data_prep.build" in message  # what a records folder that is not there is answered with
