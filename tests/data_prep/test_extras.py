"""Without the extra `data`, a program that needs it says so in one line."""

import subprocess
import sys

import pytest

# What imports as in an installation of the core alone, for a program that is started with ``python -m``.
WITHOUT = """
import runpy, sys
for name in ("apache_beam", "emoji", "ftfy", "h5py", "openpyxl", "py3langid", "pyarrow", "urllib3", "zstandard"):
    sys.modules[name] = None
sys.argv = [sys.argv[1], "--help"]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("program", ["curate", "hydrate", "takedown", "release", "expand"])
def test_a_core_only_install_is_told_what_to_install(program):
    done = subprocess.run([sys.executable, "-c", WITHOUT, f"data_prep.{program}"], capture_output=True, text=True)
    assert done.returncode == 1
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f'data_prep.{program}: needs the extra "data" (')
    assert "pyarrow" in line
    assert 'pip install "plip_jax[data]"' in line


@pytest.mark.parametrize(
    "program", ["build", "verify", "simulate", "resize", "gate", "review", "retrieval_set", "tfds.build"]
)
def test_the_others_start_without_it(program):
    done = subprocess.run([sys.executable, "-c", WITHOUT, f"data_prep.{program}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
