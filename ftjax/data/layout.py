"""From lengths to the plan of one epoch: which examples share a batch, and in what shape.

All functions are pure and work on lengths alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """A planned batch: rows of `length` slots, each holding examples one after another."""

    length: int
    rows: list[list[int]]


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least n."""
    return -(-n // multiple) * multiple


def row_length(lengths: np.ndarray, max_length: int | None = None, multiple: int = 64) -> int:
    """A packed row's length: the smallest multiple of 64 that holds the longest example, at most max_length.

    Raises:
        ValueError: an example longer than max_length.
    """
    return _capped(int(np.max(lengths)), max_length, multiple)


def _capped(longest: int, max_length: int | None, multiple: int) -> int:
    if max_length is None:
        return round_up(longest, multiple)
    if longest > max_length:
        raise ValueError(f"an example of {longest} tokens cannot sit in a row of at most {max_length}")
    return min(round_up(longest, multiple), max_length)


def rows_per_batch(lengths: np.ndarray, length: int, batch_size: float) -> int:
    """Packed rows per batch, so that a batch holds about `batch_size` examples."""
    return max(1, round(batch_size * float(np.mean(lengths)) / length))


def capacity(lengths: np.ndarray, others: np.ndarray, length: int, multiple: int = 8) -> int:
    """What a packed row may hold of another thing than tokens (labels, an encoder's tokens): a tenth above the mean
    row's, and enough for any one example.

    `pack_rows` keeps to it, which is cheaper than a bound that no packing could pass: the work is done for every slot.
    """
    mean_row = length * float(np.sum(others)) / float(np.sum(lengths))
    return round_up(max(int(np.max(others)), int(np.ceil(1.1 * mean_row))), multiple)


def pack_rows(
    sizes: Sequence[Sequence[int]] | np.ndarray,
    room: Sequence[int],
    order: Sequence[int] | np.ndarray,
    open_rows: int = 64,
) -> list[list[int]]:
    """First-fit packing over a bounded pool of open rows; each example exactly once.

    Args:
        sizes: [n, K], what each example takes of K things: tokens first, then labels, an encoder's tokens.
        room: [K], what a row has of each.
        order: the examples in the order of packing.
        open_rows: rows that may be filled at a time; beyond it the fullest (by tokens) is closed.

    Returns:
        Rows of example indices, in the order in which they were opened.

    Raises:
        ValueError: an example that no row can hold.
    """
    order = np.asarray(order, np.int64)
    wanted, most = np.asarray(sizes, np.int64).reshape(-1, len(room))[order], np.asarray(room, np.int64)
    if len(order) and (wanted > most).any():
        worst = int(np.flatnonzero((wanted > most).any(1))[0])
        raise ValueError(f"example {order[worst]} takes {wanted[worst].tolist()}, a row has {most.tolist()}")
    shortest = wanted[:, 0].min() if len(order) else 0
    rows: list[list[int]] = []
    pool: list[list[int]] = []  # the open rows' contents, and beside them what room they have
    rooms = np.zeros((open_rows, len(most)), np.int64)
    for example, size in zip(order.tolist(), wanted):
        fitting = (rooms[: len(pool)] >= size).all(1)
        slot = int(fitting.argmax()) if len(pool) else 0
        if not len(pool) or not fitting[slot]:
            if len(pool) == open_rows:
                _close(pool, rooms, int(rooms[:, 0].argmin()))
            slot = len(pool)
            rows.append([])
            pool.append(rows[-1])
            rooms[slot] = most
        pool[slot].append(example)
        rooms[slot] -= size
        if rooms[slot, 0] < shortest:
            _close(pool, rooms, slot)
    return rows


def _close(pool: list[list[int]], rooms: np.ndarray, slot: int) -> None:
    del pool[slot]
    rooms[slot : len(pool)] = rooms[slot + 1 : len(pool) + 1]


def pack_batches(rows: Sequence[list[int]], length: int, rows_in_batch: int) -> list[Batch]:
    """Packed rows in groups of one shape; the last group is filled with empty rows."""
    starts = range(0, len(rows), rows_in_batch)
    return [Batch(length, _filled(rows[start : start + rows_in_batch], rows_in_batch)) for start in starts]


def _filled(rows: Sequence[list[int]], n: int) -> list[list[int]]:
    return [*rows, *([] for _ in range(n - len(rows)))]


def bucket_lengths(
    lengths: Sequence[int] | np.ndarray, n: int = 6, multiple: int = 8, max_length: int | None = None
) -> tuple[int, ...]:
    """At most n bucket lengths with the least padding, by dynamic programming over quantised lengths.

    Args:
        lengths: [n] of the examples.
        n: the most buckets.
        multiple: buckets are multiples of it, but for a last one cut at max_length.
        max_length: no bucket is longer.

    Raises:
        ValueError: an example longer than max_length.
    """
    lengths = np.asarray(lengths)
    _capped(int(lengths.max()), max_length, multiple)
    values, counts = np.unique(-(-lengths // multiple) * multiple, return_counts=True)
    if max_length is not None:
        values = np.minimum(values, max_length)
    cumulative = np.concatenate([[0], np.cumsum(counts)])
    # cost[j]: slots for the j smallest values in k buckets; the last bucket takes values i..j-1.
    spans = np.subtract.outer(cumulative, cumulative[:-1]).astype(float)  # [j, i]
    slots = np.where(spans > 0, spans * np.concatenate([[0], values])[:, None], np.inf)
    cost = np.concatenate([[0.0], np.full(len(values), np.inf)])
    choices = []
    for _ in range(min(n, len(values))):
        total = slots + cost[None, :-1]
        choices.append(total.argmin(axis=1))
        cost = total.min(axis=1)
    chosen, j = [], len(values)
    for choice in reversed(choices):
        chosen.append(int(values[j - 1]))
        j = choice[j]
    return tuple(reversed(chosen))


def bucket_batches(
    lengths: Sequence[int] | np.ndarray,
    buckets: Sequence[int],
    batch_size: int,
    order: Sequence[int] | np.ndarray,
    window: int = 50,
    rng: np.random.Generator | None = None,
) -> list[Batch]:
    """Batches of examples of like length, one example per row, padded to a bucket; each example once.

    Args:
        lengths: [n].
        buckets: increasing lengths, the last at least the longest example.
        batch_size: rows per batch; the last batch is filled with empty rows.
        order: the examples in order.
        window: examples are sorted by length within windows of so many batches; 0 keeps the order.
        rng: shuffles the batches; None leaves them in order.

    Raises:
        ValueError: an example longer than the last bucket.
    """
    lengths, order = np.asarray(lengths), np.asarray(order, np.int64)
    if len(order) and lengths[order].max() > buckets[-1]:
        raise ValueError(f"{lengths[order].max()} tokens are more than the last bucket {buckets[-1]}")
    if window:
        size = window * batch_size
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts] or [order])
    batches = []
    for start in range(0, len(order), batch_size):
        examples = order[start : start + batch_size]
        length = buckets[int(np.searchsorted(buckets, lengths[examples].max()))]
        batches.append(Batch(length, _filled([[i] for i in examples.tolist()], batch_size)))
    return batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]
