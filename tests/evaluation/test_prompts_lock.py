"""The lock of prompts: what it holds, and what it refuses once scores were seen."""

import json

import pytest

from plip_jax.evaluation.prompts_file import PromptError, load_prompts
from plip_jax.evaluation.prompts_lock import check_lock, freeze, write_lock

GOOD = {"name": "n", "source": "s", "classes": {"b": ["x"], "a": ["z"]}, "templates": ["A {}."]}


def test_hashes_are_of_files_sets_and_templates(tmp_path):
    one = {"classnames": {"b": ["x"], "a": ["z"]}, "templates": ["A CLASSNAME."]}
    path = tmp_path / "two.json"
    path.write_text(json.dumps({"0": one, "1": one | {"templates": ["CLASSNAME"]}}))
    found = freeze(["kather", str(path), "An image of {}."])
    assert list(found) == ["kather", f"{path}#0", f"{path}#1", "An image of {}."]
    assert found["kather"] == load_prompts("kather").hash
    assert found[f"{path}#1"] == load_prompts(f"{path}#1").hash
    assert len(set(found.values())) == 4
    with pytest.raises(PromptError, match="exactly one"):
        freeze(["{} {}"])


def test_prompts_that_change_after_scores_were_seen_are_refused(tmp_path):
    prompts, lock = tmp_path / "p.json", tmp_path / "out" / "prompts.lock.json"
    prompts.write_text(json.dumps(GOOD))
    hashes = {"set": freeze([str(prompts), "kather"])}
    check_lock(lock, hashes)  # nothing was seen
    write_lock(lock, hashes)
    written = lock.read_bytes()
    check_lock(lock, hashes)
    write_lock(lock, hashes)
    assert lock.read_bytes() == written

    prompts.write_text(json.dumps(GOOD | {"source": "another note"}))
    check_lock(lock, {"set": freeze([str(prompts), "kather"])})  # no score depends on it
    prompts.write_text(json.dumps(GOOD | {"templates": ["The {}."]}))
    with pytest.raises(PromptError, match=r"prompts\.lock\.json.*task set: '.*p\.json' is changed.*put the old"):
        check_lock(lock, {"set": freeze([str(prompts), "kather"])})
    with pytest.raises(PromptError, match="'pannuke' is new"):
        check_lock(lock, {"set": hashes["set"] | freeze(["pannuke"])})
    with pytest.raises(PromptError, match="'kather' is left out"):
        write_lock(lock, {"set": freeze([str(prompts)])})
    assert lock.read_bytes() == written


def test_a_new_task_is_added_to_the_lock(tmp_path):
    lock = tmp_path / "prompts.lock.json"
    write_lock(lock, {"one": freeze(["kather"])})
    write_lock(lock, {"two": freeze(["pannuke"])})
    assert json.loads(lock.read_text()) == {"prompts": {"one": freeze(["kather"]), "two": freeze(["pannuke"])}}
    with pytest.raises(PromptError, match="task one"):
        check_lock(lock, {"one": freeze(["pannuke"])})


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"prompts": [1]}', '{"prompts": {"a": 3}}'])
def test_a_lock_that_is_none_is_not_taken_for_an_empty_one(tmp_path, content):
    lock = tmp_path / "prompts.lock.json"
    lock.write_text(content)
    with pytest.raises(PromptError, match="expected a lock of prompts"):
        check_lock(lock, {})
