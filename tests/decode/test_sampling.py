"""The distribution that is drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ftjax.decode.sampling import Sampling, choose, filtered


def expected(logits, how):
    """transformers' probabilities `[B, V]`."""
    x = TemperatureLogitsWarper(how.temperature)(None, torch.from_numpy(logits))
    x = TopKLogitsWarper(how.top_k)(None, x) if how.top_k else x
    x = TopPLogitsWarper(how.top_p)(None, x) if how.top_p < 1 else x
    return x.softmax(-1).numpy()


@pytest.mark.parametrize("how", [
    Sampling(True), Sampling(True, 0.7), Sampling(True, 1.3, 5), Sampling(True, 1.0, 0, 0.6),
    Sampling(True, 2.0, 6, 0.8), Sampling(True, 1.0, 1000), Sampling(True, 1.0, 0, 1e-6),
])  # fmt: skip
def test_filtered_as_in_transformers(how):
    logits = np.random.default_rng(0).normal(0, 2, (4, 30)).astype(np.float32)
    kept, ids = filtered(jnp.asarray(logits), how)
    probs = np.asarray(jax.nn.softmax(kept, -1))
    if ids is not None:
        full = np.zeros_like(logits)
        np.put_along_axis(full, np.asarray(ids), probs, 1)
        probs = full
    np.testing.assert_allclose(probs, expected(logits, how), atol=1e-6)


def test_draws_follow_it():
    how, n = Sampling(True, 1.5, 6, 0.9), 20000
    logits = np.random.default_rng(1).normal(0, 2, (1, 12)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), n)
    draws = np.asarray(choose(jnp.broadcast_to(logits, (n, 12)), how, keys, 3))
    frequencies = np.bincount(draws, minlength=12) / n
    assert np.abs(frequencies - expected(logits, how)[0]).sum() / 2 < 0.015
    assert (np.asarray(choose(jnp.broadcast_to(logits, (n, 12)), how, keys, 4)) != draws).any()


def test_greedy():
    logits = jnp.asarray([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    assert choose(logits, Sampling(), jax.random.split(jax.random.key(0), 2), 0).tolist() == [1, 0]
