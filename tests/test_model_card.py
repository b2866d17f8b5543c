"""The model card: what it says is what is known, and nothing of this machine is in it."""

import dataclasses
import getpass
import json
import platform
from pathlib import Path
from typing import Any

import huggingface_hub
import jax.numpy as jnp
import pytest
from small_models import make_config, make_model

from plip_jax.convert.load import LoadedModel, load_model
from plip_jax.data.image import Preprocessing
from plip_jax.export import export, main
from plip_jax.model_card import CardFacts, ModelCardError, check_evaluation, make_model_card, read_evaluation
from plip_jax.training.checkpoint import CheckpointConfig, Checkpoints, Description
from plip_jax.training.state import TrainState

_PIXELS = Preprocessing(32)
PARITY: dict[str, Any] = {
    "format": "hf",
    "dtype": "float32",
    "plip_jax": "0.1.0",
    "bit_equal_weights": True,
    "checked": True,
    "consumer": "transformers 5.0, torch 2.0",
    "tolerance": 1e-5,
    "max_relative_difference": {"image_features": 4.2e-7, "text_features": 3.1e-7},
    "consumer_inputs": {"tokens_equal": True, "max_pixel_difference": 0.0},
}


def make_evaluation(weights_hash: str) -> dict[str, Any]:
    """As `plip_jax.evaluate` writes it, cut to what is read; the paths are those of the machine that ran it."""
    ours = {"network": make_config().to_dict(), "preprocessing": _PIXELS.to_dict()}
    zero_shot = {
        "num_examples": 7180,
        "metrics": {"weighted_f1": 0.56512, "ece": None, "accuracy": 0.6, "mcc": 1.0000000000000002},
        "constant_class": {"label": "TUM", "metrics": {"weighted_f1": 0.0501}},
        "prompts": {"classes": {"ADI": ["adipose, tissue", "fat"], "TUM": ["adenocarcinoma"], "B,A": ["a, b"]}},
        "bootstrap": {
            "unit": "patient",
            "level": 0.95,
            "warning": None,
            "intervals": {"weighted_f1": [0.551, 0.579], "accuracy": None, "mcc": [0.9, 1.0000000000000002]},
        },
    }
    probe = {"num_examples": 20, "metrics": {"macro_f1": 0.75}}
    return {
        "format_version": 2,
        "models": {
            "other": {"weights_hash": "0" * 64, "source": "/home/alice/other"},
            "ours": {"weights_hash": weights_hash, "source": "/home/alice/runs/plip", **ours},
        },
        "config": {"note": "by alice", "tasks": {"kather": {"set": "crc_val_he_7k"}}},
        "leakage": {"absent": "no training records were given"},
        "tasks": {
            "kather": {
                "type": "zero_shot",
                "data": "/home/alice/sets/kather",
                "split": "test",
                "first_metric": "weighted_f1",
                "models": {"other": {**zero_shot, "metrics": {"weighted_f1": 0.99}}, "ours": zero_shot},
            },
            "skin": {
                "type": "linear_probe",
                "data": "/home/alice/sets/skin",
                "split": "",
                "first_metric": "macro_f1",
                "models": {"ours": probe},
            },
        },
    }


def make_card(model: LoadedModel, parity: dict[str, Any] = PARITY, **facts: Any) -> str:
    return make_model_card(model, parity, how_to_load='load("{folder}")', facts=CardFacts(**facts))


def test_scores_stand_in_the_hubs_index_and_in_the_table_with_their_intervals() -> None:
    model = make_model()
    card = make_card(model, evaluation=make_evaluation(model.weights_hash), license="mit", repo_id="lab/plip-2")
    data = huggingface_hub.ModelCard(card).data  # the hub's own reader
    assert (data.license, data.pipeline_tag, data.library_name) == (
        "mit",
        "zero-shot-image-classification",
        "transformers",
    )
    assert data.to_dict()["widget"] == [{"example_title": "Tissue", "candidate_labels": "fat, adenocarcinoma, BA"}]
    assert data.model_name == "plip-2"
    # Of kather, accuracy has no interval and ece no value: both are left out.
    found = [(r.dataset_name, r.task_type, r.dataset_split, r.metric_type, r.metric_value) for r in data.eval_results]
    assert found == [
        ("crc_val_he_7k", "zero-shot-image-classification", "test", "weighted_f1", 0.56512),
        ("crc_val_he_7k", "zero-shot-image-classification", "test", "mcc", 1.0),
        ("skin", "image-classification", None, "macro_f1", 0.75),
    ]
    assert data.eval_results[0].metric_args == {"interval": [0.551, 0.579], "level": 0.95, "unit": "patient"}
    assert data.eval_results[0].metric_name == "weighted f1 (95% interval 0.551 to 0.579)"
    assert data.eval_results[1].metric_args["interval"] == [0.9, 1.0]
    assert [result.dataset_config for result in data.eval_results] == ["kather", "kather", "skin"]
    assert data.eval_results[2].metric_args is None
    assert "| kather | zero shot | weighted f1 | 0.565 | 0.551 to 0.579 | 0.050 | patient | 7,180 | - | - |" in card
    assert "| skin | linear probe | macro f1 | 0.750 | - | - | - | 20 | - | - |" in card
    assert "were not compared for copies: no training records were given" in card
    assert "alice" not in card
    assert 'load("lab/plip-2")' in card
    assert "before they were rounded" not in card
    assert "before they were rounded to float16" in make_card(
        model, {**PARITY, "dtype": "float16"}, evaluation=make_evaluation(model.weights_hash)
    )


def test_an_interval_that_is_too_narrow_stands_beside_its_warning_alone() -> None:
    for bootstrap in (
        {"unit": "patch-level: too narrow"},
        {"warning": "5 units: too few, the intervals are too narrow"},
    ):
        evaluation = make_evaluation(make_model().weights_hash)
        evaluation["tasks"]["kather"]["models"]["ours"]["bootstrap"] |= bootstrap
        card = make_card(make_model(), evaluation=evaluation)
        assert "| 0.551 to 0.579 (too narrow) |" in card
        result = huggingface_hub.ModelCard(card).data.eval_results[0]
        assert (result.metric_name, result.metric_args) == ("weighted f1", None)
        assert ("kather: 5 units: too few" in card) == ("warning" in bootstrap)


def test_images_that_look_like_training_images_are_said_beside_every_score_on_them() -> None:
    evaluation = make_evaluation(make_model().weights_hash)
    found = {"num_test": 254, "share_flagged": 67 / 254, "flagged": {"hash": 12, "embedding": 67, "either": 67}}
    evaluation["leakage"] = {"method": "by alice", "sets": {"/home/alice/sets/kather test": found}}
    evaluation["without_flagged"] = {"kather": {"ours": {"num_examples": 187, "metrics": {"weighted_f1": 0.25}}}}
    card = make_card(make_model(), evaluation=evaluation)
    assert "- crc_val_he_7k test: 67 of 254 images (26.4%) look like a training image." in card
    assert "| 7,180 | 26.4% | 0.250 |" in card
    results = huggingface_hub.ModelCard(card).data.eval_results
    assert [(result.metric_value, result.metric_name) for result in results[:2]] == [
        (0.56512, "weighted f1 (95% interval 0.551 to 0.579), 26.4% of the images look like training images"),
        (0.25, "weighted f1 without the images that look like training images"),
    ]
    assert results[0].metric_args["share_flagged"] == 67 / 254
    assert "alice" not in card
    assert "were not compared" not in card


def test_a_model_of_the_hub_is_itself_the_base_and_of_pathology_only_where_told() -> None:
    model = dataclasses.replace(make_model(), source="openai/clip-vit-base-patch32")
    card = make_card(model)
    data = huggingface_hub.ModelCard(card).data
    assert (data.base_model, data.tags) == ("openai/clip-vit-base-patch32", ["clip", "plip_jax"])
    assert "patholog" not in card
    assert "- Starting weights: `openai/clip-vit-base-patch32`, converted, not trained further." in card
    told = make_card(model, evaluation=make_evaluation(model.weights_hash))
    assert "# pathology-clip" in told
    assert huggingface_hub.ModelCard(told).data.tags == ["pathology", "histology", "clip", "plip_jax"]


def test_what_a_format_left_out_is_said() -> None:
    card = make_card(make_model(), {**PARITY, "left_out": {"logit_bias": -10.25}})
    assert "no place for `logit_bias` (-10.25), left out" in card


def test_every_format_is_loaded_as_its_library_does_it() -> None:
    model = make_model()
    for format, repo_id, how_to_load, expected in (
        ("hf", None, 'load("{folder}")', 'load("FOLDER")'),
        ("hf", "lab/plip", 'load("{folder}")', 'load("lab/plip")'),
        ("open_clip", "lab/plip", 'load("local-dir:{folder}")', 'load("hf-hub:lab/plip")'),
        ("onnx", "lab/plip", 'load("{folder}/a.onnx")', "hf download lab/plip --local-dir FOLDER\n"),
        ("onnx", "lab/plip", 'load("{folder}/a.onnx")', 'load("FOLDER/a.onnx")'),
    ):
        facts = CardFacts(repo_id=repo_id)
        card = make_model_card(model, {**PARITY, "format": format}, how_to_load=how_to_load, facts=facts)
        assert expected in card


def test_what_nobody_said_is_unknown() -> None:
    card = make_card(make_model())
    data = huggingface_hub.ModelCard(card).data
    assert (data.license, data.base_model, data.eval_results) == ("unknown", None, None)
    for line in (
        "- Starting weights: unknown.",
        "- Training data: unknown.",
        "- Licence: unknown.",
        "**not for clinical use**",
        "No evaluation of these weights came with the export.",
        "image features 4.2e-07, text features 3.1e-07 (allowed 1e-05)",
    ):
        assert line in card
    unchecked = {**PARITY, "checked": False, "why_not": "install x", "bit_equal_weights": None}
    assert "Features not checked: install x." in make_card(make_model(), unchecked)
    assert card == make_card(make_model())


@pytest.mark.parametrize(
    ("init_from", "base_model", "said", "in_metadata"),
    [
        ("runs/patient_alice_2024", None, "a model that the exporter did not name", False),
        ("/home/alice/clip", None, "a model that the exporter did not name", False),
        ("/home/alice/clip", "openai/clip", "`openai/clip`, as the exporter says", True),
        ("", None, "none, trained from scratch", False),
    ],
)
def test_the_starting_weights_are_those_that_the_run_or_the_exporter_names(
    init_from: str, base_model: str | None, said: str, in_metadata: bool
) -> None:
    config = {
        "model.init_from": init_from,
        "data.sources.openpath.path": "/home/alice/records",
        "data.sources.openpath.split": "train",
        "data.sources.absent.path": "",
        "data.sources.ipath.path": "gs://bucket/alice",
    }
    card = make_card(make_model(), run_config=config, base_model=base_model)
    assert f"- Starting weights: {said}." in card
    assert "- Training data: the sources `ipath`, `openpath` of the run's configuration." in card
    assert (huggingface_hub.ModelCard(card).data.base_model is not None) == in_metadata
    assert "alice" not in card


def test_an_evaluation_of_other_weights_is_refused(tmp_path: Path) -> None:
    model = make_model()
    assert check_evaluation(None, model) is None
    assert check_evaluation(make_evaluation(model.weights_hash), model) == "ours"
    with pytest.raises(ModelCardError, match=r"of other weights: expected 8b3da98b.*got other 0000.*, ours 1111"):
        check_evaluation(make_evaluation("1" * 64), model)
    config = dataclasses.replace(model.config, activation="gelu")
    text = dataclasses.replace(model.config.text, eot_pooling="argmax")
    evaluation = make_evaluation(model.weights_hash)
    with pytest.raises(ModelCardError, match=r"in another network: activation differ"):
        check_evaluation(evaluation, dataclasses.replace(model, config=config))
    with pytest.raises(ModelCardError, match=r"in another network: preprocessing differ"):
        check_evaluation(evaluation, dataclasses.replace(model, preprocessing=Preprocessing(32, (0.5, 0.5, 0.5))))
    pooled = dataclasses.replace(model, config=dataclasses.replace(model.config, text=text))
    assert check_evaluation(evaluation, pooled) == "ours"  # the same model, read from another file
    with pytest.raises(ModelCardError, match="of other weights"):
        export(model, tmp_path / "out", facts=CardFacts(evaluation=make_evaluation("1" * 64)))
    assert not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_read_is_said_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelCardError, match=r"expected the evaluation.json of a report"):
        read_evaluation(tmp_path)
    (tmp_path / "evaluation.json").write_text(json.dumps({"format_version": 1}))
    arguments = ["--checkpoint", "no/model", "--evaluation", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert "expected format_version 2, got 1; evaluate the checkpoint again" in capsys.readouterr().err
    (tmp_path / "evaluation.json").write_text(json.dumps({"format_version": 2, "tasks": {}}))
    assert main(arguments) == 1
    assert "expected an object of objects under 'models'" in capsys.readouterr().err


def test_nothing_of_this_machine_is_in_an_export_of_a_run(tmp_path: Path) -> None:
    model = make_model()
    workdir = tmp_path / "secret_workdir"
    config = {
        "model.init_from": str(tmp_path / "secret_start"),
        "data.sources.openpath.path": str(tmp_path / "secret_records"),
    }
    machine = {"host": platform.node(), "user": getpass.getuser()}
    description = Description(model.config.to_dict(), model.preprocessing.to_dict(), config, [machine])
    checkpoints = Checkpoints(workdir, CheckpointConfig())
    zero = jnp.asarray(0, jnp.int32)
    state = TrainState(jnp.asarray(3, jnp.int32), model.params, {}, ema=None, skipped=zero, skipped_in_row=zero)
    checkpoints.save(state, description, model.tokenizer.files)
    checkpoints.close()
    folder = export(load_model(workdir), tmp_path / "out")
    for name in ("README.md", "parity.json"):
        text = (folder / name).read_text(encoding="utf-8")
        for secret in (str(tmp_path), "secret", platform.node(), str(Path.home())):
            assert secret not in text, f"{secret} in {name}"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "checkpoint of step 3 of a folder that is not published" in card
    assert "the sources `openpath`" in card
    assert "a model that the exporter did not name" in card


def test_a_mixture_says_what_it_is_between() -> None:
    model = make_model()
    mixed = {
        "alpha": 0.25,
        "start": {"source": "openai/clip", "weights_hash": "a" * 64},
        "end": {"source": "/home/alice/run", "weights_hash": "b" * 64},
    }
    card = make_card(dataclasses.replace(model, mixed_from=mixed))
    assert "0.25 of the way from openai/clip (`aaaaaaaaaaaaaaaa`) to a folder that is not published" in card
