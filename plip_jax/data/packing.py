"""Captions laid end to end in rows of the context length, so that the text tower computes little of padding.

Owns the packing of a batch's token ids and the choice of how many rows a run packs into; knows no model and no jax.
The text tower is causal and pooled at <|endoftext|>, so what stands behind it changes nothing and need not be
computed; pathology captions fill 10 to 25 of 77 places. Packing sequences under a block-diagonal mask is that of
Krell et al. 2021 (https://arxiv.org/abs/2107.02027); the heuristic is first-fit decreasing (Johnson 1973).

Every part of a batch (what one device sees at a time) is packed by itself, so that no device needs another's rows. All
shapes are static: a run chooses its rows once, and a batch of which a part does not fit is not packed.
"""

import math
import statistics
from collections.abc import Iterator

import numpy as np

Packed = dict[str, np.ndarray]

# Batches that may stay unpacked. One in a thousand would cost nothing; skewed lengths overflow up to ten times as often
# as the normal distribution says.
_OVERFLOW_RATE = 1e-4
_SIMULATED_CAPTIONS = 2**17
_FEWEST_SIMULATED_PARTS = 64
_ENOUGH_SIMULATED_BATCHES = 1000
_UNSEEN_SHARE = 1e-3  # captions taken to fill a whole row, for a tail that a sample of a thousand can miss
_LARGEST_WORTHWHILE_SHARE = 0.9  # of the unpacked rows; above it the mask and the gathers are not paid for


def text_lengths(tokens: np.ndarray, eot_token_id: int) -> np.ndarray:
    """Live tokens of each caption: all up to and with the first <|endoftext|>, where the text tower pools.

    Args:
        tokens: int [b, L]. A row without <|endoftext|> has length 1, for the tower pools such a row at its first token.
        eot_token_id: The id.

    Returns:
        int32 [b], 1 to L.
    """
    return (np.argmax(tokens == eot_token_id, axis=1) + 1).astype(np.int32)


def pack_captions(tokens: np.ndarray, lengths: np.ndarray, parts: int, rows: int) -> Packed | None:
    """Pack each part's captions into `rows` rows, longest first, each into the first row with room.

    Args:
        tokens: int [b, L]; part p holds the captions p * n to (p + 1) * n - 1, n = b / parts.
        lengths: int [b], 1 to L: the live tokens of each.
        parts: Divides b.
        rows: R, rows for each part.

    Returns:
        int32 "tokens", "segments" and "positions" [parts, R, L], and "eot" [parts, n]. A segment numbers the captions
        of a row from 1 and is 0 on padding (of token 0); positions begin at 0 with each caption; "eot" is the place of
        each caption's last token in its part's flattened R * L, in the order of the captions. None where a part does
        not fit.
    """
    count, length = tokens.shape
    part = np.arange(count) // (count // parts)
    counts = _count_lengths(part, lengths, parts, length)
    start = np.empty(count, np.int64)  # in the flattened parts * R * L
    segment = np.empty(count, np.int32)
    used, filled = np.zeros((2, parts * rows), np.int64)
    for size, taken in _first_fit_decreasing(counts, rows):
        if np.any(taken.sum(axis=1) < counts[:, size]):
            return None
        taken = taken.ravel()
        row = np.repeat(np.arange(parts * rows), taken)
        nth = np.arange(len(row)) - np.repeat(np.cumsum(taken) - taken, taken)  # among the row's captions of this size
        captions = np.flatnonzero(lengths == size)  # part after part, as `row` is
        start[captions] = row * length + used[row] + nth * size
        segment[captions] = filled[row] + nth + 1
        used += taken * size
        filled += taken
    live = np.arange(length) < lengths[:, None]
    places = (start[:, None] + np.arange(length))[live]
    packed = {}
    for name, values in {
        "tokens": tokens,
        "segments": np.broadcast_to(segment[:, None], live.shape),
        "positions": np.broadcast_to(np.arange(length), live.shape),
    }.items():
        packed[name] = np.zeros((parts, rows, length), np.int32)
        packed[name].reshape(-1)[places] = values[live]
    packed["eot"] = (start + lengths - 1 - part * (rows * length)).astype(np.int32).reshape(parts, -1)
    return packed


def choose_rows(lengths: np.ndarray, captions: int, context_length: int, parts: int, seed: int = 0) -> int:
    """Choose R: rows into which nearly every part of `captions` captions fits.

    Parts are simulated by drawing from the sampled lengths, and a full row once in a thousand. R is the most that any
    of them needed. Where fewer than a thousand batches can be simulated the parts are large, their need is a sum of
    many lengths and near normal, and R is at least the mean and as many standard deviations as leave one batch in ten
    thousand with an overflow in any of its parts. That deviation is widened by sqrt(1 + captions / sampled), for the
    mean itself is known from a sample only.

    Args:
        lengths: Live tokens of captions of the run's data, 1 to `context_length`; an even sample.
        captions: n, captions in a part.
        context_length: L, the length of a row.
        parts: Parts in a global batch, on all devices and processes.
        seed: Of the simulation; equal arguments give equal rows.

    Returns:
        R < n; or n, packing is not worth it, where less than a tenth of the rows would be saved or no length is known.
    """
    if not len(lengths):
        return captions
    simulated = max(_FEWEST_SIMULATED_PARTS, _SIMULATED_CAPTIONS // captions)
    rng = np.random.default_rng(seed)
    drawn = rng.choice(np.asarray(lengths), (simulated, captions))
    drawn[rng.random(drawn.shape) < _UNSEEN_SHARE] = context_length
    needed = rows_needed(drawn, context_length)
    rows = int(needed.max())
    if simulated < _ENOUGH_SIMULATED_BATCHES * parts:
        deviations = statistics.NormalDist().inv_cdf(1 - _OVERFLOW_RATE / parts)
        deviation = needed.std() * math.sqrt(1 + captions / len(lengths))
        rows = max(rows, math.ceil(needed.mean() + deviations * deviation))
    return rows if rows <= _LARGEST_WORTHWHILE_SHARE * captions else captions


def rows_needed(lengths: np.ndarray, context_length: int) -> np.ndarray:
    """How many rows of `context_length` first-fit decreasing opens for each part of `lengths` [parts, n]: [parts]."""
    parts, captions = lengths.shape
    counts = _count_lengths(np.arange(parts).repeat(captions), lengths.ravel(), parts, context_length)
    # At most one row of a first-fit packing is not more than half full.
    rows = min(captions, 2 * int(lengths.sum(axis=1).max()) // context_length + 1)
    occupied = np.zeros((parts, rows), np.bool_)
    for _, taken in _first_fit_decreasing(counts, rows):
        occupied |= taken > 0
    return occupied.sum(axis=1)


def _count_lengths(part: np.ndarray, lengths: np.ndarray, parts: int, longest: int) -> np.ndarray:
    """How many captions of each length a part holds: [parts, longest + 1]."""
    return np.bincount(part * (longest + 1) + lengths, minlength=parts * (longest + 1)).reshape(parts, longest + 1)


def _first_fit_decreasing(counts: np.ndarray, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield, from the longest on, a length and how many captions of it each row takes: [parts, rows].

    Captions of one length are placed at once: to give each to the first row with room is to fill row after row. So the
    loop runs over lengths and not over captions. Where the rows run out, fewer are taken than there are.
    """
    free = np.full((len(counts), rows), counts.shape[1] - 1)
    for size in np.flatnonzero(counts.any(axis=0))[::-1].tolist():
        room = free // size
        before = np.cumsum(room, axis=1) - room
        taken = np.clip(counts[:, size, None] - before, 0, room)
        free -= taken * size
        yield size, taken
