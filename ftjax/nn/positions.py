"""Where tokens are: rotary embeddings, and the relative positions of T5 and DeBERTa."""

import math

import jax
import jax.numpy as jnp

from ftjax.nn.config import RopeScaling


def rotary(
    positions: jax.Array, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """cos and sin `[B, T, hd / 2]` of rotary position embedding (Su et al. 2021), fp32."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None:
        slow = frequency / scaling.factor
        if scaling.kind == "llama3":
            # Full turns within the original context: many keep their speed, few are slowed, a ramp in between.
            turns = scaling.original_positions * frequency / (2 * math.pi)
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            keep = jnp.clip((turns - low) / (high - low), 0, 1)
            slow = keep * frequency + (1 - keep) * slow
        frequency = slow
    angle = positions[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates `[B, T, H, hd]`, pairing dimension i with i + hd / 2 (the Llama layout)."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def t5_bucket(offset: jax.Array, causal: bool, buckets: int, distance: int) -> jax.Array:
    """The bucket of key position - query position: half exact, half logarithmic up to `distance` (Raffel et al. 2020,
    section 2.1). A causal model has none for later keys, an encoder as many as for earlier ones."""
    later = jnp.zeros_like(offset)
    if causal:
        offset = jnp.maximum(-offset, 0)
    else:
        buckets //= 2
        later = jnp.where(offset > 0, buckets, 0)
        offset = jnp.abs(offset)
    exact = buckets // 2
    ratio = jnp.log(jnp.maximum(offset, 1).astype(jnp.float32) / exact) / math.log(distance / exact)
    far = jnp.minimum(exact + (ratio * (buckets - exact)).astype(jnp.int32), buckets - 1)
    return later + jnp.where(offset < exact, offset, far)


def deberta_bucket(offset: jax.Array, buckets: int, distance: int) -> jax.Array:
    """The row, of `2 * buckets`, of query position - key position: exact to half of them either way, then logarithmic
    up to `distance` (He et al. 2021, DeBERTa v2's reference implementation)."""
    middle = buckets // 2
    size = jnp.abs(offset).astype(jnp.float32)
    ratio = jnp.log(jnp.maximum(size, middle) / middle) / jnp.log(jnp.float32((distance - 1) / middle))
    far = jnp.sign(offset) * (jnp.ceil(ratio * (middle - 1)).astype(jnp.int32) + middle)
    bucket = jnp.where(size <= middle, offset, far)
    return jnp.clip(bucket + buckets, 0, 2 * buckets - 1)
