"""The next token of a row of logits: greedy, or drawn from the temperature, top-k and top-p distribution."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ftjax.errors import UserError


class Sampling(NamedTuple):
    """How to choose; hashable, a static argument. `top_k` 0 and `top_p` 1 keep the whole vocabulary."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def check(how: Sampling) -> None:
    """UserError for a value out of range, or one that greedy decoding would ignore."""
    if not how.do_sample and how != Sampling():
        raise UserError(f"temperature, top_k and top_p need do_sample=True, got {how}")
    for name, value, right, fits in (
        ("temperature", how.temperature, "> 0", how.temperature > 0),
        ("top_k", how.top_k, ">= 0", how.top_k >= 0),
        ("top_p", how.top_p, "in (0, 1]", 0 < how.top_p <= 1),
    ):
        if not fits:
            raise UserError(f"{name}={value} must be {right}")


def filtered(logits: jax.Array, how: Sampling) -> tuple[jax.Array, jax.Array | None]:
    """Log-probabilities to draw from, up to a constant, and the ids they belong to (None: all in order).

    Temperature first, then the k likeliest, then of those the fewest that hold `top_p` of the mass (Holtzman et al.
    2019): the order of `transformers`. `[B, V]` -> `[B, k]`, `[B, k]`.
    """
    logits = logits / how.temperature
    if not how.top_k and how.top_p == 1:
        return logits, None
    logits, ids = jax.lax.top_k(logits, min(how.top_k or logits.shape[-1], logits.shape[-1]))
    if how.top_p < 1:
        probs = jax.nn.softmax(logits, -1)
        before = jnp.cumsum(probs, -1) - probs
        logits = jnp.where(before < how.top_p, logits, -jnp.inf)
    return logits, ids


def choose(logits: jax.Array, how: Sampling, keys: jax.Array, step: jax.Array | int) -> jax.Array:
    """Token ids `[B]` from logits `[B, V]`; `keys [B]` are the rows' own, so that a draw depends on no other row."""
    if not how.do_sample:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    kept, ids = filtered(logits, how)
    drawn = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row))(keys, kept)
    if ids is not None:
        drawn = jnp.take_along_axis(ids, drawn[:, None], 1)[:, 0]
    return drawn.astype(jnp.int32)
