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


def residual_masks(made, key):
    """What attention and FFN each add per layer where every sublayer's result is 1: [L, 2, B, T, D]."""
    ones = lambda path, x: jnp.ones_like(x) if path.endswith(("o/bias", "down/bias")) else jnp.zeros_like(x)  # noqa: E731
    params = tree.map_paths(ones, made.params)
    out = made.model.apply(
        {"params": params}, IDS, training=True, rngs={"dropout": key}, output_hidden_states=True, method="hidden"
    )
    return np.diff(np.asarray(out.hidden_states)[:-1], axis=0)  # the last one is normed


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


@pytest.mark.parametrize("where", ["embed_dropout", "attention_dropout", "hidden_dropout", "classifier_dropout"])
def test_each_dropout_acts_in_training_alone(make, where):
    made = make("bert", head="classification", **{where: 0.5})
    variables = {"params": made.params}
    off = made.model.apply(variables, IDS)
    np.testing.assert_array_equal(off.logits, make("bert", head="classification").model.apply(variables, IDS).logits)
    on = made.model.apply(variables, IDS, training=True, rngs={"dropout": KEY})
    assert np.abs(on.logits - off.logits).max() > 1e-3
