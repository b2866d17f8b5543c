"""The training program: runs, resumes, refuses, and ends with the same bits when it is killed."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from small_records import write_tiles

from data_prep.shards import RecordsWriter
from plip_jax import train as program
from plip_jax.config_file import load_config
from plip_jax.convert.load import load_model
from plip_jax.data.image import Preprocessing
from plip_jax.data.records import open_records
from plip_jax.data.tokenizer import train_tokenizer
from plip_jax.export import export
from plip_jax.training.checkpoint import read_model
from plip_jax.training.logging import read_metrics
from plip_jax.training.provenance import locked

ROOT = Path(__file__).parents[1]
RECORDS, STEPS, CHECKPOINT_EVERY = 40, 10, 2


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("data") / "records", count=RECORDS)


def arguments(records: Path, workdir: Path, *more: str) -> list[str]:
    return [
        "--config=configs/plip_vit_b32.py:smoke",
        f"--workdir={workdir}",
        f"--config.data.sources.openpath.path={records}",
        f"--config.eval.tasks.heldout.data={records}",
        f"--config.train.steps={STEPS}",
        "--config.train.eval_interval_steps=5",
        f"--config.train.checkpoint_interval_steps={CHECKPOINT_EVERY}",
        "--config.checkpoint.keep=20",
        "--config.model.patch_dropout=0.25",  # a random key a step: a resumed run must draw the same
        *more,
    ]


def start(records: Path, workdir: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "plip_jax.train", *arguments(records, workdir, *more)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # One device: the test is about bits, not about sharding. Most of its time is compilation.
        env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
    )


def finish(process: subprocess.Popen) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def wait_for_step(workdir: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not any(line["step"] >= step for line in read_metrics(workdir)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.01)


def losses(workdir: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(workdir) if "loss" in line]


@pytest.fixture(scope="module")
def unbroken(records, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    finish(start(records, workdir))
    return workdir


def test_a_run_leaves_what_it_promises(unbroken):
    assert [step for step, _ in losses(unbroken)] == list(range(1, STEPS + 1))
    evaluated = [line for line in read_metrics(unbroken) if "eval/heldout/text_to_image_recall@10" in line]
    assert [line["step"] for line in evaluated] == [5, 10]
    logged = [line for line in read_metrics(unbroken) if "loss" in line]
    assert all({"loss", "grad_norm", "logit_scale", "learning_rate"} <= line.keys() for line in logged)
    # Not on each line: where two steps are found finished together, nobody knows when the first of them was.
    assert any({"pairs_per_second", "data_wait_share"} <= line.keys() for line in logged)
    assert (unbroken / "curves.png").read_bytes().startswith(b"\x89PNG")
    model = load_model(unbroken)
    assert model.step == STEPS
    assert model.tokenizer("a red tile").shape == (1, 16)


def assert_same_end(killed: Path, unbroken: Path) -> None:
    ours, theirs = read_model(killed), read_model(unbroken)
    assert ours.step == theirs.step == STEPS
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    # Neither cut short nor doubled, and bit for bit the same numbers.
    assert losses(killed) == losses(unbroken)


def test_killed_at_two_points_it_ends_with_the_same_bits(records, unbroken, tmp_path):
    workdir = tmp_path / "run"
    for step in (3, 7):
        process = start(records, workdir)
        wait_for_step(workdir, step, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    errors = finish(start(records, workdir))
    assert "resuming at step" in errors
    assert "not bit-exact" not in errors
    assert_same_end(workdir, unbroken)


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_with_the_same_bits(records, unbroken, tmp_path):
    workdir = tmp_path / "run"
    rng = np.random.default_rng(int(os.environ.get("PLIP_JAX_KILL_SEED", "0")))
    for _ in range(10):
        process = start(records, workdir)
        # From the start of the interpreter to past the end: compiling, writing, evaluating, saving.
        time.sleep(float(rng.uniform(0.5, 16)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(records, workdir))
    assert_same_end(workdir, unbroken)


def test_sigterm_saves_the_step_and_prints_the_command_that_resumes(records, unbroken, tmp_path):
    workdir = tmp_path / "run"
    process = start(
        records, workdir, "--config.train.checkpoint_interval_steps=0", "--config.train.eval_interval_steps=0"
    )
    wait_for_step(workdir, 3, process)
    process.send_signal(signal.SIGTERM)
    errors = finish(process)
    saved = read_model(workdir).step
    assert 3 <= saved < STEPS
    assert [step for step, _ in losses(workdir)] == list(range(1, saved + 1))
    assert f"--workdir={workdir}" in errors.split("Resume with:")[1]


def test_another_configuration_is_refused_with_the_difference(records, tmp_path, capsys):
    workdir = tmp_path / "run"
    short = ("--config.train.stop_at_step=2", "--config.eval.tasks.heldout.data=")
    assert program.main(arguments(records, workdir, *short)) == 0
    capsys.readouterr()
    other = (*short, "--config.optim.learning_rate=0.5")
    assert program.main(arguments(records, workdir, *other)) == 1
    message = capsys.readouterr().err
    assert "optim.learning_rate: 1e-05 -> 0.5" in message
    assert "--allow-config-change" in message
    assert message.count("->") == 1
    longer = ("--config.train.stop_at_step=3", *short[1:], "--allow-config-change")
    assert program.main(arguments(records, workdir, *longer)) == 0
    assert "train.stop_at_step: 2 -> 3" in capsys.readouterr().err
    assert read_model(workdir).step == 3


def test_an_exported_or_trained_model_can_be_fine_tuned(records, unbroken, tmp_path):
    workdir = tmp_path / "run"
    more = (f"--config.model.init_from={unbroken}", "--config.train.stop_at_step=1", "--config.optim.learning_rate=0.0")
    assert program.main(arguments(records, workdir, *more)) == 0
    # A rate of zero: what comes out is what went in.
    jax.tree.map(np.testing.assert_array_equal, read_model(workdir).params, read_model(unbroken).params)
    assert load_model(workdir).tokenizer.fingerprint == load_model(unbroken).tokenizer.fingerprint


def test_no_data_says_which_command_makes_records(tmp_path, capsys):
    assert program.main(["--config=configs/plip_vit_b32.py:smoke", f"--workdir={tmp_path}"]) == 1
    message = capsys.readouterr().err
    assert "--config.data.sources.openpath.path=DIR" in message
    assert "python -m data_prep.build --source csv" in message
    assert "python -m data_prep.simulate" in message
    assert not list(tmp_path.iterdir())


def test_an_unknown_override_names_the_nearest(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main(["--config=configs/demo.py", f"--workdir={tmp_path}", "--config.optim.learning_rat=1"])
    assert stopped.value.code == 2
    assert "--config.optim.learning_rate" in capsys.readouterr().err


def test_a_refused_start_leaves_the_work_directory_as_it_was(records, tmp_path, capsys):
    workdir = tmp_path / "run"
    off = "--config.eval.tasks.heldout.data="
    for wrong in (
        "--config.checkpoint.best_mode=maximum",
        "--config.data.global_batch_size=12",
        "--config.logging.wandb=True",
    ):
        assert program.main(arguments(records, workdir, off, wrong)) == 1  # 12 is no multiple of 8 devices
    assert program.main(arguments(records, workdir, off, "--config.train.stop_at_step=2")) == 0
    # Allowed, but it cannot be done: nothing of it may stay, and the run's own command must still work.
    other = (off, "--config.model.preset=demo", "--config.optim.decay_mask=matrices", "--allow-config-change")
    capsys.readouterr()
    assert program.main(arguments(records, workdir, *other, "--config.train.stop_at_step=3")) == 1
    assert "model.preset: 'tiny' -> 'demo'" in capsys.readouterr().err
    assert program.main(arguments(records, workdir, off, "--config.train.stop_at_step=2")) == 0


def test_other_data_are_refused_unless_allowed(records, tmp_path, capsys):
    workdir, other = tmp_path / "run", tmp_path / "other"
    with RecordsWriter(other) as writer:
        for record in [*open_records(records, "train"), *open_records(records, "test")]:
            writer.write(record, "train")
    short = ("--config.eval.tasks.heldout.data=",)
    moved = tmp_path / "records"
    shutil.copytree(records, moved)
    assert program.main(arguments(moved, workdir, *short, "--config.train.stop_at_step=2")) == 0
    shutil.rmtree(moved)
    shutil.copytree(other, moved)
    capsys.readouterr()
    assert program.main(arguments(moved, workdir, *short, "--config.train.stop_at_step=2")) == 1
    assert "started on other data" in capsys.readouterr().err
    assert (
        program.main(arguments(moved, workdir, *short, "--config.train.stop_at_step=2", "--allow-config-change")) == 0
    )
    assert "changed: data: " in capsys.readouterr().err


def test_a_bad_image_in_evaluation_is_named_and_costs_no_step(records, tmp_path, capsys):
    bad = tmp_path / "bad"
    (bad / "ADI").mkdir(parents=True)
    (bad / "ADI" / "torn.png").write_bytes(next(iter(open_records(records, "test"))).image[:60])
    kather = (f"--config.eval.tasks.kather.data={bad}", "--config.eval.tasks.kather.missing_classes=allow")
    more = ("--config.eval.tasks.heldout.data=", "--config.train.stop_at_step=3")
    assert program.main(arguments(records, tmp_path / "run", *kather, *more)) == 1
    assert "ADI/torn.png" in capsys.readouterr().err
    assert read_model(tmp_path / "run").step == 3


@pytest.mark.slow  # three runs with their evaluations are compiled
def test_the_starting_models_pixels_dtype_and_best_metric_reach_training(records, unbroken, tmp_path):
    model = load_model(unbroken)
    grey = dataclasses.replace(model, preprocessing=Preprocessing(image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3))
    start = export(grey, tmp_path / "grey")
    losses_by = {}
    for name, folder, dtype in (("grey", start, "float32"), ("clip", unbroken, "float32"), ("bf16", start, "bfloat16")):
        workdir = tmp_path / f"run_{name}"
        more = (
            f"--config.model.init_from={folder}",
            f"--config.model.compute_dtype={dtype}",
            "--config.train.stop_at_step=2",
            "--config.train.eval_interval_steps=1",
            "--config.checkpoint.best_metric=eval/heldout/text_to_image_recall@10",
        )
        assert program.main(arguments(records, workdir, *more)) == 0
        losses_by[name] = losses(workdir)[0][1]
        assert read_model(workdir, "best").description.best_metric == "eval/heldout/text_to_image_recall@10"
        assert load_model(workdir).preprocessing.mean == load_model(folder).preprocessing.mean
    # Other statistics, and other products, are another first loss.
    assert len(set(losses_by.values())) == 3


def test_settings_that_nothing_reads_are_refused(records, unbroken, tmp_path, capsys):
    wrong = "--config.checkpoint.best_metric=eval/heldout/nonsense"
    assert program.main(arguments(records, tmp_path / "run", wrong, "--config.train.stop_at_step=1")) == 1
    assert "expected one of eval/heldout/image_to_text_fold@1, " in capsys.readouterr().err
    other = train_tokenizer(["another vocabulary"], vocab_size=520, context_length=16)
    other.save(tmp_path / "tokenizer")
    more = (f"--config.model.init_from={unbroken}", f"--config.model.tokenizer={tmp_path / 'tokenizer'}")
    assert program.main(arguments(records, tmp_path / "run2", *more)) == 1
    assert "expected the vocabulary of the starting weights" in capsys.readouterr().err
    config = ["--config=configs/eval_demo.py", f"--workdir={tmp_path / 'run3'}"]
    assert program.main(config) == 1
    assert "this is no training config" in capsys.readouterr().err


def test_a_work_directory_has_one_trainer_and_is_a_folder(records, tmp_path, capsys):
    with locked(tmp_path / "run"):
        assert program.main(arguments(records, tmp_path / "run")) == 1
    assert "another process is training there" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert program.main(arguments(records, tmp_path / "file")) == 1
    assert "expected a folder" in capsys.readouterr().err


def test_updates_that_are_not_finite_are_skipped_and_then_stop_the_run(records, tmp_path, capsys):
    more = (
        "--config.optim.learning_rate=1e38",
        "--config.optim.warmup_steps=0",
        "--config.eval.tasks.heldout.data=",
        "--config.train.checkpoint_interval_steps=0",
        "--config.train.max_skipped_steps=3",
    )
    assert program.main(arguments(records, tmp_path / "run", *more)) == 1
    message = capsys.readouterr().err
    assert "step 2 is skipped, nothing is updated" in message
    assert "step 3: " in message
    assert "update_ratio is inf" in message
    assert "nothing of it is saved, there is no checkpoint yet" in message
    assert "records/" in message  # where the records of that batch are


def test_every_recipe_has_its_smoke_form():
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.name.startswith("eval_"):
            continue
        config = load_config(f"{path}:smoke")
        assert config.model.preset == "tiny", path
        assert json.dumps(config.train.to_dict()), path
