"""The step on a small least-squares problem, and on models where the model matters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftjax import tree
from ftjax.objectives.base import Sums
from ftjax.objectives.lm import causal_lm
from ftjax.train.step import init_state, make_step

RNG = np.random.default_rng(0)
VALUES = {"w": jnp.asarray(RNG.standard_normal((4, 3)), jnp.float32), "frozen": jnp.full(3, 0.5)}
LABELS = {"w": "x", "frozen": tree.FREEZE}
BATCH = {"x": RNG.standard_normal((8, 4)).astype(np.float32), "n": np.array([1, 0, 3, 2, 0, 0, 5, 1])}
KEY = jax.random.key(0)


def loss(variables, batch, key):
    """Rows weigh `n`, as if they had so many tokens."""
    error = batch["x"] @ variables["w"] - variables["frozen"]
    return Sums((batch["n"][:, None] * error**2).sum(), batch["n"].sum().astype(jnp.float32), {})


def run(steps=1, micro_batches=1, tx=None, batch=BATCH, loss=loss):
    tx = tx or optax.adam(0.1)
    train, frozen = tree.split(VALUES, LABELS)
    state, step = init_state(train, tx), jax.jit(make_step(loss, tx, micro_batches))
    for _ in range(steps):
        state, metrics = step(state, frozen, batch, KEY)
    return state, metrics


@pytest.mark.parametrize("name", ["gpt2", "llama"])  # the first with its head tied
def test_gradients_of_the_split_are_those_of_the_whole_tree(make, examples, lay, close, name):
    made = make(name, scan_unroll=1)
    objective, (batch, _) = causal_lm(made.model), lay([[e] for e in examples(6, 3)], 8)
    variables = {"params": made.params, "adapters": {}}
    labels = tree.label(variables, [(r"attn/[qo]/kernel|norm/|embedding", "x"), ("", tree.FREEZE)])

    @jax.jit
    def gradients(train, frozen):
        whole = jax.grad(lambda v: objective.loss(v, batch, None).loss)(tree.join(train, frozen))
        return whole, jax.grad(lambda t: objective.loss(tree.join(t, frozen), batch, None).loss)(train)

    whole, part = gradients(*tree.split(variables, labels))
    close(part, tree.split(whole, labels)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_micro_batches_of_unequal_weight_are_one_batch(close, k):
    close(run(3, k), run(3))


def test_micro_batches_of_a_model_are_one_batch(make, examples, lay, close):
    made = make("gpt2", scan_unroll=1, num_layers=1)
    batch, _ = lay([[e] for e in examples(8, 2, 5, 3)], 8)
    variables = {"params": made.params, "adapters": {}}
    train, frozen = tree.split(variables, tree.label(variables, [("final_norm", "x"), ("", tree.FREEZE)]))
    tx, loss = optax.sgd(0.1), causal_lm(made.model).loss
    results = [jax.jit(make_step(loss, tx, k))(init_state(train, tx), frozen, batch, KEY) for k in (1, 2)]
    close(*results, rtol=1e-4, atol=1e-6)


def test_metrics_are_means_and_the_norm_of_the_mean_gradient():
    _, metrics = run()
    sums = loss(VALUES, BATCH, None)
    grad = jax.grad(lambda w: loss({**VALUES, "w": w}, BATCH, None).loss / 12)(VALUES["w"])
    np.testing.assert_allclose(metrics["loss"], sums.loss / 12, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grad), rtol=1e-6)
    assert metrics["weight"] == 12 and metrics["finite"]


def test_a_batch_without_labels_moves_nothing_and_is_finite():
    state, metrics = run(batch={**BATCH, "n": np.zeros(8, int)}, tx=optax.sgd(1.0))
    np.testing.assert_array_equal(state["train"]["w"], VALUES["w"])
    assert metrics["loss"] == 0 and metrics["finite"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("k", [1, 2])
def test_a_step_that_is_not_finite_leaves_the_state_bit_equal(close, bad, k):
    tx = optax.adam(0.1)
    train, frozen = tree.split(VALUES, LABELS)
    step = jax.jit(make_step(loss, tx, k))
    state, _ = step(init_state(train, tx), frozen, BATCH, KEY)
    poisoned = {**BATCH, "x": np.where(np.arange(8)[:, None] == 6, bad, BATCH["x"]).astype(np.float32)}
    after, metrics = step(state, frozen, poisoned, KEY)
    close(after, state, bits=True)
    assert not metrics["finite"]
    assert step(after, frozen, BATCH, KEY)[1]["finite"]


def test_a_gradient_that_is_not_finite_counts_though_the_loss_is():
    def root(variables, batch, key):
        return Sums(jnp.sqrt(jnp.abs(variables["w"]).sum() * 0), jnp.ones(()), {})

    state, metrics = run(loss=root)
    assert metrics["loss"] == 0 and not metrics["finite"]
    np.testing.assert_array_equal(state["train"]["w"], VALUES["w"])


def test_each_step_and_each_micro_batch_has_a_key_of_its_own():
    def noisy(variables, batch, key):
        return Sums(jax.random.normal(key) + 0 * variables["w"].sum(), jnp.ones(()), {})

    still = optax.sgd(0.0)
    losses = [float(run(steps, tx=still, loss=noisy)[1]["loss"]) for steps in (1, 2, 2)]
    assert losses[0] != losses[1] == losses[2]
    normal = lambda *at: float(jax.random.normal(fold(*at)))  # noqa: E731

    def fold(*at):
        key = KEY
        for i in at:
            key = jax.random.fold_in(key, i)
        return key

    assert losses[0] == pytest.approx(normal(0))
    two = float(run(1, 2, tx=still, loss=noisy)[1]["loss"])
    assert two == pytest.approx((normal(0, 0) + normal(0, 1)) / 2)
