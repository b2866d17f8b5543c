"""Every recipe of configs/ trains in its smoke form, and every setting of a step is a line in the config."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from small_records import write_tiles

from plip_jax import train as program
from plip_jax.convert.load import load_model
from plip_jax.training.checkpoint import read_model
from plip_jax.training.logging import read_metrics

RECIPES = {"plip_vit_b32": "openpath", "plip_vit_b32_large_batch": "openpath", "ip_clip_vit_b32": "ipath"}


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("data") / "records", count=60)


def train(recipe: str, records: Path, workdir: Path, *more: str) -> list[dict]:
    source = RECIPES[recipe]
    status = program.main(
        [
            f"--config=configs/{recipe}.py:smoke",
            f"--workdir={workdir}",
            f"--config.data.sources.{source}.path={records}",
            f"--config.eval.tasks.heldout.data={records}",
            "--config.eval.tasks.heldout.split=test",  # IP-CLIP's is called retrieval
            *more,
        ]
    )
    assert status == 0
    return [line for line in read_metrics(workdir) if "loss" in line]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_smoke_form_trains_evaluates_and_loads(recipe, records, tmp_path):
    lines = train(recipe, records, tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert any("eval/heldout/text_to_image_recall@10" in line for line in read_metrics(tmp_path / "run"))
    assert load_model(tmp_path / "run").step == 8


@pytest.mark.slow  # three networks and steps are compiled
def test_every_setting_of_a_step_is_a_line_in_the_config(records, tmp_path):
    more = [
        "--config.train.steps=4",
        "--config.train.eval_interval_steps=2",
        "--config.train.accumulation_steps=2",
        "--config.train.params_sharding=fsdp",
        "--config.train.ema_decay=0.5",
        "--config.loss.name=siglip",
        "--config.loss.group_by=caption,group",
        "--config.data.warp_on_device=True",
        "--config.model.patch_dropout=0.25",
        "--config.model.remat=True",
        "--config.optim.freeze_text_blocks=1",
        "--config.optim.layer_decay=0.9",
        "--config.optim.vision_rate=0.5",
    ]
    lines = train("plip_vit_b32", records, tmp_path / "run", *more)
    assert len(lines) == 4
    assert lines[0]["logit_bias"] == pytest.approx(-10, abs=0.1)  # SigLIP's start; a step of 1e-5 hardly moves it
    raw, averaged = (read_model(tmp_path / "run", weights=weights) for weights in ("raw", "ema"))
    assert read_model(tmp_path / "run").weights == "ema"
    kernel = lambda files: files.params["vision"]["projection"]["kernel"]  # noqa: E731 # one line
    assert (kernel(raw) != kernel(averaged)).any()

    # Killed after the second step: its checkpoint holds all that the rest depends on.
    shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
    again = train("plip_vit_b32", records, tmp_path / "resumed", *more)
    assert [(line["step"], line["loss"]) for line in again] == [(line["step"], line["loss"]) for line in lines]
    for weights, expected in (("raw", raw), ("ema", averaged)):
        found = read_model(tmp_path / "resumed", weights=weights)
        jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
