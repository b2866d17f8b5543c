"""The examples of one split as evaluation sees them: ids, labels and captions known, images read when needed."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, overload

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
        label_sets: the classes that an example of a multi-label set shows; empty ones elsewhere.
        patient_ids: of the patient; "" where it is not known.
        slide_ids: of the slide, likewise.
        group_ids: of any other thing that makes images alike (a post, a figure), likewise.
        attributes: other texts by name, one an example (organ, magnification, votes).
        fingerprint: of the images' bytes; "" where it is not known.
        origin: of a subset, the whole and the rows taken from it.
        records: the same examples with their images; read anew for each pass, never held.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    records: Sequence[RecordLike]
    label_sets: tuple[tuple[str, ...], ...] = ()
    patient_ids: tuple[str, ...] = ()
    slide_ids: tuple[str, ...] = ()
    group_ids: tuple[str, ...] = ()
    attributes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""
    origin: "tuple[Examples, np.ndarray] | None" = dataclasses.field(default=None, compare=False)

    @classmethod
    def from_records(cls, records: Sequence[RecordLike]) -> "Examples":
        """Read everything but the images, one record at a time.

        Raises:
            EvaluationError: no records.
        """
        # The fields beyond those of RecordLike are there where the data know them (plip_jax.data.examples.Example).
        known = [
            (
                record.id,
                record.label,
                tuple(record.captions),
                tuple(getattr(record, "label_set", ())),
                *(str(getattr(record, name, "")) for name in ("patient_id", "slide_id", "group_id")),
                dict(getattr(record, "attributes", {})),
            )
            for record in records
        ]
        if not known:
            raise EvaluationError("expected at least one example, got an empty split")
        ids, labels, captions, label_sets, patients, slides, groups, attributes = zip(*known, strict=True)
        names = sorted(set().union(*attributes))
        return cls(
            ids=ids,
            labels=labels,
            captions=captions,
            records=records,
            label_sets=label_sets,
            patient_ids=patients,
            slide_ids=slides,
            group_ids=groups,
            attributes={name: tuple(str(found.get(name, "")) for found in attributes) for name in names},
            fingerprint=str(getattr(records, "fingerprint", "")),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, rows: Sequence[int] | np.ndarray) -> "Examples":
        """The examples of these rows, in the order given; they remember whose part they are.

        Raises:
            EvaluationError: no rows.
        """
        rows = np.asarray(rows, np.int64)
        if not len(rows):
            raise EvaluationError("expected at least one example, got an empty subset")

        def take(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[row] for row in rows) if values else ()

        return Examples(
            ids=take(self.ids),
            labels=take(self.labels),
            captions=take(self.captions),
            records=_Taken(self.records, rows),
            label_sets=take(self.label_sets),
            patient_ids=take(self.patient_ids),
            slide_ids=take(self.slide_ids),
            group_ids=take(self.group_ids),
            attributes={name: take(values) for name, values in self.attributes.items()},
            fingerprint=self.fingerprint,
            origin=(self, rows) if self.origin is None else (self.origin[0], self.origin[1][rows]),
        )

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the ids in order, with their labels and captions."""
        content: list[Any] = list(zip(self.ids, self.labels, self.captions, strict=True))
        if any(self.label_sets):  # a set without them keeps the hash that earlier reports give
            content.append(self.label_sets)
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


class _Taken(Sequence[RecordLike]):
    """Some rows of a sequence of records, read when asked for."""

    def __init__(self, records: Sequence[RecordLike], rows: np.ndarray) -> None:
        self._records = records
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> RecordLike: ...
    @overload
    def __getitem__(self, index: slice) -> list[RecordLike]: ...
    def __getitem__(self, index: int | slice) -> RecordLike | list[RecordLike]:
        if isinstance(index, slice):
            return [self._records[row] for row in self._rows[index]]
        return self._records[self._rows[index]]
