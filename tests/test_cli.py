"""The command: quick help, the verbs that exist, and a nearest one for a misspelt one."""

import importlib.util
import subprocess
import sys
import time

import pytest

import plip_jax
from plip_jax import __main__ as command


def test_help_lists_the_verbs_in_half_a_second() -> None:
    elapsed = []
    for _ in range(3):  # the best of three: the machine may be busy, the command is not
        start = time.perf_counter()
        run = subprocess.run([sys.executable, "-m", "plip_jax", "--help"], capture_output=True, text=True, check=True)
        elapsed.append(time.perf_counter() - start)
    assert min(elapsed) < 0.5
    for verb, text in command.VERBS.items():
        assert verb in run.stdout
        assert text in run.stdout


def test_every_verb_is_a_module() -> None:
    for verb in command.VERBS:
        assert importlib.util.find_spec(f"plip_jax.{verb}") is not None, verb


def test_an_unknown_verb_names_the_known_and_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["trian"]) == 2
    assert "unknown verb 'trian' (did you mean train?); known: train, evaluate, embed" in capsys.readouterr().err
    assert command.main(["zzz"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_no_verb_is_wrong_usage_and_the_version_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    assert "usage: plip-jax VERB" in capsys.readouterr().out
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == plip_jax.__version__


def test_the_rest_goes_to_the_verbs_program(monkeypatch: pytest.MonkeyPatch) -> None:
    from plip_jax import export

    def main(argv: list[str]) -> int:
        assert argv == ["--out", "x"]
        return 7

    monkeypatch.setattr(export, "main", main)
    assert command.main(["export", "--out", "x"]) == 7
