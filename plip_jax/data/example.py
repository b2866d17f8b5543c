"""`Example`: one image of an evaluation set, with all that is known of it. Where it comes from is `examples`."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Example:
    """One image.

    Attributes:
        id: unique in its set.
        image: the file's bytes.
        captions: texts, any of which describes the image.
        label: class name; empty when there is none.
        label_set: every class that a multi-label set sees in it.
        patient_id: whose it is; empty where it is not known, as for the next two.
        slide_id: the slide it was cut from.
        group_id: any other thing that makes images alike: a post, a figure, a cluster of duplicates.
        attributes: other texts by name, such as the organ or the magnification.
    """

    id: str
    image: bytes
    captions: tuple[str, ...] = ()
    label: str = ""
    label_set: tuple[str, ...] = ()
    patient_id: str = ""
    slide_id: str = ""
    group_id: str = ""
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
