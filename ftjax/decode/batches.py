"""Prompts of all lengths, decoded in batches of few shapes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ftjax.decode.generate import generate
from ftjax.errors import UserError
from ftjax.models.transformer import Transformer


def bucket(length: int, smallest: int = 16) -> int:
    """The padded length of a prompt: the next power of two, so that n lengths compile log n times."""
    return max(smallest, 1 << (length - 1).bit_length())


def generate_batches(
    model: Transformer,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    **options: Any,
) -> list[list[int]]:
    """The new tokens of each prompt, in the order given, up to and without its `eos_token_id`.

    Every batch has `batch_size` rows and its bucket's length, the last one of a bucket filled up. `options` go to
    `generate` (adapters, do_sample, ..., seed); a prompt draws from (seed, its number), whatever its batch.

    Raises:
      UserError: as `generate`; an empty prompt is named by its number.
    """
    empty = [str(i) for i, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise UserError(f"prompts without a token: {', '.join(empty)}")
    ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or ())
    buckets: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        buckets.setdefault(bucket(len(prompt)), []).append(i)
    results: dict[int, list[int]] = {}
    for length, members in sorted(buckets.items()):
        for start in range(0, len(members), batch_size):
            chunk = members[start : start + batch_size]
            rows = chunk + chunk[:1] * (batch_size - len(chunk))
            ids = np.full((batch_size, length), pad_token_id, np.int32)
            mask = np.zeros_like(ids)
            for row, i in enumerate(rows):
                ids[row, length - len(prompts[i]) :] = prompts[i]
                mask[row, length - len(prompts[i]) :] = 1
            new = generate(
                model,
                params,
                ids,
                mask,
                max_new_tokens=max_new_tokens,
                eos_token_id=eos_token_id,
                pad_token_id=pad_token_id,
                example_ids=rows,
                **options,
            )[:, length:]
            for i, tokens in zip(chunk, np.asarray(new).tolist()):
                stop = next((k for k, token in enumerate(tokens) if token in ends), len(tokens))
                results[i] = tokens[:stop]
    return [results[i] for i in range(len(prompts))]
