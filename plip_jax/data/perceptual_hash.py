"""Near-duplicate images by a 64-bit hash of their coarse structure, and the search for close hashes.

The hash is pHash's: signs of the low frequencies of the image's discrete cosine transform (Zauner 2010,
"Implementation and Benchmarking of Perceptual Image Hash Functions", section 3.2.1; phash.org's ``ph_dct_imagehash``).
A copy that is compressed again, resized or slightly cropped differs in a few bits, another image in about 32. The eight
flips and quarter turns of an image need no further transform: they change signs and swap axes of the same coefficients.
A second hash, dHash, is there for those whose thresholds were set with it.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

# Of the image that is transformed, pixels.
SIDE = 32
# Below this spread of its 32 x 32 grey levels an image has no structure to compare (blank background), 0-255.
MIN_CONTRAST = 2.0

_BITS = 64
# DCT-II with frequencies 1 to 8: the constant and the other coefficients of its row and column are left out.
_FREQUENCIES = np.cos(np.pi * np.outer(np.arange(1, 9), 2 * np.arange(SIDE) + 1) / (2 * SIDE))
_ODD = np.where(np.arange(1, 9) % 2, -1.0, 1.0)  # a mirror image has the odd frequencies' signs changed
# Of the banded search: four bands of 16 bits, the pairs compared at a time, and those of a search without bands.
_BANDS, _BAND_BITS = 4, 16
_BLOCK_PAIRS = 2**22
_MOST_BANDED_RADIUS = 11
# Of the search within one set: the bands that must agree are at most these; what it costs to sort a hash once, counted
# in comparisons of two hashes (measured: 45 ns and 15 ns).
_MOST_AGREEING = 3
_SORTING_COST = 3


@dataclasses.dataclass(frozen=True)
class ImageHash:
    """The hash of an image.

    Attributes:
        bits: uint64 [8], of the image and its flips and quarter turns; the first is the image's own.
        contrast: standard deviation of its grey levels at 32 x 32, 0-255.
    """

    bits: np.ndarray
    contrast: float

    @property
    def is_flat(self) -> bool:
        """Whether the bits are noise, because there is next to nothing in the image."""
        return self.contrast < MIN_CONTRAST


def hash_image(image: Image.Image) -> ImageHash:
    """Hash an image and its seven flips and quarter turns.

    Args:
        image: any mode that Pillow converts to grey; any size.
    """
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    coefficients = _FREQUENCIES @ grey @ _FREQUENCIES.T
    turned = [
        axes * rows[:, None] * columns[None, :]
        for axes in (coefficients, coefficients.T)
        for rows in (np.ones(8), _ODD)
        for columns in (np.ones(8), _ODD)
    ]
    return ImageHash(np.asarray([_signs(one) for one in turned], np.uint64), float(grey.std()))


def _signs(coefficients: np.ndarray) -> int:
    above = (coefficients > np.median(coefficients)).reshape(-1)
    return int.from_bytes(np.packbits(above).tobytes(), "big")


def dhash(image: Image.Image) -> int:
    """Hash an image by the signs of its horizontal differences: dHash, 64 bits.

    N. Krawetz 2013, "Kind of Like That" (hackerfactor.com): grey, 9 x 8 pixels, a bit is set where a pixel is brighter
    than its left neighbour; rows from the top, the first pair in the highest bit.

    Args:
        image: any mode that Pillow converts to grey; any size.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Number of differing bits of hashes, uint64 of shapes that broadcast."""
    return np.bitwise_count(left ^ right)


@dataclasses.dataclass(frozen=True)
class ClosePairs:
    """Pairs of hashes that differ in few bits, in the order of left and right.

    Attributes:
        left: rows, int64 [P].
        right: rows, int64 [P].
        distance: bits, int64 [P].
    """

    left: np.ndarray
    right: np.ndarray
    distance: np.ndarray


def close_pairs(left: np.ndarray, right: np.ndarray, radius: int) -> ClosePairs:
    """Find every pair of hashes that differ in at most ``radius`` bits; exact.

    Two such hashes agree within radius // 4 bits in one of their four bands of 16 bits (Norouzi, Punjani & Fleet 2012,
    "Fast Search in Hamming Space with Multi-Index Hashing"), so only those that do are compared; from a radius of 12
    on, all are.

    Args:
        left: uint64 [N].
        right: uint64 [M], or [M, V] with V variants of each (its flips and turns), of which the nearest counts.
        radius: bits, in [0, 64].

    Raises:
        ValueError: the radius is out of range, or an array is not of uint64.
    """
    if not 0 <= radius <= _BITS:
        raise ValueError(f"radius: expected 0 to {_BITS} bits, got {radius}")
    if left.dtype != np.uint64 or right.dtype != np.uint64:
        raise ValueError(f"expected hashes of uint64, got {left.dtype} and {right.dtype}")
    variants = right[:, None] if right.ndim == 1 else right
    search = _banded if radius <= _MOST_BANDED_RADIUS else _all
    keys, found_distances = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for variant in range(variants.shape[1]):
        for rows, columns in search(left, np.ascontiguousarray(variants[:, variant]), radius):
            distance = distances(left[rows], variants[columns, variant]).astype(np.int64)
            near = distance <= radius
            key, first = np.unique(rows[near] * len(variants) + columns[near], return_index=True)
            keys.append(key)
            found_distances.append(distance[near][first])
    key, distance = np.concatenate(keys), np.concatenate(found_distances)
    order = np.lexsort((distance, key))
    key, distance = key[order], distance[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))  # the nearest variant of each pair
    rows, columns = np.divmod(key[first], max(1, len(variants)))
    return ClosePairs(rows, columns, distance[first])


def close_pairs_within(hashes: np.ndarray, radius: int) -> ClosePairs:
    """Find every pair of rows of one set, left < right, whose hashes differ in at most ``radius`` bits; exact.

    The 64 bits are cut into radius + A bands. A changed bit lies in one band, so ``radius`` of them touch at most
    ``radius`` bands, and A bands or more are untouched: such a pair agrees in all bits of at least one choice of A
    bands. For each choice the hashes are sorted by those bits and compared within runs of equal ones. A is what costs
    least for so many hashes; with A = 0 all are compared.

    Memory is that of the hashes and of the pairs found. Equal hashes are pairs too: ask about distinct ones where one
    may be there thousands of times.

    Args:
        hashes: uint64 [N].
        radius: bits, in [0, 64].

    Raises:
        ValueError: the radius is out of range, or the array is not of uint64.
    """
    if not 0 <= radius <= _BITS:
        raise ValueError(f"radius: expected 0 to {_BITS} bits, got {radius}")
    if hashes.dtype != np.uint64:
        raise ValueError(f"expected hashes of uint64, got {hashes.dtype}")
    count = len(hashes)
    keys = [np.empty(0, np.int64)]
    for mask in _masks(radius, _cheapest_agreeing(count, radius)):
        for rows, others in _pairs_in_runs(hashes, mask, radius):
            keys.append(np.minimum(rows, others) * count + np.maximum(rows, others))
    left, right = np.divmod(np.unique(np.concatenate(keys)), max(1, count))
    return ClosePairs(left, right, distances(hashes[left], hashes[right]).astype(np.int64))


def _cheapest_agreeing(count: int, radius: int) -> int:
    """How many of the bands to ask to agree: more give more sorts of fewer comparisons."""

    def cost(agreeing: int) -> float:
        bands = radius + agreeing
        compared = count / 2 * 2.0 ** (-_BITS * agreeing / bands) if agreeing else count / 2
        return math.comb(bands, agreeing) * (_SORTING_COST + compared)

    return min(range(min(_MOST_AGREEING, _BITS - radius) + 1), key=cost)


def _masks(radius: int, agreeing: int) -> list[np.uint64]:
    """The bits of each choice of bands."""
    bands = radius + agreeing
    cuts = [_BITS * band // max(1, bands) for band in range(bands + 1)]
    masks = [(1 << end) - (1 << start) for start, end in itertools.pairwise(cuts)]
    return [np.uint64(sum(chosen)) for chosen in itertools.combinations(masks, agreeing)]


def _pairs_in_runs(hashes: np.ndarray, mask: np.uint64, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The close pairs among the hashes that are equal in the bits of the mask, by their distance in sorted order."""
    words = hashes & mask
    order = np.argsort(words)
    words, sorted_hashes = words[order], hashes[order]
    first = np.arange(len(words))
    for step in range(1, len(words)):
        first = first[: np.searchsorted(first, len(words) - step)]
        first = first[words[first + step] == words[first]]
        if not len(first):
            return
        near = first[distances(sorted_hashes[first], sorted_hashes[first + step]) <= radius]
        if len(near):
            yield order[near], order[near + step]


def _all(left: np.ndarray, right: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    block = max(1, _BLOCK_PAIRS // max(1, len(right)))
    for start in range(0, len(left), block):
        rows, columns = np.nonzero(distances(left[start : start + block, None], right[None, :]) <= radius)
        yield rows + start, columns


def _banded(left: np.ndarray, right: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs that agree within radius // 4 bits in a band; some of them several times."""
    words = np.arange(2**_BAND_BITS, dtype=np.uint32)
    flips = words[np.bitwise_count(words) <= radius // _BANDS]
    for band in range(_BANDS):
        shift = np.uint64(band * _BAND_BITS)
        mask = np.uint64(2**_BAND_BITS - 1)
        left_words, right_words = (((hashes >> shift) & mask).astype(np.uint32) for hashes in (left, right))
        order = np.argsort(right_words, kind="stable")
        ends = np.cumsum(np.bincount(right_words, minlength=2**_BAND_BITS))
        for flip in flips:
            word = left_words ^ flip
            counts = ends[word] - np.where(word > 0, ends[word - np.minimum(word, 1)], 0)
            yield from _expand(ends[word] - counts, counts, order)


def _expand(starts: np.ndarray, counts: np.ndarray, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each row with ``order[start : start + count]``, some million pairs at a time."""
    rows = np.flatnonzero(counts)
    cuts = np.searchsorted(np.cumsum(counts[rows]), np.arange(_BLOCK_PAIRS, counts.sum(), _BLOCK_PAIRS), side="right")
    for part in np.split(rows, cuts):
        number = counts[part]
        offset = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        if len(offset):
            yield np.repeat(part, number), order[np.repeat(starts[part], number) + offset]
