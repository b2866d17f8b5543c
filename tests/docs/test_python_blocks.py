"""Every Python block of README.md and docs/ runs, in the order of its page, on what the programs themselves made.

The folder that the pages speak of has `tile.png`, `tiles/`, `records/` (splits train and test), `runs/plip/` (a
finished run), `plip-hf/` (its export), `embeddings/` (of `tiles/`) and `report/` (an evaluation). The hub ids
`vinid/plip` and `openai/clip-vit-base-patch32` are in the cache of the hub there, as copies of `plip-hf/`.
"""

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pages import ROOT, blocks, pages
from PIL import Image

from data_prep import simulate
from plip_jax import embed, evaluate, export, train
from plip_jax.data.examples import open_examples

# tests/test_adapters.py runs it, beside the tools that it is about.
ELSEWHERE = {ROOT / "docs" / "adapters.md"}
WITH_BLOCKS = [page for page in pages() if page not in ELSEWHERE and blocks(page, "python")]
HUB_IDS = ("vinid/plip", "openai/clip-vit-base-patch32")
_REVISION = "0" * 40


# So many blocks each page had when this was written: one that is lost, or is no longer called python, is seen.
LEAST = {"README.md": 2, "evaluate.md": 3, "export.md": 6, "extend.md": 18, "fine_tune.md": 3, "index.md": 1}


def test_the_pages_have_python_blocks():
    counts = {page.name: len(blocks(page, "python")) for page in WITH_BLOCKS}
    assert {name: counts.get(name, 0) for name, least in LEAST.items() if counts.get(name, 0) < least} == {}


def _run(program: Callable[[Sequence[str]], int], line: str) -> None:
    assert program(line.split()) == 0, line


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pages, made by the programs in their smallest form."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _run(simulate.main, "--out records --train 64 --test 24 --size 64")
        Path("tiles").mkdir()
        examples = open_examples("records", "test")
        for number in range(8):
            Image.open(io.BytesIO(examples[number].image)).save(f"tiles/tile{number}.png")
        shutil.copy("tiles/tile0.png", "tile.png")
        own = "tasks.tissue.data=records --config.{0}tasks.captions.data=records"
        tasks = f"--config.eval.{own.format('eval.')}"
        source = "--config.data.sources.tissue.path=records"
        _run(train.main, f"--config configs/demo.py:smoke --workdir runs/plip {source} {tasks}")
        _run(export.main, "--checkpoint runs/plip --format hf --out plip-hf")
        _run(embed.main, "--checkpoint runs/plip --images tiles --out embeddings")
        tasks = f"--config.{own.format('')} --config.bootstrap.resamples=100"
        _run(evaluate.main, f"--checkpoint runs/plip --config configs/eval_demo.py --out report {tasks}")
    for hub_id in HUB_IDS:
        repository = folder / "hub" / f"models--{hub_id.replace('/', '--')}"
        shutil.copytree(folder / "plip-hf", repository / "snapshots" / _REVISION)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(_REVISION)
    return folder


@pytest.mark.slow  # a process that imports jax and compiles, for each page
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs(page: Path, prepared: Path, tmp_path: Path):
    folder = shutil.copytree(prepared, tmp_path / "folder")  # what a page writes, the next does not find
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # half the time of compiling; one device, as a reader has
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "docs" / "run_page.py"), str(page)],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(blocks(page, 'python'))} blocks were run" in done.stdout


EXTEND = ROOT / "docs" / "extend.md"


def _run_python(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, text=True, capture_output=True, timeout=500
    )


@pytest.mark.slow  # a run of training with a worker process
def test_the_file_that_extend_shows_runs_and_its_workers_know_its_table(prepared: Path, tmp_path: Path):
    (file,) = [block for block in blocks(EXTEND, "python") if block.title == "my_plip.py"]
    (tmp_path / "my_plip.py").write_text(file.text)
    records = prepared / "records"
    line = (
        "train --config configs/demo.py:smoke --workdir run --config.data.augmentation=stain "
        f"--config.data.num_workers=1 --config.data.sources.tissue.path={records} "
        f"--config.eval.tasks.tissue.data={records} --config.eval.tasks.captions.data={records}"
    )
    done = _run_python(["my_plip.py", *line.split()], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow  # processes that import jax
def test_what_extend_defines_needs_no_other_block_and_starts_no_device(tmp_path: Path):
    """A file of one's own is imported by worker processes too: on a GPU or a TPU each would take it once more."""
    fills_a_table = re.compile(r"^(\w+\.)?[A-Z_]+\[", re.MULTILINE)
    found = [block for block in blocks(EXTEND, "python") if fills_a_table.search(block.text)]
    assert len(found) >= 8  # a table each
    program = """
import pathlib, sys
from jax._src import xla_bridge  # JAX has no public question for it
for file in sys.argv[1:]:
    exec(compile(pathlib.Path(file).read_text(), file, "exec"), {"__name__": "file"})
    assert not xla_bridge.backends_are_initialized(), file
"""
    for number, block in enumerate(found):
        (tmp_path / f"{number}.py").write_text("\n" * (block.line - 1) + block.text)
    done = _run_python(["-c", program, *(f"{number}.py" for number in range(len(found)))], tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_error_names_the_page_and_its_line(tmp_path: Path):
    program = """
from run_page import ROOT, Block, run
page = ROOT / "P.md"
run([Block(page, 7, "python", "", "a = 1\\n"), Block(page, 40, "python", "", "assert a == 1\\nnone\\n")])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "docs")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 1
    assert 'File "P.md", line 41' in done.stderr
