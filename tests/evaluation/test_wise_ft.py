"""The two metrics that a WiSE-FT sweep weighs: the defaults, the flags, and what cannot be weighed."""

import pytest

from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.suite import PlannedTask, plan_tasks
from plip_jax.evaluation.wise_ft import Axis, choose_axes, sweep_rows

CUT_OFFS = {"recall_at": [1, 5, 20]}


def planned(*names: str) -> list[PlannedTask]:
    blocks = {
        "kather": {"type": "zero_shot", "data": "k", "split": "", "prompts": "kather"},
        "pannuke": {"type": "zero_shot", "data": "p", "split": "", "prompts": "pannuke"},
        "heldout": {"type": "retrieval", "data": "h", "split": ""},
        "others": {"type": "retrieval", "data": "o", "split": "", **CUT_OFFS},
    }
    return plan_tasks({name: blocks[name] for name in names})[0]


def test_the_defaults_are_the_first_retrieval_and_the_first_other_task():
    retrieval, f1 = Axis("heldout", "text_to_image_recall@10"), Axis("kather", "weighted_f1")
    assert choose_axes(planned("kather", "pannuke", "heldout")) == (retrieval, f1)
    assert choose_axes(planned("others", "heldout", "kather")) == (Axis("others", "text_to_image_recall@20"), f1)
    assert choose_axes(planned("heldout", "others"))[1] == Axis("others", "text_to_image_recall@20")
    assert choose_axes(planned("pannuke", "kather")) == (Axis("pannuke", "weighted_f1"), f1)


def test_flags_name_a_task_or_one_of_its_metrics():
    tasks = planned("kather", "heldout", "others")
    assert choose_axes(tasks, "kather", "others/image_to_text_recall@5") == (
        Axis("kather", "weighted_f1"),
        Axis("others", "image_to_text_recall@5"),
    )
    assert choose_axes(tasks, "kather")[1].task == "heldout"
    one = choose_axes(planned("kather"), "kather/mcc", "kather/accuracy")
    assert one == (Axis("kather", "mcc"), Axis("kather", "accuracy"))


@pytest.mark.parametrize(
    ("names", "in_domain", "general", "message"),
    [
        (("kather",), "", "", "kather is the only one with data.*--general=TASK/METRIC"),
        (
            ("kather", "heldout"),
            "heldot",
            "",
            r"--in-domain: no task 'heldot'.*did you mean 'heldout'.*kather, heldout",
        ),
        (("kather", "heldout"), "", "kather/f1", r"--general: task kather has no 'f1'.*weighted_f1, accuracy"),
        (("kather", "heldout"), "kather", "kather/weighted_f1", "two metrics, got kather/weighted_f1 twice"),
    ],
)
def test_what_cannot_be_weighed_is_refused(names, in_domain, general, message):
    with pytest.raises(EvaluationError, match=message):
        choose_axes(planned(*names), in_domain, general)


def test_a_row_holds_every_metric_of_an_alpha():
    point = {"alpha": 0.5, "weights_hash": "h", "metrics": {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0}}}
    assert sweep_rows({"points": [point]}) == [{"alpha": 0.5, "weights_hash": "h", "a/x": 1.0, "a/y": 2.0, "b/x": 3.0}]
