"""Cross-entropy over a vocabulary, in chunks: neither `[B, T, V]` logits nor their gradient ever exist whole."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.nn.kernels import spread_rows
from ftjax.objectives.base import IGNORE

Tree = Any
ChunkLoss = Callable[..., tuple[jax.Array, Any]]


def cross_entropy(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """(loss, negative log-likelihood) per label, 0 where ignored.

    loss = (1 - eps) nll + eps mean_v(-log p_v) + z logsumexp^2 (Szegedy et al. 2015; PaLM, sec. 5).

    Args:
      logits: fp32 `[..., V]`; labels: int `[...]`, -100 ignored.
    """
    log_z = jax.nn.logsumexp(logits, -1)
    picked = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    nll = log_z - picked
    loss = nll
    if label_smoothing:
        loss = (1 - label_smoothing) * nll + label_smoothing * (log_z - logits.mean(-1))
    if z_loss:
        loss = loss + z_loss * jnp.square(log_z)
    real = labels != IGNORE
    return jnp.where(real, loss, 0), jnp.where(real, nll, 0)


def places_at_a_time(chunk: int, batch: int) -> int:
    """How many places of each row make `chunk` positions on a device, of a batch spread over the context's mesh. Were
    they counted over all devices, a chunk would be a few positions on each of many, and each chunk gathers the head."""
    return max(chunk * spread_rows(batch)[1] // batch, 1)


def chunked(
    f: ChunkLoss, variables: Tree, hidden: jax.Array, labels: jax.Array, chunk: int, *extras: Tree
) -> tuple[jax.Array, Any]:
    """Sum over chunks of positions of `f(variables, hidden [B, m, D], labels [B, m], first, *extras)`, which gives
    (loss, metric sums) of the places `first` to `first + m` of each row.

    The loss is a scalar, so its gradient needs no cotangent: each chunk's is taken in the forward pass, while its
    logits are there, and only scaled in the backward pass. Against recomputing, that saves one product with the
    vocabulary in three; gradients of frozen variables are not computed.

    Args:
      hidden: `[B, M, D]`; labels: `[B, M]`, -100 ignored.
      chunk: positions of a device whose logits exist at a time. What `f` draws must be by place, or another mesh would
        draw otherwise.
      extras: trees of `[B, M, ...]` that are cut in the same way (0 past the end), and not differentiated.
    """
    batch, length = labels.shape
    size = min(places_at_a_time(chunk, batch), length)
    count = -(-length // size)

    def pieces(x: jax.Array, filler: int = 0) -> jax.Array:
        pad = [(0, 0), (0, count * size - length), *[(0, 0)] * (x.ndim - 2)]
        return jnp.pad(x, pad, constant_values=filler).reshape(batch, count, size, *x.shape[2:]).swapaxes(0, 1)

    return _sum_chunks(
        f, variables, pieces(hidden), (pieces(labels, IGNORE), size * jnp.arange(count), *jax.tree.map(pieces, extras))
    )


def _add(a: Tree, b: Tree) -> Tree:
    return jax.tree.map(jnp.add, a, b)


def _scan_sum(step: Callable[[Any], tuple[Tree, Tree]], xs: Tree) -> tuple[Tree, Tree]:
    """Sums `step(x)[0]` and stacks `step(x)[1]` over the leading axis of xs."""
    first = jax.tree.map(lambda x: x[0], xs)
    if jax.tree.leaves(xs)[0].shape[0] == 1:
        total, out = step(first)
        return total, jax.tree.map(lambda x: x[None], out)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(step, first)[0])

    def body(total: Tree, x: Any) -> tuple[Tree, Tree]:
        more, out = step(x)
        return _add(total, more), out

    return jax.lax.scan(body, zero, xs)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_chunks(f: ChunkLoss, variables: Tree, hidden: jax.Array, rest: tuple[Any, ...]) -> tuple[jax.Array, Any]:
    return _scan_sum(lambda x: (f(variables, *x), ()), (hidden, *rest))[0]


def _forward(f: ChunkLoss, variables: Tree, hidden: Any, rest: Any) -> tuple[Any, Any]:
    train = jax.tree.map(lambda v: v.value if v.perturbed else None, variables)
    frozen = jax.tree.map(lambda v: None if v.perturbed else v.value, variables)

    def loss(train: Tree, *x: Any) -> tuple[jax.Array, Any]:
        return f(jax.tree.map(lambda a, b: b if a is None else a, train, frozen, is_leaf=lambda x: x is None), *x)

    def step(x: tuple[Any, ...]) -> tuple[Tree, jax.Array]:
        value, (d_train, d_hidden) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(train, *x)
        return (value, jax.tree.map(lambda g: g.astype(jnp.float32), d_train)), d_hidden

    (value, d_train), d_hidden = _scan_sum(step, (hidden.value, *jax.tree.map(lambda x: x.value, rest)))
    like = jax.tree.map(lambda v: v.value if v.perturbed else None, variables)
    return value, (d_train, d_hidden, like)


def _backward(f: ChunkLoss, residuals: Any, cotangent: Any) -> tuple[Tree, jax.Array, None]:
    d_train, d_hidden, like = residuals
    g = cotangent[0]
    if isinstance(g, jax.custom_derivatives.SymbolicZero):
        return jax.tree.map(jnp.zeros_like, like), jnp.zeros_like(d_hidden), None
    return (
        jax.tree.map(lambda d, x: (g * d).astype(x.dtype), d_train, like),
        (g * d_hidden).astype(d_hidden.dtype),
        None,
    )


_sum_chunks.defvjp(_forward, _backward, symbolic_zeros=True)
