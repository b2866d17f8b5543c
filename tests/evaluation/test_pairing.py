"""Which texts and images are right for each other, with captions that are blank, repeated or shared."""

import dataclasses

from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.pairing import pair_by_caption, pair_by_figure, pair_by_id, usable_captions


@dataclasses.dataclass(frozen=True)
class Record:
    id: str
    captions: tuple[str, ...]
    group_id: str = ""
    label: str = ""
    image: bytes = b""


# Two panels of a figure share a caption; another figure says the same; two images have no figure.
EXAMPLES = Examples.from_records(
    [
        Record("a", ("whole", "left"), "f1"),
        Record("b", ("whole", " ", "right", "whole"), "f1"),
        Record("c", ("whole",), "f2"),
        Record("d", ("alone",)),
        Record("e", ("alone", ""), ""),
    ]
)


def as_lists(rows) -> list[list[int]]:
    return [one.tolist() for one in rows]


def test_blank_and_repeated_captions_of_an_image_do_not_count():
    captions, left_out = usable_captions(EXAMPLES)
    assert [caption.id for caption in captions] == ["a#0", "a#1", "b#0", "b#2", "c#0", "d#0", "e#0"]
    assert left_out == {"blank": 2, "repeated_within_image": 1}


def test_by_figure_all_its_images_are_right_and_its_texts_are_there_once():
    pairing = pair_by_figure(EXAMPLES)
    assert pairing.text_ids == ("a#0", "a#1", "b#2", "c#0", "d#0", "e#0")
    assert as_lists(pairing.images_of_text) == [[0, 1], [0, 1], [0, 1], [2], [3], [4]]
    assert as_lists(pairing.texts_of_image) == [[0, 1, 2], [0, 1, 2], [3], [4], [5]]


def test_by_id_and_by_caption_pass_over_the_same_captions():
    by_id = pair_by_id(EXAMPLES)
    assert by_id.texts == ("whole", "left", "whole", "right", "whole", "alone", "alone")
    assert as_lists(by_id.texts_of_image) == [[0, 1], [2, 3], [4], [5], [6]]
    by_caption = pair_by_caption(EXAMPLES)
    assert by_caption.texts == ("whole", "left", "right", "alone")
    assert as_lists(by_caption.images_of_text) == [[0, 1, 2], [0], [1], [3, 4]]
    assert as_lists(by_caption.texts_of_image) == [[0, 1], [0, 2], [0], [3], [3]]


def test_a_figure_named_like_an_image_is_another_thing():
    examples = Examples.from_records([Record("x", ("one",)), Record("y", ("two",), "x")])
    assert as_lists(pair_by_figure(examples).images_of_text) == [[0], [1]]


def test_without_groups_each_image_is_a_figure():
    examples = dataclasses.replace(EXAMPLES, group_ids=())
    assert as_lists(pair_by_figure(examples).texts_of_image) == as_lists(pair_by_id(examples).texts_of_image)
