"""Which prompts are in play, and what is said of all of them."""

import json

import pytest

from plip_jax.evaluation import prompt_selection
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.prompts_file import PromptError, Prompts

OWN = Prompts("own", "", ("a", "b"), (("ay",), ("bee", "be")), ("A {}.", "The {}."))


def conch(tmp_path, **classnames) -> str:
    path = tmp_path / "richer.json"
    sets = {"classnames": classnames or {"b": ["B"], "a": ["A"]}, "templates": ["CLASSNAME."]}
    path.write_text(json.dumps({"0": sets, "1": sets | {"templates": ["CLASSNAME.", "is CLASSNAME"]}}))
    return str(path)


def test_every_file_and_every_template_is_a_variant_the_published_file_first(tmp_path):
    found = prompt_selection.make_variants(OWN, (conch(tmp_path), "Some {}."))
    assert [(variant.name, variant.kind) for variant in found] == [
        ("own", "file"),
        ("richer#0", "file"),
        ("richer#1", "file"),
        ("own: A {}.", "template"),
        ("own: The {}.", "template"),
        # One template alone of the second set is the whole first set, and is there already.
        ("richer#1: is CLASSNAME", "template"),
        ("Some {}.", "template"),
    ]
    assert found[1].prompts.labels == ("a", "b")  # its own order is another
    assert found[1].prompts.texts("b") == ["B."]
    assert found[4].prompts.texts("b") == ["The bee.", "The be."]
    assert found[6].prompts.texts("a") == ["Some ay."]
    assert len({variant.to_dict()["hash"] for variant in found}) == 7


def test_two_files_of_one_name_are_told_apart(tmp_path):
    other = tmp_path / "own.json"
    other.write_text(
        json.dumps({"name": "own", "source": "", "classes": {"a": ["x"], "b": ["y"]}, "templates": ["{}"]})
    )
    names = [variant.name for variant in prompt_selection.make_variants(OWN, (str(other),))]
    assert len(set(names)) == len(names) == 4
    assert names[0].startswith("own (")


def test_candidates_of_other_classes_or_without_a_place_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match=r"classes of own \(a, b\), got richer#0 with a, c"):
        prompt_selection.make_variants(OWN, (conch(tmp_path, a=["A"], c=["C"]),))
    with pytest.raises(PromptError, match="exactly one"):
        prompt_selection.make_variants(OWN, ("{} {}",))
    with pytest.raises(PromptError, match="no prompt file"):
        prompt_selection.make_variants(OWN, ("An image.",))


def test_the_first_of_equal_scores_is_chosen():
    assert prompt_selection.choose([0.2, 0.5, 0.5]) == 1


def test_all_variants_give_a_median_with_its_extremes():
    variants = prompt_selection.make_variants(OWN, ("Some {}.",))
    metrics = [{"f1": 0.4, "auroc": 0.5}, {"f1": 0.9}, {"f1": 0.1, "auroc": 0.7}, {"f1": 0.5, "auroc": 0.6}]
    found = prompt_selection.sensitivity(variants, metrics, {"f1": [0.3, 0.6]})
    assert found["num_variants"] == 4
    assert found["metrics"] == {
        "f1": {"median": 0.45, "minimum": 0.1, "maximum": 0.9, "median_interval": [0.3, 0.6]}  # no auroc: one has none
    }
    assert [one["name"] for one in found["variants"]] == ["own", "own: A {}.", "own: The {}.", "Some {}."]
    assert found["variants"][1]["metrics"] == {"f1": 0.9}
