"""The tasks on embeddings that are known: what is counted, checked first, and hashed."""

import dataclasses
import json

import numpy as np
import pytest

from plip_jax.evaluation.bootstrap import BootstrapConfig, item_weights
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.pairing import pair_by_caption, pair_by_id
from plip_jax.evaluation.retrieval_task import RetrievalConfig, run_retrieval
from plip_jax.evaluation.task import Inputs, Model
from plip_jax.evaluation.tasks import make_task
from plip_jax.evaluation.units import choose_units
from plip_jax.evaluation.zero_shot_task import ZeroShotConfig, run_zero_shot


@dataclasses.dataclass(frozen=True)
class Record:
    id: str
    label: str = ""
    captions: tuple[str, ...] = ()
    image: bytes = b""


PROMPTS = {"name": "p", "source": "s", "classes": {"b": ["bee"], "a": ["ay"], "c": ["sea"]}, "templates": ["{}"]}
DIRECTIONS = {"bee": [1, 0, 0], "ay": [0, 1, 0], "sea": [0, 0, 1], "x": [1, 0, 0], "y": [0, 1, 0], "z": [0, 0, 1]}


def encode_text(texts) -> np.ndarray:
    return np.array([DIRECTIONS[text] for text in texts], np.float32)


def encode_images(images, *, names) -> np.ndarray:
    """An image's bytes are the text it looks like."""
    return np.array([DIRECTIONS[image.decode()] for image in images], np.float32)


def never(*_):
    raise AssertionError("embedded something before the check")


def inputs(examples: Examples) -> Inputs:
    return Inputs({"test": examples}, Model("m", lambda given: given.embed(encode_images), encode_text))


def unembedded(examples: Examples) -> Inputs:
    return Inputs({"test": examples}, Model("m", never, never))


@pytest.fixture
def prompts_path(tmp_path) -> str:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(PROMPTS))
    return str(path)


def test_zero_shot_counts_every_example_once_in_the_prompt_files_order(prompts_path):
    looks = [("a", "ay"), ("a", "ay"), ("a", "bee"), ("b", "bee"), ("c", "sea"), ("c", "ay")]
    examples = Examples.from_records([Record(f"{i}", label, (), s.encode()) for i, (label, s) in enumerate(looks)])
    result = run_zero_shot(ZeroShotConfig(prompts_path), inputs(examples))
    assert result.report["confusion"] == {
        "labels": ["b", "a", "c"],
        "rows": "actual",
        "counts": [[1, 0, 0], [1, 2, 0], [0, 1, 1]],
    }
    assert result.report["num_examples"] == 6
    assert result.report["metrics"]["accuracy"] == 4 / 6
    assert result.report["constant_class"]["label"] == "a"
    assert result.report["constant_class"]["metrics"]["accuracy"] == 3 / 6
    assert result.report["per_class"]["b"] == {
        "examples": 1, "predicted": 2, "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3, abs=1e-15),
    }  # fmt: skip
    assert [row["id"] for row in result.rows] == list("012345")
    assert [row["predicted"] for row in result.rows] == ["a", "a", "b", "b", "c", "a"]
    assert result.rows[0] == {"id": "0", "label": "a", "predicted": "a", "score_b": 0, "score_a": 1, "score_c": 0}
    assert json.loads(json.dumps(result.report, allow_nan=False)) == result.report


def test_labels_are_checked_before_anything_is_embedded(prompts_path):
    examples = Examples.from_records([Record("0", "b"), Record("1", "d")])
    with pytest.raises(EvaluationError, match="not classes of the prompts: d"):
        run_zero_shot(ZeroShotConfig(prompts_path), unembedded(examples))
    examples = Examples.from_records([Record("0", "b", image=b"sea")])
    with pytest.raises(EvaluationError, match="no example in the data: a, c"):
        run_zero_shot(ZeroShotConfig(prompts_path), unembedded(examples))
    result = run_zero_shot(ZeroShotConfig(prompts_path, missing_classes="allow"), inputs(examples))
    assert result.report["missing_classes"] == ["a", "c"]
    assert result.rows[0]["predicted"] == "c"  # a class without examples can still be answered


CAPTIONED = Examples.from_records(
    [Record("i0", "", ("x",), b"x"), Record("i1", "", ("y", "z"), b"y"), Record("i2", "", ("x", "y"), b"x")]
)


def as_lists(targets) -> list[list[int]]:
    return [rows.tolist() for rows in targets]


def test_by_id_a_caption_belongs_to_its_own_image():
    pairing = pair_by_id(CAPTIONED)
    assert pairing.text_ids == ("i0#0", "i1#0", "i1#1", "i2#0", "i2#1")
    assert pairing.texts == ("x", "y", "z", "x", "y")
    assert as_lists(pairing.images_of_text) == [[0], [1], [1], [2], [2]]
    assert as_lists(pairing.texts_of_image) == [[0], [1, 2], [3, 4]]


def test_by_caption_every_image_that_carries_it_is_right():
    pairing = pair_by_caption(CAPTIONED)
    assert pairing.text_ids == ("i0#0", "i1#0", "i1#1")
    assert pairing.texts == ("x", "y", "z")
    assert as_lists(pairing.images_of_text) == [[0, 2], [1, 2], [1]]
    assert as_lists(pairing.texts_of_image) == [[0], [1, 2], [0, 1]]


def test_retrieval_by_id_lets_an_equal_image_stand_in_the_way():
    result = run_retrieval(RetrievalConfig("id", (1, 2)), inputs(CAPTIONED))
    found = result.report["directions"]["text_to_image"]
    # i0 and i2 look the same: each ties with the other, and a tie counts against the model.
    assert [row["rank"] for row in result.rows[:5]] == [2, 1, 3, 2, 3]
    assert found["num_queries"] == 5
    assert found["num_candidates"] == 3
    assert found["num_distinct_candidates"] == 2
    assert found["recall"]["1"] == {"k": 1, "hits": 1, "recall": 0.2, "random": 1 / 3, "fold": 0.6}
    assert found["median_rank"] == 2
    assert result.report["metrics"]["text_to_image_recall@2"] == 0.6
    other = result.report["directions"]["image_to_text"]
    assert (other["num_queries"], other["num_candidates"], other["num_distinct_candidates"]) == (3, 5, 3)
    assert [(row["query"], row["rank"], row["num_right"]) for row in result.rows[5:]] == [
        ("i0", 2, 1), ("i1", 2, 2), ("i2", 2, 2),
    ]  # fmt: skip
    assert json.loads(json.dumps(result.report, allow_nan=False)) == result.report


def test_retrieval_by_caption_counts_either_image_as_right():
    result = run_retrieval(RetrievalConfig("caption", (1,)), inputs(CAPTIONED))
    assert [row["rank"] for row in result.rows] == [1, 1, 3, 1, 1, 1]
    found = result.report["directions"]["text_to_image"]["recall"]["1"]
    assert found["random"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3, abs=1e-15)  # one rounding
    assert [row.query for row in result.gallery] == ["x", "y", "z"]
    assert result.gallery[0].right == ("i0", "i2")
    assert result.gallery[2].shown[0] == "i0"
    assert (result.gallery[2].best_right, result.gallery[2].rank) == ("i1", 3)


def test_retrieval_reports_duplicates_and_curves():
    records = [Record("i0", "", ("x", " "), b"x"), Record("i1", "", ("y", "y"), b"y"), Record("i2", "", ("x",), b"x")]
    result = run_retrieval(RetrievalConfig("id", (1,)), inputs(Examples.from_records(records)))
    assert result.report["duplicates"] == {
        "images_with_the_embedding_of_an_earlier_one": 1,
        "texts_equal_to_an_earlier_one": 1,
        "captions_left_out": {"blank": 1, "repeated_within_image": 1},
    }
    curve = result.report["directions"]["text_to_image"]["curve"]
    assert curve == {"k": [1, 2, 3], "recall": [1 / 3, 1, 1], "random": [1 / 3, 2 / 3, 1]}


def test_retrieval_by_figure_takes_any_image_of_the_figure():
    examples = dataclasses.replace(CAPTIONED, group_ids=("f", "", "f"))
    result = run_retrieval(RetrievalConfig("figure", (1,)), inputs(examples))
    # Texts x and y of the figure (i0 and i2 look like x), y and z of i1.
    assert [(row["query"], row["rank"], row["num_right"]) for row in result.rows[:4]] == [
        ("i0#0", 1, 2), ("i1#0", 1, 1), ("i1#1", 3, 1), ("i2#1", 2, 2),
    ]  # fmt: skip


def test_retrieval_resamples_captions_with_the_unit_of_their_image():
    records = [Record(f"i{n}", "", ("x", "y"), b"y" if n % 3 else b"x") for n in range(8)]
    examples = dataclasses.replace(Examples.from_records(records), group_ids=tuple("aaabcccd"))
    given = dataclasses.replace(inputs(examples), bootstrap=BootstrapConfig(60))
    result = run_retrieval(RetrievalConfig("caption", (1,)), given)
    block = result.report["bootstrap"]
    assert (block["unit"], block["num_units"]) == ("group-level", 4)
    assert "candidates are fixed" in block["resampled"]
    assert set(block["intervals"]) == set(result.report["metrics"])
    # Every image carries both captions, so each query is a hit and no resample differs.
    assert block["intervals"]["image_to_text_recall@1"] == [1, 1]
    by_id = run_retrieval(RetrievalConfig("id", (3,)), given)
    # Three images look like x and tie for each text x of their own; no other text finds its image among three.
    hits_of_image = np.array([1, 0, 0, 1, 0, 0, 1, 0])
    weights = next(item_weights(choose_units(examples), BootstrapConfig(60)))
    expected = (weights @ hits_of_image) / (2 * weights.sum(axis=1))
    np.testing.assert_array_equal(by_id.replicates["text_to_image_recall@3"], expected)


def test_retrieval_without_captions_is_refused_before_anything_is_embedded():
    examples = Examples.from_records([Record("0", "b", ("x",)), Record("1", "b")])
    with pytest.raises(EvaluationError, match="1 of 2 examples have none, first '1'"):
        run_retrieval(RetrievalConfig(), unembedded(examples))


def test_the_split_hash_is_of_ids_order_labels_and_captions():
    base = [Record("0", "a", ("x",)), Record("1", "b", ("y", "z"))]
    variants = [
        base,
        base[::-1],
        [Record("2", "a", ("x",)), base[1]],
        [Record("0", "b", ("x",)), base[1]],
        [base[0], Record("1", "b", ("yz",))],
    ]
    assert len({Examples.from_records(records).hash for records in variants}) == len(variants)
    assert Examples.from_records(list(base)).hash == Examples.from_records(base).hash


def test_embeddings_must_be_of_these_examples():
    records = [Record("0", "a", (), b"x"), Record("1", "a", (), b"y")]
    examples = Examples.from_records(records)
    with pytest.raises(EvaluationError, match="expected 2 rows"):
        examples.embed(lambda images, names: encode_images(images, names=names)[:1])
    records.reverse()
    with pytest.raises(EvaluationError, match="expected '0', got '1'"):
        examples.embed(encode_images)
    with pytest.raises(EvaluationError, match="at least one example"):
        Examples.from_records([])
    with pytest.raises(EvaluationError, match="'0' at least twice"):
        Examples.from_records([records[1], records[1]]).embed(encode_images)


@pytest.mark.parametrize(
    ("type_name", "settings", "message"),
    [
        ("zeroshot", {}, "known: zero_shot, linear_probe, published_probe"),
        ("zero_shot", {"promts": "kather"}, "did you mean prompts"),
        ("zero_shot", {"prompts": "kather", "missing_classes": "ignore"}, "expected error or allow"),
        ("retrieval", {"relevance": "row"}, "expected one of id, caption"),
        ("retrieval", {"recall_at": (0,)}, "cut-offs of 1 or more"),
    ],
)
def test_wrong_settings_are_named(type_name, settings, message):
    with pytest.raises(EvaluationError, match=message):
        make_task(type_name, settings)
