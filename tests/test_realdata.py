"""The whole road on real micrographs: table -> records -> training -> evaluation -> export -> transformers."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from small_evaluation import read_evaluation, report_of

from data_prep import build, verify
from plip_jax import PLIP, evaluate, export, train
from plip_jax.data.image import decode_image, normalize_pixels, preprocess_image
from plip_jax.evaluation.prompts_file import load_prompts

ROOT = Path(__file__).parents[1]
STEPS = 60  # about 40 s on two cores: enough to be far above chance

pytestmark = [pytest.mark.realdata, pytest.mark.slow]


@pytest.fixture(scope="module")
def road(realdata, tmp_path_factory) -> Path:
    """Run the commands of the README on the real sets; the folder that holds what they made."""
    folder = tmp_path_factory.mktemp("real")
    atlas, figures = realdata / "pathology_atlas", realdata / "openstax_histology"
    table = ["--source", "csv", "--table"]
    assert build.main([*table, f"{atlas}/captions.csv", "--images", str(atlas), "--out", f"{folder}/atlas",
                       "--label-column", "organ", "--holdout", "test=0.15"]) == 0  # fmt: skip
    assert build.main([*table, f"{figures}/captions.csv", "--images", str(figures), "--out", f"{folder}/figures",
                       *(f"--caption-column={name}" for name in ("title", "caption", "alt"))]) == 0  # fmt: skip
    assert [verify.main([f"{folder}/{name}"]) for name in ("atlas", "figures")] == [0, 0]
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        assert train.main(["--config=configs/demo.py", f"--workdir={folder}/run",
                           f"--config.data.sources.tissue.path={folder}/atlas",
                           f"--config.data.sources.more.path={folder}/figures",
                           "--config.eval.tasks.tissue.data=", f"--config.eval.tasks.captions.data={folder}/atlas",
                           f"--config.train.steps={STEPS}", "--config.train.eval_interval_steps=0"]) == 0  # fmt: skip
        assert evaluate.main([f"--checkpoint={folder}/run", "--config=configs/eval_demo.py", f"--out={folder}/eval",
                              "--tasks=captions,tissue",  # the colon set has no split to train a probe on
                              f"--config.tasks.captions.data={folder}/atlas", "--config.tasks.tissue.split=test",
                              f"--config.tasks.tissue.data={realdata}/colon_regions3",
                              "--config.tasks.tissue.prompts=kather",
                              "--config.tasks.tissue.missing_classes=allow"]) == 0  # fmt: skip
        assert export.main([f"--checkpoint={folder}/run", "--format=hf", f"--out={folder}/hf"]) == 0
    finally:
        os.chdir(before)
    return folder


def test_every_row_of_the_tables_is_a_record(road):
    counts = {name: json.loads((road / name / "build_report.json").read_text()) for name in ("atlas", "figures")}
    assert {name: sum(report["kept"].values()) for name, report in counts.items()} == {"atlas": 1360, "figures": 72}


def test_retrieval_of_held_out_tiles_is_far_above_chance(road):
    found = report_of(read_evaluation(road / "eval"), "captions", "run")
    assert found["metrics"]["text_to_image_fold@1"] > 4
    assert found["metrics"]["image_to_text_fold@1"] > 4


def test_zero_shot_counts_every_tile_of_the_colon_set_once(road):
    found = report_of(read_evaluation(road / "eval"), "tissue", "run")
    assert found["num_examples"] == int(np.sum(found["confusion"]["counts"])) == 254
    assert found["constant_class"]["label"] == "BACK"
    assert found["missing_classes"] == ["DEB", "LYM", "MUC", "MUS", "STR", "TUM"]


def test_the_export_predicts_the_same_in_transformers(road, realdata):
    torch = pytest.importorskip("torch", reason="needs PyTorch (the test extra installs it)")
    from transformers import CLIPModel, CLIPTokenizerFast

    prompts = load_prompts("kather")
    labels = [names[0] for names in prompts.class_names]
    texts = [prompts.templates[0].replace("{}", label) for label in labels]
    images = sorted((realdata / "colon_regions3" / "test").glob("*/*.jpg"))
    model = CLIPModel.from_pretrained(road / "hf").eval()
    tokens = CLIPTokenizerFast.from_pretrained(road / "hf")(texts, padding=True, return_tensors="pt")
    # The test of transformers' own pixels is tests/data/test_image.py; here the weights and the ids are looked at.
    ours = PLIP.from_pretrained(road / "hf")
    preprocessing = ours.encoder.preprocessing
    decoded = [decode_image(path.read_bytes(), name=path.name) for path in images]
    pixels = np.stack([normalize_pixels(preprocess_image(image, preprocessing), preprocessing) for image in decoded])
    with torch.no_grad():
        theirs = (
            model(**tokens, pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
            .logits_per_image.argmax(dim=1)
            .tolist()
        )
    predictions = ours.zero_shot(images, labels, template=prompts.templates[0])
    assert [labels.index(prediction.label) for prediction in predictions] == theirs
