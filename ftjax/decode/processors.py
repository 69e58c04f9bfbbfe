"""What is done to the scores of the next token before one is chosen: pure functions of them and the tokens so far."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ftjax.decode.options import Options


class History(NamedTuple):
    """The tokens so far, those that count: from `start` on, before `end`. Padding never does, nor what is to come."""

    tokens: jax.Array  # [R, S]
    start: jax.Array  # [R]
    end: jax.Array  # []


def history(ids: jax.Array, mask: jax.Array, new: jax.Array, step: jax.Array | int) -> History:
    """Of prompts `[R, T]`, padded left, and `step` of their new tokens `[R, N]`."""
    t = ids.shape[1]
    return History(jnp.concatenate([ids, new], 1), t - mask.sum(1), jnp.asarray(t + step))


def process(
    scores: jax.Array, seen: History, step: jax.Array | int, options: Options, ends: tuple[int, ...]
) -> jax.Array:
    """Scores `[R, V]` of the token after `step` new ones, in the order of `transformers`."""
    if options.repetition_penalty != 1:
        scores = repetition_penalty(scores, seen, options.repetition_penalty)
    if options.no_repeat_ngram_size:
        scores = no_repeat_ngram(scores, seen, options.no_repeat_ngram_size)
    if options.min_new_tokens:
        scores = min_new_tokens(scores, step, options.min_new_tokens, ends)
    if options.forced_bos_token_id is not None:
        scores = jnp.where(step == 0, only(scores, options.forced_bos_token_id), scores)
    if options.forced_eos_token_id is not None:
        last = seen.end == seen.tokens.shape[1] - 1
        scores = jnp.where(last, only(scores, options.forced_eos_token_id), scores)
    return scores


def repetition_penalty(scores: jax.Array, seen: History, penalty: float) -> jax.Array:
    """Scores of tokens that were seen divided by `penalty`, negative ones multiplied (Keskar et al. 2019)."""
    at = jnp.arange(seen.tokens.shape[1])
    counts = (at >= seen.start[:, None]) & (at < seen.end)
    punished = jnp.where(scores < 0, scores * penalty, scores / penalty)
    return jnp.where(_among(seen.tokens, counts, scores.shape[1]), punished, scores)


def no_repeat_ngram(scores: jax.Array, seen: History, size: int) -> jax.Array:
    """-inf for what would end a run of `size` tokens that was there before (Paulus et al. 2017)."""
    tokens, start, end = seen
    count = tokens.shape[1] - size + 1
    if count < 1:
        return scores
    first = jnp.arange(count)
    # a row with fewer than size - 1 tokens has no run that could come again
    banned = (first >= start[:, None]) & (first + size <= end) & (end - size + 1 >= start[:, None])
    for k in range(size - 1):
        latest = jax.lax.dynamic_slice_in_dim(tokens, end - size + 1 + k, 1, 1)
        banned &= tokens[:, k : k + count] == latest
    return jnp.where(_among(tokens[:, size - 1 :], banned, scores.shape[1]), -jnp.inf, scores)


def min_new_tokens(scores: jax.Array, step: jax.Array | int, least: int, ends: tuple[int, ...]) -> jax.Array:
    """-inf for the ends while there are fewer than `least` new tokens."""
    return jnp.where(step < least, scores.at[:, jnp.asarray(ends)].set(-jnp.inf), scores)


def only(scores: jax.Array, tokens: int | tuple[int, ...]) -> jax.Array:
    """0 for these tokens, -inf for all others."""
    return jnp.full_like(scores, -jnp.inf).at[:, jnp.asarray(tokens)].set(0)


def _among(tokens: jax.Array, which: jax.Array, vocab: int) -> jax.Array:
    """Bool `[R, V]`: the ids that `which` picks of the tokens; virtual ids (>= V) are none."""
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros((len(tokens), vocab), bool).at[rows, jnp.where(which, tokens, vocab)].set(True, mode="drop")
