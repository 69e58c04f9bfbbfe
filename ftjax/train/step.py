"""The train step: a pure function of (state, frozen, batch, key)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ftjax import tree
from ftjax.objectives.base import Sums

Tree = Any
Loss = Callable[[Tree, Mapping[str, jax.Array], jax.Array | None], Sums]
State = dict[str, Any]  # train: the trainable leaves; opt: the optimizer's state; step: int32 []


def init_state(train: Tree, tx: optax.GradientTransformation) -> State:
    """The state before the first step."""
    return {"train": train, "opt": tx.init(train), "step": jnp.zeros((), jnp.int32)}


def make_step(loss: Loss, tx: optax.GradientTransformation, micro_batches: int = 1) -> Callable[..., Any]:
    """`step(state, frozen, batch, key) -> (state, metrics)`.

    `loss(variables, batch, key)` gives sums; only `state["train"]` is differentiated. Over k micro-batches (every
    k-th row) gradients and denominators are summed, and divided once. A step whose loss or gradient is not finite
    changes nothing but is reported (`finite` 0), so that the last good state survives.
    Metrics: loss (mean), grad_norm, weight, finite, has_gradient, a bool per trainable leaf, and the loss's own.
    """
    tx = optax.with_extra_args_support(tx)

    def gradients(train: Tree, frozen: Tree, batch: Mapping[str, jax.Array], key: jax.Array) -> tuple[Any, ...]:
        def total(train: Tree) -> tuple[jax.Array, Any]:
            sums = loss(tree.join(train, frozen), batch, key)
            return sums.loss, (sums.weight, sums.metrics)

        (value, (weight, more)), grads = jax.value_and_grad(total, has_aux=True)(train)
        return value, weight, grads, more

    def accumulated(train: Tree, frozen: Tree, batch: Mapping[str, jax.Array], key: jax.Array) -> tuple[Any, ...]:
        # Strided rows (b, b + k, ...) keep each micro-batch spread over the devices of a sharded batch.
        micro = jax.tree.map(lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), dict(batch))
        zero = jax.eval_shape(gradients, train, frozen, jax.tree.map(lambda x: x[0], micro), key)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), zero)

        def body(total: Any, x: Any) -> tuple[Any, None]:
            i, part = x
            return jax.tree.map(jnp.add, total, gradients(train, frozen, part, jax.random.fold_in(key, i))), None

        return jax.lax.scan(body, zero, (jnp.arange(micro_batches), micro))[0]

    def step(state: State, frozen: Tree, batch: Mapping[str, jax.Array], key: jax.Array) -> tuple[State, Any]:
        key = jax.random.fold_in(key, state["step"])
        compute = gradients if micro_batches == 1 else accumulated
        value, weight, grads, more = compute(state["train"], frozen, batch, key)
        denominator = jnp.maximum(weight, 1.0)
        squares = jnp.stack([jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)])
        norm = jnp.sqrt(squares.sum()) / denominator
        finite = jnp.isfinite(value) & jnp.isfinite(norm)

        def update(state: State, grads: Tree) -> State:
            grads = jax.tree.map(lambda g: (g * (1 / denominator)).astype(g.dtype), grads)
            updates, opt = tx.update(grads, state["opt"], state["train"], grad_norm=norm)
            return {"train": optax.apply_updates(state["train"], updates), "opt": opt, "step": state["step"] + 1}

        # A select per leaf would keep the old state alive: on CPU copies of all moments, and half of the update's time.
        new = jax.lax.cond(finite, update, lambda state, grads: state, state, grads)
        metrics = {"loss": value / denominator, "grad_norm": norm, "weight": weight, "finite": finite}
        metrics |= {name: total / jnp.maximum(count, 1) for name, (total, count) in more.items()}
        return new, metrics | {"has_gradient": squares > 0}

    return step
