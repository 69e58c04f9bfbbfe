"""Encoded examples, flat in memory, and how they are gathered."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ftjax.data.bad import BadRows
from ftjax.errors import UserError

IGNORED = -100  # a label that is not in the loss
Overlong = Literal["error", "drop", "truncate", "truncate_left"]
# next: a label is predicted at the token before it; token: at the token itself; row: one label an example; none
LabelledBy = Literal["next", "token", "row", "none"]


class Example(NamedTuple):
    """`tokens` [n] of its (first) sequence; `labels` [n] (-100 where none), the row's own, or [0]."""

    tokens: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Encoded:
    """`n` examples of `group` sequences each in flat arrays; sequence s holds tokens[offsets[s]:offsets[s + 1]].

    Attributes:
        by: what labels belong to.
        tokens: int32 [N].
        offsets: int64 [n * group + 1].
        labels: int32 [N] aligned with the tokens (by next, token); [n, ...] int32 or float32 (by row); [0] (none).
        rows: int32 [n], the index of each example's text in what was encoded.
        pad_id: filler for empty slots; 0 when the tokenizer has none, for segments mark what is real.
        dropped: texts left out because too long, or because truncation left no label.
        truncated: texts cut to max_length and kept.
        extras: further inputs aligned with the tokens, int32 [N] each (token_type_ids).
        asides: what scoring needs to know of each token, [N] each; in no batch.
        source: what an encoder-decoder's encoder reads: as many examples, of one sequence and without labels.
    """

    by: LabelledBy
    tokens: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    pad_id: int
    dropped: int = 0
    truncated: int = 0
    group: int = 1
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    asides: dict[str, np.ndarray] = field(default_factory=dict)
    source: "Encoded | None" = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        part = slice(*self.offsets[index * self.group :][:2])
        mine = {"row": index, "none": slice(0)}.get(self.by, part)
        return Example(self.tokens[part], self.labels[mine])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example's longest sequence, int64 [n]."""
        return np.diff(self.offsets).reshape(-1, self.group).max(1)

    @property
    def label_counts(self) -> np.ndarray:
        """Labels in the loss per example, where they belong to tokens, int64 [n]."""
        before = np.concatenate([[0], np.cumsum(self.labels != IGNORED)])
        return before[self.offsets[1:]] - before[self.offsets[:-1]]


class Collector:
    """Gathers examples and counts, then lays them flat."""

    def __init__(
        self, max_length: int, overlong: Overlong = "error", where: Sequence[str] | None = None,
        bad: BadRows | None = None,
    ):  # fmt: skip
        """Args:
        max_length: the most tokens per sequence.
        overlong: what to do beyond it: 'error', 'drop', 'truncate' (keeps the start) or 'truncate_left' (the end).
        where: each text's place, for messages.
        bad: what happens to texts that are not right; the error by default.
        """
        if overlong not in get_args(Overlong):
            raise UserError(f"data.overlong={overlong!r}: give {', '.join(get_args(Overlong))}")
        self.max_length, self.overlong, self.where = max_length, overlong, where
        self.cuts, self.left = overlong.startswith("truncate"), overlong == "truncate_left"
        self.bad = bad if bad is not None else BadRows()
        self._sequences: list[np.ndarray] = []
        self._extras: dict[str, list[np.ndarray]] = {}
        self._labels: list[Any] = []
        self._rows: list[int] = []
        self.dropped = self.truncated = 0

    def place(self, row: int) -> str:
        """Where a text is from."""
        return self.where[row] if self.where else f"row {row}"

    def fits(self, row: int, length: int) -> bool:
        """Whether an example needs no cut; otherwise counts it or raises."""
        if length <= self.max_length:
            return True
        if self.overlong == "error":
            raise UserError(
                f"{self.place(row)}: {length} tokens, more than max_length {self.max_length}; "
                "raise task.max_length, or set data.overlong to drop, truncate or truncate_left"
            )
        self.dropped += self.overlong == "drop"
        self.truncated += self.cuts
        return False

    def kept(self, length: int, first: int, last: int) -> np.ndarray:
        """Which of so many tokens a cut keeps: the first and the last so many, of the others the start or the end."""
        room = max(self.max_length - first - last, 0)
        start = length - last - room if self.left else first
        return np.r_[:first, start : start + room, length - last : length][: self.max_length]

    def nothing_left(self) -> None:
        """Counts as dropped what `fits` counted as truncated, for the cut left nothing to learn."""
        self.truncated -= 1
        self.dropped += 1

    def add(self, row: int, sequences: Sequence[Any], labels: Any = None, **extras: Sequence[Any]) -> None:
        """One example: its sequences of ids, its labels, and per sequence what is aligned with its tokens.

        Raises:
            UserError: a sequence without a token.
        """
        if any(len(tokens) == 0 for tokens in sequences):
            raise UserError(f"{self.place(row)}: the text gives no token; give it words")
        self._sequences += [np.asarray(tokens, np.int32) for tokens in sequences]
        for name, values in extras.items():
            self._extras.setdefault(name, []).extend(np.asarray(x, np.int32) for x in values)
        self._labels.append(labels)
        self._rows.append(row)

    def encoded(self, by: LabelledBy, pad_id: int | None, dtype: Any = np.int32) -> Encoded:
        """What was gathered; `dtype` of labels by row.

        Raises:
            UserError: nothing was.
        """
        if not self._rows:
            bad = self.bad.messages
            reasons = [f"{self.dropped} dropped at max_length {self.max_length}"] if self.dropped else []
            reasons += [f"the first bad row is {bad[0]}"] if bad else []
            raise UserError(f"no example left: {'; '.join(reasons) or 'there was none'}")
        labels = {
            "none": lambda: np.zeros(0, np.int32),
            "row": lambda: np.asarray(self._labels, dtype),
        }.get(by, lambda: np.concatenate(self._labels).astype(np.int32))  # fmt: skip
        return Encoded(
            by=by,
            tokens=np.concatenate(self._sequences),
            offsets=np.cumsum([0, *map(len, self._sequences)], dtype=np.int64),
            labels=labels(),
            rows=np.asarray(self._rows, np.int32),
            pad_id=pad_id or 0,
            dropped=self.dropped,
            truncated=self.truncated,
            group=len(self._sequences) // len(self._rows),
            extras={name: np.concatenate(values) for name, values in self._extras.items()},
        )
