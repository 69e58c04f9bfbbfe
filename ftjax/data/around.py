"""Tokens that a method puts around every example's text: anchor words, and virtual ids that its prompt replaces."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ftjax.data.encoded import IGNORED, Encoded
from ftjax.errors import UserError


class Around(NamedTuple):
    """Ids before and after the text. `inside`: after an opening special token; a closing one stays last in any case."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    inside: bool
    opening: frozenset[int]  # ids of [CLS], bos
    closing: frozenset[int]  # ids of [SEP], eos

    @property
    def size(self) -> int:
        """Tokens added to a text."""
        return len(self.before) + len(self.after)

    def prompt(self, tokens: Sequence[int]) -> list[int]:
        """A prompt to continue, with them."""
        start = self._start(tokens)
        return [*tokens[:start], *self.before, *tokens[start:], *self.after]

    def _start(self, tokens: Sequence[int] | np.ndarray) -> int:
        return int(self.inside and len(tokens) > 0 and int(tokens[0]) in self.opening)

    def edges(self, tokens: np.ndarray, labels: np.ndarray, lm: bool) -> tuple[int, int]:
        """Where the text of an example starts and ends: at its completion, or before a closing special token."""
        closed = int(int(tokens[-1]) in self.closing)
        end = int(np.argmax(labels != IGNORED)) if lm else len(tokens) - closed
        return min(self._start(tokens), end), end


def around(before: Sequence[int], after: Sequence[int], inside: bool, tokenizer: Any) -> Around:
    """The pieces with the tokenizer's special tokens."""
    ids = lambda *names: frozenset(i for n in names if (i := getattr(tokenizer, n)) is not None)  # noqa: E731
    opening, closing = ids("cls_token_id", "bos_token_id"), ids("sep_token_id", "eos_token_id")
    return Around(tuple(before), tuple(after), inside, opening, closing)


def insert(encoded: Encoded, pieces: Around, chunked: bool) -> Encoded:
    """The examples with the pieces around their texts, none of them in the loss.

    Raises:
      UserError: something after the text where the examples are chunks of documents, all of whose tokens are predicted.
    """
    if chunked and pieces.after:
        raise UserError("method.template: this task has no prompt that ends before its answer; put all before {text}")
    lm = encoded.objective == "lm"
    tokens, labels, types = [], [], []
    for i in range(len(encoded)):
        example = encoded[i]
        start, end = (0, 0) if chunked else pieces.edges(example.tokens, example.labels, lm)
        where = [start] * len(pieces.before) + [max(start, end)] * len(pieces.after)
        new = [*pieces.before, *pieces.after]
        tokens.append(np.insert(example.tokens, where, new))
        if lm:
            labels.append(np.insert(example.labels, where, [IGNORED] * len(new)))
        if encoded.token_type_ids is not None:
            mine = encoded.token_type_ids[encoded.offsets[i] : encoded.offsets[i + 1]]
            types.append(np.insert(mine, where, mine[np.minimum(where, len(mine) - 1)]))
    return replace(
        encoded,
        tokens=np.concatenate(tokens).astype(np.int32),
        offsets=np.cumsum([0, *map(len, tokens)], dtype=np.int64),
        labels=np.concatenate(labels).astype(np.int32) if lm else encoded.labels,
        token_type_ids=np.concatenate(types).astype(np.int32) if types else None,
    )
