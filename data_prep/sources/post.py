"""The common record of every raw source: one image and the texts said about it, before anything is read or judged."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Post:
    """One image with its texts, as a source tells it.

    Attributes:
        id: Unique in the source.
        image: Path of the image file, relative to the images folder.
        captions: Texts about the image; may be empty or blank.
        group_id: What must stay on one side of a split; empty when the source knows none.
        source: Name of the source.
        label: Class name; empty when the source knows none.
        where: Place in the source, for the report (a line of a table).
    """

    id: str
    image: str
    captions: tuple[str, ...]
    group_id: str = ""
    source: str = ""
    label: str = ""
    where: str = ""


@dataclasses.dataclass(frozen=True)
class Drop:
    """Something that is left out of the dataset, and why.

    Attributes:
        reason: One of a few words that the report counts by, e.g. "missing_file".
        where: Place in the source.
        id: Its id, when that much was readable.
        detail: What was found, for a person.
    """

    reason: str
    where: str
    id: str = ""
    detail: str = ""
