"""Products of few rows, whose weights lie by outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.nn.core import FEW, Linear, by_outputs, matmul_by_outputs


@pytest.mark.parametrize("rows", [1, 3, FEW - 1, FEW])
def test_a_product_and_its_gradients_are_the_same_by_outputs(rows):
    rng = np.random.default_rng(rows)
    x, table, weight = (rng.standard_normal(size).astype(np.float32) for size in ((rows, 5), (7, 5), (rows, 7)))
    loss = lambda x, table: (weight * matmul_by_outputs(x, table)).sum()  # noqa: E731

    @jax.jit
    def all_of(x, table):
        many = jax.vmap(matmul_by_outputs, (None, 0))(x, jnp.stack([table, -table]))  # of trials side by side
        return matmul_by_outputs(x, table), jax.grad(loss, (0, 1))(x, table), many

    product, grads, many = all_of(x, table)
    np.testing.assert_allclose(product, x @ table.T, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(grads, (weight @ table, weight.T @ x)):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    many = np.asarray(many)
    np.testing.assert_allclose(many[1], -many[0], rtol=1e-6)


def test_weights_lead_where_rows_are_few():
    def first_operand(rows):
        jaxpr = jax.make_jaxpr(matmul_by_outputs)(jnp.ones((rows, 5)), jnp.ones((7, 5)))
        return next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general").invars[0].aval.shape

    assert first_operand(FEW - 1) == (7, 5) and first_operand(FEW) == (FEW, 5)


def test_a_linear_reads_either():
    x, linear = jnp.arange(10.0).reshape(2, 5), Linear(3)
    params = linear.init(jax.random.key(0), x)["params"]
    turned = by_outputs({"down": params})["down"]
    assert {k: v.shape for k, v in turned.items()} == {"table": (3, 5), "bias": (3,)}
    np.testing.assert_allclose(linear.apply({"params": turned}, x), linear.apply({"params": params}, x), rtol=1e-6)
