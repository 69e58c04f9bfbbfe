"""Prompts of all lengths, decoded in batches of few shapes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ftjax.decode.generate import finish, request
from ftjax.errors import UserError
from ftjax.models.transformer import Transformer

WINDOW = 8  # batches whose prompts are shared out by length; more would leave a file for longer as it is


class Continuation(NamedTuple):
    """What continues a prompt, without its end token, and its score (see `Continuations`)."""

    tokens: list[int]
    score: float
    text: str  # up to a stop string; empty without `stops`, which say how tokens are read
    ended: bool  # by an end token or a stop string; else there was room for no more


def bucket(length: int, smallest: int = 16, largest: int | None = None) -> int:
    """The padded length of a prompt: the next power of two, so that n lengths compile log n times; no more than
    `largest`, where no prompt is longer."""
    size = max(smallest, 1 << (length - 1).bit_length())
    return size if largest is None else min(size, largest)


def lay(prompts: Sequence[Sequence[int]], rows: int, largest: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask `[rows, T]` of the prompts, padded left to the longest one's `bucket`; the first fills up the
    rows."""
    length = bucket(max(map(len, prompts)), largest=largest)
    ids = np.zeros((rows, length), np.int32)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate([*prompts, *[prompts[0]] * (rows - len(prompts))]):
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    return ids, mask


def generate_batches(
    model: Transformer, params: Any, prompts: Mapping[int, Sequence[int]], *, batch_size: int, **options: Any
) -> dict[int, list[int]]:
    """The new tokens of each prompt (the best or first sequence) by its number, without the end token.

    Decodes prompts of like length together. Arguments and errors as `continue_batches`.
    """
    numbered = sorted(prompts.items(), key=lambda pair: len(pair[1]))
    results = continue_batches(model, params, numbered, batch_size=batch_size, **options)
    return {number: sequences[0].tokens for number, sequences in results}


def continue_batches(
    model: Transformer, params: Any, prompts: Sequence[tuple[int, Sequence[int]]], *, batch_size: int, **options: Any
) -> Iterator[tuple[int, list[Continuation]]]:
    """The continuations of numbered prompts, in the order given, window by window.

    Of a window, `WINDOW` batches, prompts of like length are decoded together: every batch has `batch_size` rows, the
    last one filled up, and the bucket of its longest prompt. `options` go to `request` (adapters, max_new_tokens, ...,
    seed); a prompt draws from (seed, its number), whatever its batch.

    Raises:
      UserError: as `request`, when the first batch is asked for; an empty prompt is named by its number.
    """
    empty = [str(i) for i, prompt in prompts if not len(prompt)]
    if empty:
        raise UserError(f"prompts without a token: {', '.join(empty)}")
    for first in range(0, len(prompts), WINDOW * batch_size):
        window = prompts[first : first + WINDOW * batch_size]
        by_length, made = sorted(window, key=lambda pair: len(pair[1])), {}
        for at in range(0, len(window), batch_size):
            numbers, chunk = zip(*by_length[at : at + batch_size])
            examples = [*numbers, *[numbers[0]] * (batch_size - len(numbers))]
            asked = request(model, params, *lay(chunk, batch_size), example_ids=examples, **options)
            for row, (number, *sequences) in enumerate(zip(numbers, *finish(asked))):
                made[number], reader = [], asked.readers[row] if asked.readers else None
                for tokens, length, score in zip(*sequences):
                    kept = asked.cut(tokens[:length])
                    ended = len(kept) < asked.new or bool(reader and reader.length(kept, len(kept) - 1))
                    text = "" if reader is None else reader.text(kept)
                    made[number].append(Continuation(kept, float(score), text, ended))
        yield from ((number, made[number]) for number, _ in window)
