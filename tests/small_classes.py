"""Labelled examples with known embeddings, shared by the tests of the tasks that learn."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.embeddings import Embeddings
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.task import Inputs, Model


@dataclasses.dataclass(frozen=True)
class Record:
    id: str
    label: str = ""
    captions: tuple[str, ...] = ()
    image: bytes = b""
    slide_id: str = ""


def make_examples(
    role: str, labels: Sequence[str], slides: Sequence[str] = (), images: Sequence[bytes] = ()
) -> Examples:
    slides, images = slides or [""] * len(labels), images or [b""] * len(labels)
    return Examples.from_records(
        [Record(f"{role}{i}", labels[i], (), images[i], slides[i]) for i in range(len(labels))]
    )


def make_inputs(
    data: Mapping[str, Examples], features: Mapping[str, np.ndarray], bootstrap: BootstrapConfig | None = None
) -> Inputs:
    """Each example's features are looked up by its id, for subsets too."""
    table = {name: row for role, e in data.items() for name, row in zip(e.ids, features[role], strict=True)}

    def embed(examples: Examples) -> Embeddings:
        return Embeddings(examples.ids, np.stack([table[name] for name in examples.ids]))

    return Inputs(data, Model("m", embed), bootstrap)


def draw_classes(counts: Mapping[str, int], dim: int, seed: int, spread: float = 0.7) -> tuple[list[str], np.ndarray]:
    """Labels and features float32 [N, dim]: class k is a cloud around the k-th axis, in a mixed order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation([label for label, count in counts.items() for _ in range(count)]).tolist()
    axis = {label: k for k, label in enumerate(sorted(counts))}
    centres = np.eye(dim)[[axis[label] for label in labels]]
    return labels, (centres + spread * rng.normal(size=centres.shape)).astype(np.float32)
