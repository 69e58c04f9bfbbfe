import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax import tree
from ftjax.nn.hooks import dropout

KEY = jax.random.key(0)
IDS = np.arange(12).reshape(2, 6)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_rate_and_expectation(rate):
    x = jnp.ones((100_000,))
    y = np.asarray(dropout(KEY, x, rate))
    assert abs((y == 0).mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / len(y)) + 1e-9
    assert abs(y.mean() - 1) < 4 * np.sqrt(rate / (1 - rate) / len(y)) + 1e-6
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
    np.testing.assert_array_equal(y, dropout(KEY, x, jnp.asarray(rate)))  # a leaf as well as a number


def test_of_bf16_is_its_fp32_quotient():
    x = jnp.linspace(1, 2, 1000).astype(jnp.bfloat16)
    y = dropout(KEY, x, 0.1)
    assert y.dtype == x.dtype
    kept = (np.asarray(x, np.float32) / np.float32(0.9)).astype(x.dtype)
    np.testing.assert_array_equal(y, np.where(y != 0, kept, 0))


@functools.cache
def hidden_states(model):
    options = dict(training=True, output_hidden_states=True, method="hidden")
    return jax.jit(
        lambda params, key: model.apply({"params": params}, IDS, rngs={"dropout": key}, **options).hidden_states
    )


def residual_masks(made, key):
    """What attention and FFN each add per layer where every sublayer's result is 1: [L, 2, B, T, D]."""
    ones = lambda path, x: np.full(x.shape, path.endswith(("o/bias", "down/bias")), x.dtype)  # noqa: E731
    states = hidden_states(made.model)(tree.map_paths(ones, made.params), key)
    return np.diff(np.asarray(states)[:-1], axis=0)  # the last one is normed


def test_layers_draw_different_masks_and_the_same_key_the_same(make):
    made = make("gpt2", hidden_dropout=0.5, num_layers=3)
    masks = residual_masks(made, KEY)  # sums of two masks of {0, 2}
    assert set(np.unique(masks)) == {0.0, 2.0, 4.0}
    share = [(masks == value).mean() for value in (0, 2, 4)]
    np.testing.assert_allclose(share, [0.25, 0.5, 0.25], atol=0.1)  # attention and FFN independent of each other
    assert not np.array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks, residual_masks(made, KEY))
    np.testing.assert_array_equal(
        masks, residual_masks(make("gpt2", hidden_dropout=0.5, num_layers=3, scan_unroll=1), KEY)
    )
    assert not np.array_equal(masks, residual_masks(made, jax.random.key(1)))


@functools.cache
def class_logits(model):
    """(params, key; None: not in training)."""
    training = lambda key: {} if key is None else dict(training=True, rngs={"dropout": key})  # noqa: E731
    return jax.jit(lambda params, key: model.apply({"params": params}, IDS, **training(key)).logits)


@pytest.mark.parametrize("where", ["embed_dropout", "attention_dropout", "hidden_dropout", "classifier_dropout"])
def test_each_dropout_acts_in_training_alone(make, where):
    made, plain = (make("bert", head="classification", num_layers=1, **rate) for rate in ({where: 0.5}, {}))
    logits = lambda model, key=None: np.asarray(class_logits(model)(made.params, key))  # noqa: E731
    off = logits(made.model)
    np.testing.assert_array_equal(off, logits(plain.model))
    assert np.abs(logits(made.model, KEY) - off).max() > 1e-3
