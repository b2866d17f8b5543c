"""`duplicates.duplicate_groups` as an Apache Beam transform, for more hashes than one machine should hold.

What is shuffled are hashes and ids, never images: each distinct hash once a band, so four times at radius 3. Equal
hashes are made one first, so a value that is there a million times is no hot key later on. A bucket of m hashes that
agree in a band gives at most m - 1 links: a spanning forest of its close pairs, which connects what they connect.

The links are gathered by one worker and united there. Their number is at most radius + 1 times the number of distinct
hashes that have a close one, whatever the number of pairs: a million hashes of which a tenth are near-copies give about
150,000. A link takes 0.8 kB of that worker's memory, so ten million of them 8 GB: that is the transform's limit.
"""

from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import PCollection

from data_prep.grouping.components import components
from plip_jax.data.perceptual_hash import close_pairs_within

HASH_BYTES = 8
_BITS = 64

Node = tuple[bytes, str]
"""A distinct hash and the least id that has it."""


def band_keys(bits: bytes, radius: int) -> list[tuple[int, bytes]]:
    """Return the number and the bits of each band of a hash.

    The 64 bits are cut into radius + 1 bands. A changed bit lies in one band; so of two hashes that differ in at most
    `radius` bits at least one band is equal, and they meet in that band's bucket.

    Args:
        bits: 8 bytes, big-endian.
        radius: Bits, below 64.
    """
    value = int.from_bytes(bits, "big")
    bands = radius + 1
    cuts = [_BITS * band // bands for band in range(bands + 1)]
    return [
        (band, (value >> cuts[band] & (1 << cuts[band + 1] - cuts[band]) - 1).to_bytes(HASH_BYTES, "big"))
        for band in range(bands)
    ]


def link_bucket(nodes: Iterable[Node], radius: int) -> Iterator[tuple[Node, Node]]:
    """Yield links that connect the hashes of a bucket as all its close pairs would: a spanning forest.

    Args:
        nodes: Distinct hashes that agree in a band.
        radius: Bits.
    """
    ordered = sorted(nodes)  # the order in which a worker gets them is not given
    if len(ordered) < 2:
        return
    hashes = np.array([int.from_bytes(bits, "big") for bits, _ in ordered], np.uint64)
    pairs = close_pairs_within(hashes, radius)
    labels = components(len(ordered), pairs.left, pairs.right)
    for row in np.flatnonzero(labels != np.arange(len(ordered))):
        yield ordered[labels[row]], ordered[row]


def unite_links(links: Iterable[tuple[Node, Node]]) -> Iterator[tuple[bytes, str]]:
    """Yield each linked hash with the least id of its component."""
    distinct = sorted(set(links))
    nodes = sorted({node for link in distinct for node in link})
    row_of = {node: row for row, node in enumerate(nodes)}
    ends = np.array([[row_of[one], row_of[other]] for one, other in distinct], np.int64).reshape(-1, 2)
    labels = components(len(nodes), ends[:, 0], ends[:, 1]).tolist()
    least: dict[int, str] = {}
    for (_, name), label in zip(nodes, labels, strict=True):
        least[label] = min(name, least.get(label, name))
    for (bits, _), label in zip(nodes, labels, strict=True):
        yield bits, least[label]


def _band_nodes(node: Node, radius: int) -> Iterator[tuple[tuple[int, bytes], Node]]:
    if len(node[0]) == HASH_BYTES:
        for key in band_keys(node[0], radius):
            yield key, node


def _name_rows(joined: tuple[bytes, dict[str, Iterable[str]]]) -> Iterator[tuple[str, str]]:
    """(id, group id) of each id that has a hash."""
    _, found = joined
    (group,) = found["united"] or found["own"]
    for name in found["ids"]:
        yield name, group


class GroupDuplicates(beam.PTransform):
    """Turn (id, hash) into (id, least id of its group); every id comes out once.

    A hash of 8 bytes, big-endian, is compared within the radius. One of any other length is compared by equality alone:
    for a flat image give the sha256 of its stripped bytes. Hashes are bytes because unsigned 64-bit integers overflow
    Beam's coder.

    Args:
        radius: Bits, in [0, 63].

    Raises:
        ValueError: The radius is out of range.
    """

    def __init__(self, radius: int) -> None:
        super().__init__()
        if not 0 <= radius < _BITS:
            raise ValueError(f"radius: expected 0 to {_BITS - 1} bits, got {radius}")
        self.radius = radius

    def expand(self, input_or_inputs: PCollection) -> PCollection:
        """Build the graph."""
        by_hash = input_or_inputs | "by hash" >> beam.Map(lambda row: (row[1], row[0]))
        distinct = by_hash | "least id of a hash" >> beam.CombinePerKey(min)
        links = (
            distinct
            | "to bands" >> beam.FlatMap(_band_nodes, self.radius)
            | "buckets" >> beam.GroupByKey()
            | "link buckets" >> beam.FlatMap(lambda bucket, radius: link_bucket(bucket[1], radius), self.radius)
        )
        united = (
            links
            | "to one worker" >> beam.Map(lambda link: (b"", link))
            | "gather links" >> beam.GroupByKey()
            | "unite links" >> beam.FlatMap(lambda gathered: unite_links(gathered[1]))
        )
        return (
            {"ids": by_hash, "own": distinct, "united": united}
            | "join" >> beam.CoGroupByKey()
            | "name groups" >> beam.FlatMap(_name_rows)
        )
