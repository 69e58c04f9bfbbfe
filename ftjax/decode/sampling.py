"""The next token of a row of scores: the likeliest, or drawn from the temperature, top-k, top-p, min-p distribution."""

import math

import jax
import jax.numpy as jnp

from ftjax.decode.options import Options


def filtered(scores: jax.Array, options: Options) -> tuple[jax.Array, jax.Array | None]:
    """Log-probabilities to draw from, up to a constant, and the ids they belong to (None: all in order).

    Temperature, then the k likeliest, of those the fewest that hold `top_p` of the mass (Holtzman et al. 2019), of
    those what `min_p` leaves (Nguyen et al. 2024): the order of `transformers`. `[R, V]` -> `[R, k]`, `[R, k]`.
    """
    scores, ids = scores / options.temperature, None
    if options.top_k or options.top_p < 1:
        scores, ids = jax.lax.top_k(scores, min(options.top_k or scores.shape[-1], scores.shape[-1]))
    if options.top_p < 1:
        probs = jax.nn.softmax(scores, -1)
        before = jnp.cumsum(probs, -1) - probs
        scores = jnp.where(before < options.top_p, scores, -jnp.inf)
    if options.min_p:
        least = scores.max(-1, keepdims=True) + math.log(options.min_p)
        scores = jnp.where(scores >= least, scores, -jnp.inf)
    return scores, ids


def choose(scores: jax.Array, options: Options, keys: jax.Array, step: jax.Array | int) -> jax.Array:
    """Token ids `[R]` from scores `[R, V]`; `keys [R]` are the rows' own, so that a draw depends on no other row."""
    if not options.do_sample:
        return jnp.argmax(scores, -1).astype(jnp.int32)
    kept, ids = filtered(scores, options)
    drawn = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row))(keys, kept)
    if ids is not None:
        drawn = jnp.take_along_axis(ids, drawn[:, None], 1)[:, 0]
    return drawn.astype(jnp.int32)
