"""What `plip_jax.PLIP` answers with besides arrays: predictions, hits of a search, a warning of damaged images.

Owns their form and how they print, and computes nothing.
"""

import dataclasses
from collections.abc import Mapping

from plip_jax.data.image import ImageError

# Damaged images that a warning names; the rest are in its `errors`.
_NAMED_DAMAGED = 20


class DamagedImagesWarning(UserWarning):
    """Images that cannot be read, whose rows are NaN.

    Attributes:
        errors: place in the list of images -> why it cannot be read; the message of each has the image's path.
    """

    def __init__(self, errors: Mapping[int, ImageError]):
        self.errors = dict(errors)
        lines = [f"  row {row}: {error}" for row, error in list(self.errors.items())[:_NAMED_DAMAGED]]
        more = len(self.errors) - len(lines)
        lines += [f"  and {more} more (this warning's `errors` has all)"] * (more > 0)
        super().__init__("\n".join([f"images that cannot be read: {len(self.errors)}; their rows are NaN", *lines]))


@dataclasses.dataclass(frozen=True, repr=False)
class Prediction:
    """What `PLIP.zero_shot` says of one image.

    Attributes:
        probabilities: label -> probability, the most probable first; they sum to one.
    """

    probabilities: dict[str, float]

    @property
    def label(self) -> str:
        """The most probable label."""
        return next(iter(self.probabilities))

    @property
    def probability(self) -> float:
        """The probability of `label`."""
        return self.probabilities[self.label]

    def __str__(self) -> str:
        return "\n".join(f"{probability:6.1%}  {label}" for label, probability in self.probabilities.items())

    def __repr__(self) -> str:
        return f"Prediction({', '.join(f'{label}: {value:.1%}' for label, value in self.probabilities.items())})"


@dataclasses.dataclass(frozen=True)
class Hit:
    """One result of a search.

    Attributes:
        index: row of the corpus.
        name: the row's path or id; None where the corpus has no names.
        score: cosine of the query and the row, -1 to 1.
    """

    index: int
    name: str | None
    score: float
