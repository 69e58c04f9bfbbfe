"""Batches of numpy arrays from encoded examples, in an order that depends on (seed, epoch) only."""

from functools import cached_property
from typing import Any, Literal

import grain
import numpy as np
from grain.experimental import ThreadPrefetchDatasetIterator

from ftjax.data import layout as plans
from ftjax.data.encoded import IGNORED, Encoded

Arrays = dict[str, np.ndarray]


class Loader(grain.IterDataset[Arrays]):
    """Batches without end over shuffled epochs, or one epoch in the data set's order.

    A batch of an lm data set holds, all int32, with `M` one constant per T:
        input_ids [B, T]: an example's tokens but its last, which nothing needs as an input.
        segment_ids [B, T]: 0 on padding, 1, 2, ... on the examples of a row.
        position_ids [B, T]: from 0 in each segment, 0 on padding.
        label_positions [B, M]: the slot whose hidden state predicts the label; filler 0.
        labels [B, M]: the tokens to predict; filler -100.
    A batch of a classification data set holds input_ids, segment_ids, position_ids [B, T], labels [B]
    (-100 in an empty row), and token_type_ids [B, T] where there are text pairs.
    Where a row is one example, `example` [B] is its row in the data set, -1 in an empty row.

    Every shape is known before the first batch: packed batches have one, the others one per bucket;
    the last ragged batch is filled with empty rows. In packed batches `batch_size` is the number of
    examples that a batch holds on average, and the steps of an epoch may differ by a few between epochs.
    """

    def __init__(
        self,
        encoded: Encoded,
        layout: Literal["packed", "buckets"],
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        *,
        max_length: int | None = None,
        pad_side: Literal["left", "right"] = "right",
        buckets: int = 6,
        window: int | None = None,
        prefetch: int = 2,
    ):
        """Plans the shapes.

        Args:
            encoded: the examples.
            layout: 'packed' (lm only) or 'buckets', one example per row.
            batch_size: examples per batch.
            seed: of the order.
            shuffle: whether to train, shuffled and without end, or to evaluate, in order and once.
            max_length: no row is longer; None leaves the rounding up of lengths unbounded.
            pad_side: where the padding is.
            buckets: the most bucket lengths.
            window: see `layout.bucket_batches`; None is 50 when shuffled and 0, in order, when not.
            prefetch: batches made ahead by a thread; 0 makes them on demand.

        Raises:
            ValueError: an unknown layout or side, packed classification, or an example over max_length.
        """
        super().__init__()
        if layout not in ("packed", "buckets") or pad_side not in ("left", "right"):
            raise ValueError(f"{layout!r}, {pad_side!r}: use packed or buckets, pad left or right")
        self._lm = encoded.objective == "lm"
        if layout == "packed" and not self._lm:
            raise ValueError("classification has one label per row; use layout 'buckets'")
        self._encoded, self._batch_size, self._seed, self._shuffle = encoded, batch_size, seed, shuffle
        self._packed, self._left, self._prefetch = layout == "packed", pad_side == "left", prefetch
        self._window = window if window is not None else 50 if shuffle else 0
        self._lengths = encoded.lengths - self._lm
        self._counts = encoded.label_counts if self._lm else np.zeros(len(encoded), np.int64)
        if self._packed:
            length = plans.row_length(self._lengths, max_length)
            self._rows = plans.rows_per_batch(self._lengths, length, batch_size)
            self._labels = {length: plans.label_capacity(self._lengths, self._counts, length)}
        else:
            self._rows = batch_size
            lengths = plans.bucket_lengths(self._lengths, buckets, max_length=max_length)
            most = [int(self._counts[self._lengths <= length].max()) for length in lengths]
            self._labels = {length: plans.round_up(m, 8) for length, m in zip(lengths, most, strict=True)}

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of all batches: (B, T, M) for lm, (B, T) for classification."""
        return tuple((self._rows, t, m) if self._lm else (self._rows, t) for t, m in self._labels.items())

    @cached_property
    def steps_per_epoch(self) -> int:
        """Batches in epoch 0."""
        return len(self.plan(0))

    @cached_property
    def fill(self) -> float:
        """Real tokens over slots in epoch 0."""
        return plans.fill_rate(self.plan(0), self._lengths)

    def plan(self, epoch: int) -> list[plans.Batch]:
        """The batches of an epoch, as indices into the encoded examples."""
        rng = np.random.default_rng([self._seed, epoch]) if self._shuffle else None
        order = np.arange(len(self._encoded)) if rng is None else rng.permutation(len(self._encoded))
        if not self._packed:
            return plans.bucket_batches(self._lengths, tuple(self._labels), self._batch_size, order, self._window, rng)
        [(length, capacity)] = self._labels.items()
        rows = plans.pack_rows(self._lengths, length, order, labels=self._counts, max_labels=capacity)
        if rng is not None:  # rows opened last are emptier
            rows = [rows[i] for i in rng.permutation(len(rows))]
        return plans.pack_batches(rows, length, self._rows)

    def assemble(self, planned: plans.Batch) -> Arrays:
        """The arrays of one planned batch."""
        encoded, length, shape = self._encoded, planned.length, (len(planned.rows), planned.length)
        examples = np.asarray([example for row in planned.rows for example in row], np.int64)
        per_row = np.asarray([len(row) for row in planned.rows])
        sizes = self._lengths[examples]
        nth = _count_within(per_row)  # of each example in its row
        row_of_example = np.repeat(np.arange(shape[0]), per_row)
        within = _count_within(sizes)
        row = np.repeat(row_of_example, sizes)
        source = np.repeat(encoded.offsets[examples], sizes) + within
        used = np.bincount(row, minlength=shape[0])
        column = _count_within(used) + (length - used[row] if self._left else 0)

        def scatter(values: Any, filler: int = 0) -> np.ndarray:
            out = np.full(shape, filler, np.int32)
            out[row, column] = values
            return out

        batch = {
            "input_ids": scatter(encoded.tokens[source], encoded.pad_id),
            "segment_ids": scatter(np.repeat(nth + 1, sizes)),
            "position_ids": scatter(within),
        }
        if not self._packed:
            batch["example"] = np.full(shape[0], -1, np.int32)
            batch["example"][row_of_example] = encoded.rows[examples]
        if not self._lm:
            if encoded.token_type_ids is not None:
                batch["token_type_ids"] = scatter(encoded.token_type_ids[source])
            batch["labels"] = np.full(shape[0], IGNORED, np.int32)
            batch["labels"][row_of_example] = encoded.labels[examples]
            return batch
        following = encoded.labels[source + 1]  # within the example, whose last token is no input
        kept = following != IGNORED
        label_row = row[kept]
        label_column = _count_within(np.bincount(label_row, minlength=shape[0]))
        batch["label_positions"] = np.zeros((shape[0], self._labels[length]), np.int32)
        batch["label_positions"][label_row, label_column] = column[kept]
        batch["labels"] = np.full_like(batch["label_positions"], IGNORED)
        batch["labels"][label_row, label_column] = following[kept]
        return batch

    def __iter__(self) -> grain.DatasetIterator[Arrays]:
        iterator = _Iterator(self, endless=self._shuffle)
        return ThreadPrefetchDatasetIterator(iterator, self._prefetch) if self._prefetch else iterator


def _count_within(sizes: np.ndarray) -> np.ndarray:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


class _Iterator(grain.DatasetIterator[Arrays]):
    """Its state is the epoch and how many of its batches were given: {'epoch': int, 'index': int}."""

    def __init__(self, loader: Loader, endless: bool):
        super().__init__()
        self._loader, self._endless = loader, endless
        self._epoch = self._index = 0
        self._planned: tuple[int, list[plans.Batch]] | None = None

    def _batches(self) -> list[plans.Batch]:
        if self._planned is None or self._planned[0] != self._epoch:
            self._planned = self._epoch, self._loader.plan(self._epoch)
        return self._planned[1]

    def __next__(self) -> Arrays:
        if self._index >= len(self._batches()):
            if not self._endless:
                raise StopIteration
            self._epoch, self._index = self._epoch + 1, 0
        batch = self._loader.assemble(self._batches()[self._index])
        self._index += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "index": self._index}

    def set_state(self, state: dict[str, int]) -> None:
        self._epoch, self._index = int(state["epoch"]), int(state["index"])
