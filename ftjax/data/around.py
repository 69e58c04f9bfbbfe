"""Tokens that a method puts around every example's text: anchor words, and virtual ids that its prompt replaces."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ftjax.data.encoded import IGNORED, Encoded
from ftjax.errors import UserError


class Around(NamedTuple):
    """Ids before and after the text, and left and right of the mask in it. `inside`: after an opening special token; a
    closing one stays last in any case."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    inside: bool
    opening: frozenset[int]  # ids of [CLS], bos
    closing: frozenset[int]  # ids of [SEP], eos
    left: tuple[int, ...] = ()
    right: tuple[int, ...] = ()
    mask: int | None = None

    @property
    def added(self) -> tuple[int, ...]:
        """What is added to a text, in its order."""
        return self.before + self.left + self.right + self.after

    @property
    def size(self) -> int:
        """Tokens added to a text."""
        return len(self.added)

    def prompt(self, tokens: Sequence[int]) -> list[int]:
        """A prompt to continue, with them."""
        start = self.start(tokens)
        return [*tokens[:start], *self.before, *tokens[start:], *self.after]

    def closed(self, tokens: Sequence[int]) -> list[int]:
        """A whole text, as encoders read it, with them: a closing special token stays last."""
        ids = np.asarray(tokens)
        return np.insert(ids, self.places(ids, *self.edges(ids, None)), self.added).tolist()

    def places(self, tokens: np.ndarray, first: int, last: int) -> list[int]:
        """Before which of a sequence's tokens each of `added` goes, its text being tokens[first:last].

        Raises:
          UserError: a text without the one gap that something goes next to.
        """
        if not self.fits(tokens):
            raise UserError(
                "method.template: there is not one gap in this text for {mask}; write {text}, or take an objective of"
                " gaps (cloze, words) and a masked model"
            )
        gap = self._gap(tokens) if self.left or self.right else [first, first]
        sides = (self.before, self.left, self.right, self.after)
        return np.repeat([first, *gap, max(first, last)], [len(side) for side in sides]).tolist()

    def fits(self, tokens: np.ndarray) -> bool:
        """Whether a text has the one gap, of masks side by side, that something goes next to."""
        return not (self.left or self.right) or len(self._gap(tokens)) == 2

    def _gap(self, tokens: np.ndarray) -> list[int]:
        masks = np.flatnonzero(tokens == self.mask)
        one = len(masks) and masks[-1] - masks[0] < len(masks)
        return [int(masks[0]), int(masks[-1]) + 1] if one else []

    def start(self, tokens: Sequence[int] | np.ndarray) -> int:
        """Where what comes before the text goes."""
        return int(self.inside and len(tokens) > 0 and int(tokens[0]) in self.opening)

    def edges(self, tokens: np.ndarray, labels: np.ndarray | None) -> tuple[int, int]:
        """Where a sequence's text starts and ends: at its completion where it has labels to predict, else before a
        closing special token."""
        closed = int(len(tokens) > 0 and int(tokens[-1]) in self.closing)
        end = len(tokens) - closed if labels is None else int(np.argmax(labels != IGNORED))
        return min(self.start(tokens), end), end


def around(
    before: Sequence[int], after: Sequence[int], inside: bool, tokenizer: Any, left: Sequence[int] = (),
    right: Sequence[int] = (),
) -> Around:  # fmt: skip
    """The pieces with the tokenizer's special tokens."""
    ids = lambda *names: frozenset(i for n in names if (i := getattr(tokenizer, n)) is not None)  # noqa: E731
    opening, closing = ids("cls_token_id", "bos_token_id"), ids("sep_token_id", "eos_token_id")
    mask = tokenizer.mask_token_id
    return Around(tuple(before), tuple(after), inside, opening, closing, tuple(left), tuple(right), mask)


def insert(encoded: Encoded, pieces: Around, chunked: bool) -> Encoded:
    """The examples with the pieces around their texts (an encoder-decoder's: around what its encoder reads), none of
    them in the loss.

    Raises:
      UserError: something after the text where the examples are chunks of documents, all of whose tokens are predicted,
        or next to a gap where a text has none.
    """
    chunked = chunked and encoded.by == "next"  # else a chunk has special tokens, as any text
    if chunked and pieces.after:
        raise UserError("method.template: this task has no prompt that ends before its answer; put all before {text}")
    if encoded.source is not None:
        return replace(encoded, source=insert(encoded.source, pieces, chunked))
    aligned = {"tokens": encoded.tokens, **encoded.extras, **encoded.asides}
    if encoded.by in ("next", "token"):
        aligned["labels"] = encoded.labels
    out: dict[str, list[np.ndarray]] = {name: [] for name in aligned}
    for start, end in zip(encoded.offsets[:-1], encoded.offsets[1:]):
        mine = {name: values[start:end] for name, values in aligned.items()}
        tokens, labels = mine["tokens"], mine.get("labels") if encoded.by == "next" else None
        first, last = (pieces.start(tokens), 0) if chunked else pieces.edges(tokens, labels)
        where = pieces.places(tokens, first, last)
        for name, values in mine.items():
            new = {
                "tokens": pieces.added,
                "labels": IGNORED,
                "token_type_ids": values[np.minimum(where, len(values) - 1)],
            }
            out[name].append(np.insert(values, where, new.get(name, 0)))
    flat = {name: np.concatenate(values).astype(np.int32) for name, values in out.items()}
    return replace(
        encoded,
        tokens=flat.pop("tokens"),
        offsets=np.cumsum([0, *map(len, out["tokens"])], dtype=np.int64),
        labels=flat.pop("labels", encoded.labels),
        extras={name: flat[name] for name in encoded.extras},
        asides={name: flat[name] for name in encoded.asides},
    )
