"""The notebooks of colab/: each is written from the .py beside it, keeps the rules, and runs to its end."""

import shutil
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from plip_jax.data.records import open_records

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "colab" / "tools"))  # programs of the folder, which no package holds

nbformat = pytest.importorskip("nbformat", reason="the extra notebooks is not installed")
import notebook_rules  # noqa: E402 # found by the path above
import notebooks  # noqa: E402 # the same

SOURCES = notebooks.sources()


@pytest.fixture
def pair(tmp_path) -> Path:
    """A copy of fine_tune_tpu to break; the path of its source."""
    for ending in (".py", ".ipynb"):
        shutil.copy(ROOT / "colab" / f"fine_tune_tpu{ending}", tmp_path)
    return tmp_path / "fine_tune_tpu.py"


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_pair_is_in_step_and_keeps_the_rules(source):
    assert notebooks.problems(source) == []


def test_all_have_the_same_setup():
    assert not [fault for fault in notebooks.problems_of_all(SOURCES) if "setup" in fault]


def test_another_setup_is_found():
    one, other = (nbformat.v4.new_code_cell(text, metadata={"tags": ["setup"]}) for text in ("a = 1", "a = 2"))
    of = {"fine_tune_tpu": one, "evaluate": other, "export": None}
    found = notebook_rules.setup_faults(
        {name: nbformat.v4.new_notebook(cells=[cell] * bool(cell)) for name, cell in of.items()}
    )
    assert list(found) == [
        "evaluate.py: its setup cell differs from that of fine_tune_tpu.py",
        "export.py: expected one cell tagged setup, found 0",
    ]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("# ## Records\n", "# ## Recordings\n", "differ; run: python colab/tools/notebooks.py write"),
        ("blob/main/colab/fine_tune_tpu.ipynb", "blob/main/colab/evaluate.ipynb", "no badge"),
        ("accelerator: TPU", "accelerator: GPU", "ask for the accelerator GPU, expected TPU"),
        ('["parameters"]', '["parameter"]', "no cell tagged parameters assigns EXTRAS, SMOKE, SOURCE"),
        ("SMOKE = False  #", "TINY = False  #", "no cell tagged parameters assigns SMOKE"),
        ("MINE = False  #", "SMOKE = True  #", "assigned twice in cells tagged parameters: SMOKE"),
        ('GROUP = ""  #', "GROUP = TABLE  #", "the parameter GROUP is computed"),
        ("Five and a half minutes", "About MINUTES", "MINUTES stands where a figure belongs"),
        ('EXTRAS = ""  #', 'EXTRAS = "" #', "a parameter without a comment"),
        ("SMOKE = False  #", "import os  #", "holds more than assignments"),
        ("# !{MAKE}\n", "key = input()\n", "asks the reader"),
        ("# !{MAKE}\n", "key = getpass ()\n", "asks the reader"),
        ("# !{MAKE}\n", "import jax\n", "holds the device"),
        ("# !{MAKE}\n", "if True:\n    from plip_jax import PLIP\n", "holds the device"),
    ],
)
def test_a_broken_source_is_found(pair, old, new, fault):
    replace(pair, old, new)
    assert any(fault in problem for problem in notebooks.problems(pair)), notebooks.problems(pair)


@pytest.mark.parametrize(
    ("cells", "fine"),
    [
        (["!plip-jax train", "import jax"], True),
        (["import jax", "!plip-jax train"], False),
        (["import jax", "!JAX_PLATFORMS=cpu plip-jax train"], True),
        (["import jax", "!{TRAIN}"], False),
        (["import jax", "system(TRAIN)"], False),
        (["import jax", "subprocess.check_call(TRAIN)"], False),
        (["import jax", "%%bash\npython -m plip_jax.train"], False),
        (["import jax", "%run train.py"], False),
        (["import jax", "!sh train.sh"], False),
        (["import jax", "!ls *.sh"], True),
        (["import jax", "!ls {FOLDER}"], True),
        (["from plip_jax import PLIP\n!python -m plip_jax.embed"], False),
        (["%%writefile alone.py\nimport jax", "!python alone.py"], True),
        (["text = '''\nimport jax\n'''", "!python alone.py"], True),
    ],
)
def test_a_command_behind_jax_in_the_kernel_is_found(cells, fine):
    found = notebook_rules.structure_faults(
        "x", nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    )
    assert fine is not any("holds the device" in fault for fault in found)


def test_outputs_that_should_not_be_kept_are_found(pair):
    target = pair.with_suffix(".ipynb")
    notebook = nbformat.read(target, 4)
    places = [place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    notebook.cells[places[0]].outputs = [nbformat.v4.new_output("stream", text="written to /home/someone/run\n")]
    notebook.cells[places[1]].outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])]
    notebook.cells[places[2]].outputs = [nbformat.v4.new_output("stream", text="see https://example.org/home/run\n")]
    notebook.cells[places[3]].outputs = [nbformat.v4.new_output("stream", text="0" * 400_000)]
    nbformat.write(notebook, target)
    size, *others = notebooks.problems(pair)
    assert "more than 400,000: keep smaller outputs" in size
    assert others == [
        f"fine_tune_tpu.ipynb, cell {places[0]}: the output names a place of one machine, /home/someone/run",
        f"fine_tune_tpu.ipynb, cell {places[1]}: an error is kept as output",
    ]


def test_a_notebook_without_outputs_or_without_its_pair_is_found(pair):
    pair.with_suffix(".ipynb").unlink()
    assert notebooks.problems(pair) == ["fine_tune_tpu.ipynb is missing; run: python colab/tools/notebooks.py write"]
    notebooks.write(pair)
    assert notebooks.problems(pair) == ["fine_tune_tpu.ipynb, no output is kept"]


def test_writing_again_changes_no_byte_and_keeps_the_outputs_of_unchanged_cells(pair):
    target = pair.with_suffix(".ipynb")
    before = target.read_bytes()
    notebooks.write(pair)
    assert target.read_bytes() == before
    replace(pair, "## Records\n", "## Recordings\n")
    notebooks.write(pair)
    one, other = (nbformat.reads(text, 4) for text in (before.decode(), target.read_text()))
    assert [cell.get("outputs") for cell in one.cells] == [cell.get("outputs") for cell in other.cells]
    assert notebooks.problems(pair) == []


def test_an_unknown_parameter_is_refused(pair):
    with pytest.raises(ValueError, match=r"its parameters are \['DISCONNECT', .*\], and not \['STOER'\]"):
        notebooks.execute(pair, {"STOER": "drive"})


def test_a_failing_cell_is_told(tmp_path, capsys):
    source = tmp_path / "broken.py"
    source.write_text('# %% tags=["parameters"]\nSMOKE = False\n\n# %%\nassert not SMOKE, "smoke is on"\n')
    assert notebooks._execute_and_tell(source, smoke=True, keep=False, values={}) is False
    message = capsys.readouterr().err
    assert message.startswith("broken: failed after")
    assert 'assert not SMOKE, "smoke is on"' in message
    assert message.rstrip().endswith("AssertionError: smoke is on")


def test_what_is_wiped_on_a_terminal_is_not_kept():
    assert notebooks._as_on_a_terminal("step 1\rstep 2\r\n\x1b[2Kdone\n") == "step 2\ndone\n"


@pytest.mark.slow  # trains: up to 60 s on two cores
def test_own_data_are_trained_on_and_never_replaced_by_simulated_tissue(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # this checkout, wherever plip_jax was installed from
    source = ROOT / "colab" / "fine_tune_tpu.py"
    mine = notebooks.smoke_values(source) | {"MINE": True, "GROUP": "patient", "INIT": ""}
    with pytest.raises(notebooks.CellExecutionError, match="no records at mistyped: correct MY_RECORDS"):
        notebooks.execute(source, mine | {"TABLE": "", "MY_RECORDS": "mistyped"}, tmp_path, smoke=True)
    assert not (tmp_path / "mistyped").exists()
    (tmp_path / "images").mkdir()
    rows = ["image,caption,patient"]
    for number in range(60):
        Image.new("RGB", (64, 64), (number * 4, 100, 200)).save(tmp_path / "images" / f"{number}.png")
        rows.append(f"{number}.png,tumour of kind {number % 7},p{number // 3}")
    (tmp_path / "captions.csv").write_text("\n".join(rows))
    notebooks.execute(source, mine, tmp_path, smoke=True)
    records = {split: list(open_records(tmp_path / "my_records", split)) for split in ("train", "test")}
    patients = {split: {one.group_id for one in own} for split, own in records.items()}
    assert sum(map(len, records.values())) == 60
    assert not patients["train"] & patients["test"]
    stored = tmp_path / "drive/MyDrive/plip_jax/my_run"
    assert {"checkpoints", "metrics.jsonl", "curves.png"} <= {one.name for one in stored.iterdir()}
    assert not (tmp_path / "killed.log").exists()  # only the demonstration kills its run


@pytest.mark.slow  # trains, evaluates, exports: up to 70 s a notebook on two cores
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_runs_in_its_smoke_form(source, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # this checkout, wherever plip_jax was installed from
    start = time.perf_counter()
    notebook = notebooks.execute(source, notebooks.smoke_values(source), smoke=True)
    with capsys.disabled():
        print(f"\n{source.stem}: {time.perf_counter() - start:.0f} s")
    assert [fault for fault in notebook_rules.output_faults(notebook) if "error" in fault] == []
    if source.stem == "fine_tune_tpu":  # killed, its folder lost: the metrics before the kill came back from the store
        printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
        assert "8 lines, steps 1 to 8; no step is there twice" in printed
