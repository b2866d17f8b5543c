"""The examples of one split as evaluation sees them: ids, labels and captions known, images read when needed."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from plip_jax.evaluation.embeddings import Embeddings, EvaluationError


class EncodeImages(Protocol):
    """Image files to features [N, D], in order; ``names`` is what to call each in an error."""

    def __call__(self, images: Iterable[bytes], /, *, names: Sequence[str]) -> np.ndarray: ...  # noqa: D102 # the class says it


class EncodeImagesOfModels(Protocol):
    """Image files to features [M, N, D] of M models; as `EncodeImages` otherwise."""

    def __call__(self, images: Iterable[bytes], /, *, names: Sequence[str]) -> np.ndarray: ...  # noqa: D102 # the class says it


class RecordLike(Protocol):
    """The fields of `plip_jax.data.records.Record` that evaluation reads."""

    @property
    def id(self) -> str: ...  # noqa: D102 # the class says it
    @property
    def image(self) -> bytes: ...  # noqa: D102 # the same
    @property
    def label(self) -> str: ...  # noqa: D102 # the same
    @property
    def captions(self) -> tuple[str, ...]: ...  # noqa: D102 # the same


@dataclasses.dataclass(frozen=True)
class Examples:
    """One split: what is known of each example, in order, and its image bytes when asked for.

    Attributes:
        ids: one an example, none twice.
        labels: class names; "" where there is none.
        captions: none, one or more an example.
        records: the same examples with their images; read anew for each pass, never held.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    records: Sequence[RecordLike]

    @classmethod
    def from_records(cls, records: Sequence[RecordLike]) -> "Examples":
        """Read everything but the images, one record at a time.

        Raises:
            EvaluationError: no records.
        """
        known = [(record.id, record.label, tuple(record.captions)) for record in records]
        if not known:
            raise EvaluationError("expected at least one example, got an empty split")
        ids, labels, captions = zip(*known, strict=True)
        return cls(ids=ids, labels=labels, captions=captions, records=records)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the ids in order, with their labels and captions."""
        content = list(zip(self.ids, self.labels, self.captions, strict=True))
        return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()

    def embed(self, encode_images: EncodeImages) -> Embeddings:
        """Embed every image once, in order.

        Raises:
            EvaluationError: the records no longer come in the order of the ids, a row is missing or not finite.
        """
        return Embeddings(self.ids, encode_images(self._images(), names=self.ids))

    def embed_by_models(self, encode_images: EncodeImagesOfModels) -> tuple[Embeddings, ...]:
        """`embed` for several models, with each image read once."""
        return tuple(Embeddings(self.ids, features) for features in encode_images(self._images(), names=self.ids))

    def _images(self) -> Iterator[bytes]:
        for expected, record in zip(self.ids, self.records, strict=True):
            if record.id != expected:
                raise EvaluationError(
                    f"the data changed while they were read: expected {expected!r}, got {record.id!r}"
                )
            yield record.image
