"""Prompts of all lengths, decoded in batches of few shapes."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ftjax.decode.generate import continuations
from ftjax.errors import UserError
from ftjax.models.transformer import Transformer


class Continuation(NamedTuple):
    """What continues a prompt, without its end token, and its score (see `Continuations`)."""

    tokens: list[int]
    score: float


def bucket(length: int, smallest: int = 16) -> int:
    """The padded length of a prompt: the next power of two, so that n lengths compile log n times."""
    return max(smallest, 1 << (length - 1).bit_length())


def generate_batches(
    model: Transformer, params: Any, prompts: Sequence[Sequence[int]], *, batch_size: int, **options: Any
) -> list[list[int]]:
    """The new tokens of each prompt (the best or first sequence), in the order given, without the end token.

    Decodes prompts of like length together. Arguments and errors as `continue_batches`.
    """
    numbered = sorted(enumerate(prompts), key=lambda pair: len(pair[1]))
    results = dict(continue_batches(model, params, numbered, batch_size=batch_size, **options))
    return [results[i][0].tokens for i in range(len(prompts))]


def continue_batches(
    model: Transformer,
    params: Any,
    prompts: Sequence[tuple[int, Sequence[int]]],
    *,
    batch_size: int,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    **options: Any,
) -> Iterator[tuple[int, list[Continuation]]]:
    """The continuations of numbered prompts, in the order given, batch by batch.

    Every batch has `batch_size` rows, the last one filled up, and the bucket of its longest prompt. `options` go to
    `continuations` (adapters, max_new_tokens, ..., seed); a prompt draws from (seed, its number), whatever its batch.

    Raises:
      UserError: as `continuations`; an empty prompt is named by its number.
    """
    empty = [str(i) for i, prompt in prompts if not len(prompt)]
    if empty:
        raise UserError(f"prompts without a token: {', '.join(empty)}")
    ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or ())
    for at in range(0, len(prompts), batch_size):
        chunk = prompts[at : at + batch_size]
        rows = [*chunk, *[chunk[0]] * (batch_size - len(chunk))]
        length = bucket(max(len(prompt) for _, prompt in chunk))
        ids = np.full((batch_size, length), pad_token_id, np.int32)
        mask = np.zeros_like(ids)
        for row, (_, prompt) in enumerate(rows):
            ids[row, length - len(prompt) :] = prompt
            mask[row, length - len(prompt) :] = 1
        found = continuations(
            model, params, ids, mask, eos_token_id=eos_token_id, pad_token_id=pad_token_id,
            example_ids=[i for i, _ in rows], **options,
        )  # fmt: skip
        for (i, _), *sequences in zip(chunk, *found):
            yield (
                i,
                [
                    Continuation(tokens[: n - (n > 0 and tokens[n - 1] in ends)].tolist(), float(score))
                    for tokens, n, score in zip(*sequences)
                ],
            )
