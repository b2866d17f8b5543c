"""Put local image files into the store, with the reasons that a download would have."""

import dataclasses
import os
from collections.abc import Iterable, Iterator

from data_prep.fetching.fetch import FetchSettings, image_format
from data_prep.fetching.store import Store


@dataclasses.dataclass(frozen=True)
class Adopted:
    """What came of a local file: its digest, or the reason why it has none."""

    path: str
    digest: str = ""
    reason: str = ""


def adopt(paths: Iterable[str | os.PathLike[str]], store: Store, settings: FetchSettings) -> Iterator[Adopted]:
    """Put local files into the store.

    Yields:
        For each path its digest, or "missing_file" (also where it is no plain file, or cannot be read), "too_large" or
        "not_an_image".
    """
    for path in paths:
        yield _adopt(os.fspath(path), store, settings)


def _adopt(path: str, store: Store, settings: FetchSettings) -> Adopted:
    try:
        if not os.path.isfile(path):
            return Adopted(path, reason="missing_file")
        if os.path.getsize(path) > settings.max_bytes:
            return Adopted(path, reason="too_large")
        with open(path, "rb") as file:
            if not image_format(file.read(32)):
                return Adopted(path, reason="not_an_image")
    except (OSError, ValueError):  # ValueError: a path with a zero byte
        return Adopted(path, reason="missing_file")
    return Adopted(path, store.put_file(path))
