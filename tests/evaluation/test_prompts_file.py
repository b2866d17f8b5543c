"""Prompt files: the published ones, their order and hash, and what a malformed one is told."""

import json

import pytest

from plip_jax.evaluation.prompts_file import (
    PromptError,
    check_template,
    is_template,
    known_prompts,
    load_prompt_sets,
    load_prompts,
)

GOOD = {"name": "n", "source": "s", "classes": {"b": ["x", "y"], "a": ["z"]}, "templates": ["A {}.", "The {}."]}


def write(tmp_path, content) -> str:
    path = tmp_path / "prompts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_the_published_prompts_are_shipped():
    kather = load_prompts("kather")
    assert kather.labels == ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
    assert kather.texts("STR") == ["An H&E image patch of cancer-associated stroma."]
    assert load_prompts("pannuke").texts("malignant") == ["An H&E image of malignant tissue."]
    assert load_prompts("digestpath").texts("benign") == ["An H&E image patch of benign tissue."]
    assert load_prompts("wsss4luad").texts("tumor") == ["An H&E image patch of tumor tissue."]


@pytest.mark.parametrize("name", known_prompts())
def test_every_shipped_file_is_valid_and_says_its_source(name):
    prompts = load_prompts(name)
    assert prompts.name == name
    assert prompts.source
    assert json.loads(json.dumps(prompts.to_dict())) == prompts.to_dict()


def test_class_order_is_that_of_the_file(tmp_path):
    prompts = load_prompts(write(tmp_path, GOOD))
    assert prompts.labels == ("b", "a")
    assert prompts.texts("b") == ["A x.", "The x.", "A y.", "The y."]


def test_the_hash_changes_with_what_scores_depend_on_and_with_nothing_else(tmp_path):
    def hash_of(**changes):
        return load_prompts(write(tmp_path, GOOD | changes)).hash

    assert hash_of(name="other", source="other") == hash_of()
    assert len({hash_of(), hash_of(templates=["The {}.", "A {}."]), hash_of(classes={"a": ["z"], "b": ["x", "y"]}),
                hash_of(classes={"b": ["x"], "a": ["z"]})}) == 4  # fmt: skip
    # Golden: reports of old runs are compared by it, so it changes only with the kather prompts themselves.
    assert load_prompts("kather").hash == "e7c322520e8c183d06f03f19d6a641739ee9a73c1eeec3333277c3899683c1ef"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "prompts.json"),
        ('{"name": "a", "name": "b"}', "'name' is there twice"),
        ([], "expected an object with exactly"),
        ({"name": "n"}, "expected an object with exactly"),
        (GOOD | {"extra": 1}, "extra"),
        (GOOD | {"name": 3}, "name: expected a string"),
        (GOOD | {"classes": {"a": ["x"]}}, "two or more labels"),
        (GOOD | {"classes": {"a": "x", "b": []}}, r"classes\['a'\].*classes\['b'\]"),
        (GOOD | {"templates": []}, "templates"),
        (GOOD | {"templates": ["no place", "{} and {}"]}, "'no place'.*'{} and {}'"),
    ],
)
def test_a_malformed_file_is_told_everything_that_is_wrong(tmp_path, content, message):
    with pytest.raises(PromptError, match=message):
        load_prompts(write(tmp_path, content))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(PromptError, match=r"did you mean 'kather'.*pannuke"):
        load_prompts("kathr")


CONCH = {
    "0": {
        "classnames": {"LUSC": ["squamous cell carcinoma", "LUSC"], "LUAD": ["adenocarcinoma"]},
        "templates": ["CLASSNAME.", "an H&E image of CLASSNAME."],
    }
}


def test_conchs_layout_is_read_as_it_is(tmp_path):
    prompts = load_prompts(write(tmp_path, CONCH))
    assert (prompts.name, prompts.labels) == ("prompts", ("LUSC", "LUAD"))
    assert "CONCH" in prompts.source
    assert prompts.texts("LUSC") == [
        "squamous cell carcinoma.", "an H&E image of squamous cell carcinoma.", "LUSC.", "an H&E image of LUSC.",
    ]  # fmt: skip


def test_a_numbered_set_of_several_is_named(tmp_path):
    path = write(tmp_path, CONCH | {"1": CONCH["0"] | {"templates": ["CLASSNAME"]}})
    assert [prompts.name for prompts in load_prompt_sets(path)] == ["prompts#0", "prompts#1"]
    assert load_prompts(f"{path}#1").texts("LUAD") == ["adenocarcinoma"]
    with pytest.raises(PromptError, match=r"2 sets of prompts; name one: .*prompts.json#0, .*prompts.json#1"):
        load_prompts(path)
    with pytest.raises(PromptError, match="no set '2'; there is 0, 1"):
        load_prompts(f"{path}#2")
    assert load_prompt_sets("kather") == (load_prompts("kather"),)


def test_a_malformed_numbered_set_is_named(tmp_path):
    path = write(tmp_path, CONCH | {"7": {"classnames": {"a": ["x"]}, "templates": ["{} CLASSNAME"]}})
    with pytest.raises(PromptError, match="set 7: classes"):
        load_prompts(path)


def test_a_template_is_told_from_a_file():
    assert [is_template(text) for text in ("An image of {}.", "CLASSNAME.", "kather", "a/b.json#0")] == [
        True, True, False, False,
    ]  # fmt: skip
    with pytest.raises(PromptError, match=r"exactly one .* or CLASSNAME"):
        check_template("{} and CLASSNAME")
