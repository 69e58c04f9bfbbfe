"""Encoded examples, flat in memory, and how they are gathered."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ftjax.errors import UserError

IGNORED = -100  # a label that is not in the loss
Overlong = Literal["error", "drop", "truncate"]


class Example(NamedTuple):
    """`tokens` [n]; `labels` [n] (lm: tokens[t] where in the loss, else -100) or a class's index []."""

    tokens: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Encoded:
    """`n` examples in flat arrays; example i holds tokens[offsets[i]:offsets[i + 1]].

    Attributes:
        objective: lm or classification.
        tokens: int32 [N].
        offsets: int64 [n + 1].
        labels: int32 [N] aligned with the tokens (lm), or class indices [n] (classification).
        rows: int32 [n], the index of each example's text in what was encoded.
        pad_id: filler for empty slots; 0 when the tokenizer has none, for segments mark what is real.
        dropped: texts left out because too long, or because truncation left no label.
        truncated: texts cut to max_length and kept.
        token_type_ids: int32 [N] when there are text pairs, else None.
    """

    objective: Literal["lm", "classification"]
    tokens: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    pad_id: int
    dropped: int = 0
    truncated: int = 0
    token_type_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        part = slice(self.offsets[index], self.offsets[index + 1])
        return Example(self.tokens[part], self.labels[part if self.objective == "lm" else index])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per example, int64 [n]."""
        return np.diff(self.offsets)

    @property
    def label_counts(self) -> np.ndarray:
        """Labels in the loss per lm example, int64 [n]."""
        before = np.concatenate([[0], np.cumsum(self.labels != IGNORED)])
        return before[self.offsets[1:]] - before[self.offsets[:-1]]


class Collector:
    """Gathers examples and counts, then lays them flat."""

    def __init__(self, max_length: int, overlong: Overlong, where: Sequence[str] | None):
        if overlong not in ("error", "drop", "truncate"):
            raise UserError(f"overlong is '{overlong}'; choose error, drop or truncate")
        self.max_length, self.overlong, self.where = max_length, overlong, where
        self.tokens: list[np.ndarray] = []
        self.types: list[np.ndarray] = []
        self.labels: list[Any] = []
        self.rows: list[int] = []
        self.dropped = self.truncated = 0

    def place(self, row: int) -> str:
        return self.where[row] if self.where else f"row {row}"

    def fits(self, row: int, length: int) -> bool:
        """Whether an example needs no cut; otherwise counts it or raises."""
        if length <= self.max_length:
            return True
        if self.overlong == "error":
            raise UserError(
                f"{self.place(row)}: {length} tokens, more than max_length {self.max_length}; "
                "raise task.max_length, or set the overlong policy to drop or truncate"
            )
        self.dropped += self.overlong == "drop"
        self.truncated += self.overlong == "truncate"
        return False

    def add(self, row: int, tokens: Any, labels: Any) -> None:
        self.tokens.append(np.asarray(tokens, np.int32))
        self.labels.append(labels)
        self.rows.append(row)

    def encoded(self, objective: Literal["lm", "classification"], pad_id: int | None) -> Encoded:
        if not self.tokens:
            raise UserError(f"no example left: {self.dropped} dropped at max_length {self.max_length}")
        lm = objective == "lm"
        return Encoded(
            objective=objective,
            tokens=np.concatenate(self.tokens),
            offsets=np.cumsum([0, *map(len, self.tokens)], dtype=np.int64),
            labels=np.concatenate(self.labels) if lm else np.asarray(self.labels, np.int32),
            rows=np.asarray(self.rows, np.int32),
            pad_id=pad_id or 0,
            dropped=self.dropped,
            truncated=self.truncated,
            token_type_ids=np.concatenate(self.types) if self.types else None,
        )
