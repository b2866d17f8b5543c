"""docs/curate.md: its worked example does what it says, and Beam knows the options of its runners."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("apache_beam", reason="it comes with the extra for data")

from apache_beam.options.pipeline_options import PipelineOptions

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "curate.md").read_text(encoding="utf-8")


def shell_blocks(text: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_option_of_a_runner_is_one_of_beams():
    options = re.findall(r"\| `\"(\(.*?\))\"`", GUIDE)
    assert len(options) == 4  # Dask, Flink, Spark, Dataflow
    for text in options:
        words = re.findall(r"'(.*?)'", text)
        if "dask" in text:
            pytest.importorskip("apache_beam.runners.dask.dask_runner", reason="the runner's extra is not installed")
        if "flink" in text or "spark" in text or "dask" in text:
            known = PipelineOptions(words).get_all_options(drop_default=True)
            assert len(known) == len(words), (words, known)
        else:
            assert {word.partition("=")[0] for word in words} == {
                "--project",
                "--region",
                "--temp_location",
                "--sdk_container_image",
            }


@pytest.mark.slow  # eight programs are started, most of which import jax and Beam
def test_the_worked_example(tmp_path):
    example = GUIDE[GUIDE.index("## A worked example") : GUIDE.index("## Sources")]
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(paths), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", "\n".join(shell_blocks(example))],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kept 43 pairs (retrieval 8, train 35)" in done.stdout
    assert "kept 42 pairs" in done.stdout
    assert re.search(r"byte scan for \d+ needles: 0 found", done.stdout)
    assert re.search(r"all records are sound \(retrieval \d, train \d+\)\s*$", done.stdout)
    last = re.findall(r"retrieval (\d+), train (\d+)", done.stdout)[-1]
    assert sum(map(int, last)) == 41
