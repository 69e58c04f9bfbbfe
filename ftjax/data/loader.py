"""Batches of numpy arrays from encoded examples, in an order that depends on (seed, epoch) only."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, NamedTuple

import grain
import numpy as np
from grain.experimental import ThreadPrefetchDatasetIterator

from ftjax.data import layout as plans
from ftjax.data import prompts
from ftjax.data.encoded import IGNORED, Encoded

Arrays = dict[str, np.ndarray]


class Shape(NamedTuple):
    """What a batch's rows hold: tokens, labels, and an encoder's tokens."""

    length: int
    labels: int
    source: int


class Loader(grain.IterDataset[Arrays]):
    """Batches without end over shuffled epochs, or one epoch in the data set's order.

    A batch holds, int32 but for labels by row that are float32:
        input_ids [B, T]: an example's tokens; of labels by next token without the last, which predicts nothing.
        segment_ids [B, T]: 0 on padding, 1, 2, ... on the examples of a row.
        position_ids [B, T]: from 0 in each segment, 0 on padding.
        the data set's extras [B, T].
    and, by what the labels belong to, with `M` one constant per T:
        next, token: label_positions [B, M], the slot whose hidden state predicts the label, filler 0; labels [B, M],
            filler -100.
        row: labels [B, ...], -100 or NaN in an empty row.
    `example` ([B, M], or [B] where a row is one example) holds whose the labels are, -1 where nobody's. Examples that
    are groups of sequences add an axis, [B, G, T]. An encoder-decoder's batches hold encoder_input_ids,
    encoder_segment_ids, encoder_position_ids [B, S] as well.

    Where examples share prompts, a prompt that several need is a segment of its own, -1, -2, ..., and
        prompt_ids [B, T]: the segment of the prompt that a token's example shares; 0 on prompts, padding, and where an
            example has its own.

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
        row_length: int = 0,
        shared_prompts: int = 1,
        pad_side: Literal["left", "right"] = "right",
        buckets: int = 6,
        window: int | None = None,
        prefetch: int = 2,
        multiple: int = 1,
        here: Callable[[int], slice] = lambda rows: slice(0, rows),
    ):
        """Plans the shapes.

        Args:
            encoded: the examples.
            layout: 'packed' (labels that belong to tokens, or none) or 'buckets', one example per row.
            batch_size: examples per batch.
            seed: of the order.
            shuffle: whether to train, shuffled and without end, or to evaluate, in order and once.
            max_length: no example's row is longer, but for shared prompts; None leaves the rounding up unbounded.
            row_length: of packed rows; 0 takes the smallest multiple of 64 that holds the longest example (or those of
                one prompt).
            shared_prompts: of packed examples with labels by next token and of one sequence: so many of one prompt,
                at most, are laid behind one copy of it, in every epoch the same ones.
            pad_side: where the padding is.
            buckets: the most bucket lengths.
            window: see `layout.bucket_batches`; None is 50 when shuffled and 0, in order, when not.
            prefetch: batches made ahead by a thread; 0 makes them on demand.
            multiple: empty rows fill every batch up to a multiple of it.
            here: of so many rows of a batch, those that this process assembles; the plan is the same for all.

        Raises:
            ValueError: an unknown layout or side, packed labels by row, an example over max_length, or prompts shared
                where there are none.
        """
        super().__init__()
        if layout not in ("packed", "buckets") or pad_side not in ("left", "right"):
            raise ValueError(f"{layout!r}, {pad_side!r}: use packed or buckets, pad left or right")
        self._by_token = encoded.by in ("next", "token")
        if layout == "packed" and encoded.by == "row":
            raise ValueError("one label an example; use layout 'buckets'")
        if shared_prompts > 1 and (layout, encoded.by, encoded.group, encoded.source) != ("packed", "next", 1, None):
            raise ValueError("prompts are shared in packed rows of a decoder's examples")
        self._encoded, self._batch_size, self._seed, self._shuffle = encoded, batch_size, seed, shuffle
        self._packed, self._left, self._prefetch = layout == "packed", pad_side == "left", prefetch
        self._window = window if window is not None else 50 if shuffle else 0
        self._multiple, self._here = multiple, here
        nothing = np.zeros(len(encoded), np.int64)
        self._lengths = encoded.lengths - (encoded.by == "next")
        self._counts = encoded.label_counts if self._by_token else nothing
        self._sources = encoded.source.lengths if encoded.source else nothing
        self._totals = self._lengths + self._sources
        self._shares = _Shares(encoded) if shared_prompts > 1 else None
        if self._packed:
            sizes = np.stack([self._lengths, self._counts, self._sources], 1)
            self._units, self._sizes = [[i] for i in range(len(encoded))], sizes
            if self._shares:
                prompt = self._shares.prompts
                self._units = prompts.units(self._shares.family, self._lengths, prompt, shared_prompts, row_length)
                self._sizes = np.stack([sizes[unit].sum(0) for unit in self._units])
                self._sizes[:, 0] -= [(len(unit) - 1) * prompt[unit[0]] for unit in self._units]
            lengths, counts, sources = self._sizes.T
            length = row_length or plans.row_length(lengths, None if self._shares else max_length)
            if lengths.max() > length:
                raise ValueError(f"an example of {lengths.max()} tokens cannot sit in a row of {length}")
            self._rows = plans.rows_per_batch(lengths, length, batch_size * len(lengths) / len(encoded))
            labels, source = (plans.capacity(lengths, n, length) for n in (counts, sources))
            labels = labels if self._shares else min(labels, length)  # one a token, but where prompts are shared
            self._shapes = {length: Shape(length, labels, source)}
        else:
            self._rows = batch_size
            bound = None if encoded.source else max_length
            edges = plans.bucket_lengths(self._totals, buckets, max_length=bound)
            self._shapes = {edge: self._shape_within(edge, max_length) for edge in edges}

    def _shape_within(self, edge: int, max_length: int | None) -> Shape:
        """What holds each of the examples whose tokens are at most `edge`, both sides of an encoder-decoder counted."""
        among = self._totals <= edge
        most = [plans.round_up(int(n[among].max()), 8) for n in (self._lengths, self._counts, self._sources)]
        if max_length is not None:
            most[0], most[2] = min(most[0], max_length), min(most[2], max_length)
        return Shape(*most)

    @property
    def rows(self) -> int:
        """Rows of a batch over all processes."""
        return plans.round_up(self._rows, self._multiple)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """(rows, tokens, labels, an encoder's tokens) of all batches."""
        rows = self.rows * self._encoded.group
        return tuple((rows, *shape) for shape in self._shapes.values())

    @cached_property
    def _first(self) -> list[plans.Batch]:
        return self._planned(0)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Batches in epoch 0."""
        return len(self._first)

    @cached_property
    def fill(self) -> float:
        """Real tokens over slots in epoch 0."""
        plan = self._first
        shapes = [self._shapes[batch.length] for batch in plan]
        slots = sum(self.rows * (self._encoded.group * shape.length + shape.source) for shape in shapes)
        rows = [row for batch in plan for row in batch.rows]
        examples = np.concatenate([np.asarray(row, np.int64) for row in rows])
        ends = self._encoded.offsets
        real = np.add.reduceat(np.diff(ends), np.arange(0, len(ends) - 1, self._encoded.group))
        tokens = (real - (self._encoded.by == "next") + self._sources)[examples].sum()
        if self._shares:
            shared = self._shares.shared(examples, np.repeat(np.arange(len(rows)), [len(row) for row in rows]))
            tokens -= self._shares.prompts[examples][shared].sum()
        return float(tokens) / slots

    def plan(self, epoch: int) -> list[plans.Batch]:
        """The batches of an epoch, as indices into the encoded examples; unshuffled, those of every epoch."""
        return self._planned(epoch) if self._shuffle and epoch else self._first

    def _planned(self, epoch: int) -> list[plans.Batch]:
        rng = np.random.default_rng([self._seed, epoch]) if self._shuffle else None
        count = len(self._units) if self._packed else len(self._encoded)
        order = np.arange(count) if rng is None else rng.permutation(count)
        if not self._packed:
            return plans.bucket_batches(self._totals, tuple(self._shapes), self._batch_size, order, self._window, rng)
        [shape] = self._shapes.values()
        rows = [[i for unit in row for i in self._units[unit]] for row in plans.pack_rows(self._sizes, shape, order)]
        if rng is not None:  # rows opened last are emptier
            rows = [rows[i] for i in rng.permutation(len(rows))]
        return plans.pack_batches(rows, shape.length, self._rows)

    def assemble(self, planned: plans.Batch) -> Arrays:
        """The arrays of this process's rows of one planned batch."""
        encoded, shape = self._encoded, self._shapes[planned.length]
        chosen = [*planned.rows, *([] for _ in range(self.rows - len(planned.rows)))][self._here(self.rows)]
        rows, group = len(chosen), encoded.group
        examples = np.asarray([example for row in chosen for example in row], np.int64)
        per_row = np.asarray([len(row) for row in chosen])
        row_of_example = np.repeat(np.arange(rows), per_row)

        if group == 1:
            sequences, per_line = examples, per_row
        else:  # a line a sequence; an example fills the `group` lines of its row
            sequences = (examples[:, None] * group + np.arange(group)).ravel()
            per_line = np.repeat(per_row, group)
        laid = _Laid(
            encoded, sequences, per_line, shape.length, self._left, cut=encoded.by == "next", shares=self._shares
        )
        batch: Arrays = laid.inputs()
        if group > 1:
            batch = {name: x.reshape(rows, group, -1) for name, x in batch.items()}
        if encoded.source:
            source = _Laid(encoded.source, examples, per_row, shape.source, self._left)
            batch |= {f"encoder_{name}": x for name, x in source.inputs().items()}

        if self._by_token:
            labels = encoded.labels[laid.index + (encoded.by == "next")]  # within the example
            kept = labels != IGNORED
            row = laid.row[kept]
            place = row, _count_within(np.bincount(row, minlength=rows))
            batch["label_positions"] = np.zeros((rows, shape.labels), np.int32)
            batch["label_positions"][place] = laid.column[kept]
            batch["labels"] = np.full_like(batch["label_positions"], IGNORED)
            batch["labels"][place] = labels[kept]
            batch["example"] = np.full_like(batch["labels"], -1)
            batch["example"][place] = np.repeat(examples, laid.sizes)[kept]
            return batch
        if not self._packed:
            batch["example"] = np.full(rows, -1, np.int32)
            batch["example"][row_of_example] = examples
        if encoded.by == "row":
            filler = IGNORED if encoded.labels.dtype == np.int32 else np.nan
            batch["labels"] = np.full((rows, *encoded.labels.shape[1:]), filler, encoded.labels.dtype)
            batch["labels"][row_of_example] = encoded.labels[examples]
        return batch

    def __iter__(self) -> grain.DatasetIterator[Arrays]:
        iterator = _Iterator(self, endless=self._shuffle)
        return ThreadPrefetchDatasetIterator(iterator, self._prefetch) if self._prefetch else iterator


class _Shares:
    """Who shares a prompt with whom: `family`, `prompts` [n], as in `ftjax.data.prompts`."""

    def __init__(self, encoded: Encoded):
        self.prompts = prompts.prompt_lengths(encoded)
        self.family = prompts.families(encoded, self.prompts)

    def shared(self, examples: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Bool [k], which of the examples [k] on rows [k] are laid without their prompt, that of the one before."""
        family = self.family[examples]
        return np.append(False, (family[1:] == family[:-1]) & (rows[1:] == rows[:-1]))[: len(examples)]


class _Laid:
    """Sequences one after another on the lines of an array `[lines, length]`.

    Attributes, one value a token: `row` and `column` where it goes, `index` where it comes from; `sizes` [n]. Of a
    shared prompt the last token is among a sequence's own, for it predicts the first of them, but it is there already.
    """

    def __init__(
        self, encoded: Encoded, sequences: np.ndarray, per_line: np.ndarray, length: int, left: bool, cut: bool = False,
        shares: _Shares | None = None,
    ):  # fmt: skip
        self._encoded, self._shape = encoded, (len(per_line), length)
        lines, starts = np.repeat(np.arange(len(per_line)), per_line), encoded.offsets[sequences]
        shared, prompt = np.zeros(len(sequences), bool), np.zeros(len(sequences), np.int64)
        if shares is not None:
            shared, prompt = shares.shared(sequences, lines), shares.prompts[sequences]
        skipped = np.where(shared, prompt - 1, 0)
        self.sizes = encoded.offsets[sequences + 1] - starts - cut - skipped
        step = _count_within(self.sizes)
        self._within = step + np.repeat(skipped, self.sizes)
        self.row = np.repeat(lines, self.sizes)
        self.index = np.repeat(starts, self.sizes) + self._within
        self._new = ~(np.repeat(shared, self.sizes) & (step == 0))
        used = np.bincount(self.row[self._new], minlength=len(per_line))
        self.column = np.zeros(len(self.row), np.int64)
        self.column[self._new] = _count_within(used) + (length - used[self.row[self._new]] if left else 0)
        number = _count_within(per_line) + 1
        self._segment, self._prompt = np.repeat(number, self.sizes), None
        if shares is not None:
            first = np.maximum.accumulate(np.where(shared, 0, np.arange(len(shared))))  # whose prompt is laid
            self.column[~self._new] = self.column[(np.cumsum(self.sizes) - self.sizes)[first] + prompt - 1][shared]
            of = -np.repeat(number[first] * (np.bincount(first, minlength=len(first))[first] > 1), self.sizes)
            before = self._within < np.repeat(prompt, self.sizes)
            self._prompt = np.where(before, 0, of)
            self._segment = np.where(before & (of != 0), of, self._segment)

    def _scatter(self, values: Any, filler: int = 0) -> np.ndarray:
        out = np.full(self._shape, filler, np.int32)
        out[self.row[self._new], self.column[self._new]] = values[self._new]
        return out

    def inputs(self) -> Arrays:
        """input_ids, segment_ids, position_ids, prompt_ids and the extras, `[lines, length]` each."""
        encoded = self._encoded
        shared = {} if self._prompt is None else {"prompt_ids": self._scatter(self._prompt)}
        return {
            "input_ids": self._scatter(encoded.tokens[self.index], encoded.pad_id),
            "segment_ids": self._scatter(self._segment),
            "position_ids": self._scatter(self._within),
            **shared,
            **{name: self._scatter(values[self.index]) for name, values in encoded.extras.items()},
        }


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
