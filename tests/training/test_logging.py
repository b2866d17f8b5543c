"""Metrics on disk and on the screen."""

import io
import json
import sys
import types

import pytest

from plip_jax.training.curves import draw_curves
from plip_jax.training.logging import ProgressLine, cut_metrics, make_writers, read_metrics

LINE = {"loss": 1.25, "pairs_per_second": 100.0, "steps_per_second": 2.0, "data_wait_share": 0.25}


def test_json_lines_are_written_at_once_and_cut_on_resume(tmp_path):
    (writer,) = make_writers(tmp_path, [], {})
    for step in (1, 2, 3, 4):
        writer.write(step, {"loss": step / 2})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]  # before close: flushed
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # a kill in the middle of a line
    cut_metrics(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 1.0}\n'
    (writer,) = make_writers(tmp_path, ["jsonl"], {})
    writer.write(3, {"loss": float("nan")})
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1]) == {"step": 3, "loss": "nan"}


def test_the_extras_write_what_json_lines_write(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, scalars, step):
            calls.append(("wandb", step, scalars))

        def finish(self):
            calls.append(("wandb", "finish"))

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append(("tensorboard", "from", purge_step))

        def add_scalar(self, name, value, step):
            calls.append(("tensorboard", step, {name: value}))

        def close(self):
            calls.append(("tensorboard", "close"))

    wandb = types.SimpleNamespace(init=lambda **settings: calls.append(("init", settings["id"])) or Run())
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    workdir = tmp_path / "run"
    workdir.mkdir()
    writers = make_writers(workdir, ["tensorboard", "wandb"], {"seed": 0}, first_step=7)
    for writer in writers:
        writer.write(7, {"loss": 0.5})
        writer.close()
    assert ("tensorboard", 7, {"loss": 0.5}) in calls
    assert ("wandb", 7, {"loss": 0.5}) in calls
    assert ("tensorboard", "from", 7) in calls
    # The same W&B run when it is resumed, and not that of another folder called "run".
    (first,) = [call[1] for call in calls if call[0] == "init"]
    assert len(first) == 32
    make_writers(workdir, ["wandb"], {})[0].close()
    assert [call[1] for call in calls if call[0] == "init"] == [first, first]


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install wandb"):
        make_writers(tmp_path, ["wandb"], {})


def test_progress_is_one_live_line_on_a_terminal_and_plain_lines_elsewhere():
    plain = io.StringIO()
    ProgressLine(10, plain).report(4, LINE)
    assert plain.getvalue() == "step 4/10  loss 1.2500  100 pairs/s  waiting for data 25%  0:03 left\n"

    with_mfu = io.StringIO()
    ProgressLine(10, with_mfu).report(4, {**LINE, "mfu": 0.4321})
    assert "  100 pairs/s  MFU 43.2%  waiting for data 25%  " in with_mfu.getvalue()

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    live = Terminal()
    line = ProgressLine(10, live)
    line.report(4, LINE)
    line.report(6, LINE)
    line.say("saved")
    assert live.getvalue().count("\n") == 1
    assert live.getvalue().count("\r\x1b[2K") == 3


def test_the_first_process_speaks_for_all_and_each_warns_for_itself():
    for process, expected in ((0, "hello\nprocess 0: look\n"), (1, "process 1: look\n"), (None, "hello\nlook\n")):
        stream = io.StringIO()
        line = ProgressLine(10, stream, process=process)
        line.say("hello")
        line.warn("look")
        assert stream.getvalue() == expected
        line.report(4, LINE)
        assert (stream.getvalue() != expected) == (process != 1)


def test_curves_are_drawn_from_the_metrics(tmp_path):
    assert draw_curves(tmp_path) is None
    (writer,) = make_writers(tmp_path, [], {})
    for step in range(1, 6):
        writer.write(
            step, {**LINE, "learning_rate": 1e-3, "image_to_text_accuracy": 0.5, "text_to_image_accuracy": 0.4}
        )
    writer.write(5, {"eval/heldout/text_to_image_recall@10": 0.5})
    writer.close()
    picture = draw_curves(tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000
