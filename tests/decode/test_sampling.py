"""The distribution that is drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import torch
import transformers as hf

from ftjax.decode.options import Options
from ftjax.decode.sampling import choose, filtered

CASES = [
    dict(), dict(temperature=0.7), dict(temperature=1.3, top_k=5), dict(top_p=0.6), dict(top_k=1000),
    dict(temperature=2.0, top_k=6, top_p=0.8), dict(top_p=1e-6), dict(min_p=0.2), dict(min_p=1.0),
    dict(temperature=1.7, top_p=0.9, min_p=0.1), dict(temperature=1.2, top_k=9, top_p=0.95, min_p=0.15),
]  # fmt: skip


def expected(logits, how):
    """transformers' probabilities `[B, V]`."""
    x = hf.TemperatureLogitsWarper(float(how.temperature))(None, torch.from_numpy(logits))
    x = hf.TopKLogitsWarper(how.top_k)(None, x) if how.top_k else x
    x = hf.TopPLogitsWarper(how.top_p)(None, x) if how.top_p < 1 else x
    x = hf.MinPLogitsWarper(how.min_p)(None, x) if how.min_p else x
    return x.softmax(-1).numpy()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_filtered_as_in_transformers(case):
    how = Options(do_sample=True, **case)
    logits = np.random.default_rng(0).normal(0, 2, (4, 30)).astype(np.float32)
    kept, ids = jax.jit(lambda x: filtered(x, how))(logits)
    probs = scipy.special.softmax(kept, -1)
    if ids is not None:
        full = np.zeros_like(logits)
        np.put_along_axis(full, np.asarray(ids), probs, 1)
        probs = full
    np.testing.assert_allclose(probs, expected(logits, how), atol=1e-6)


def test_draws_follow_it():
    how, n = Options(do_sample=True, temperature=1.5, top_k=6, top_p=0.9, min_p=0.05), 20000
    logits = np.random.default_rng(1).normal(0, 2, (1, 12)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), n)
    draw = jax.jit(lambda step: choose(jnp.broadcast_to(logits, (n, 12)), how, keys, step))
    draws = np.asarray(draw(3))
    counts, wanted = np.bincount(draws, minlength=12), n * expected(logits, how)[0]
    possible = wanted > 0
    assert possible.sum() > 2 and counts[~possible].sum() == 0
    # Pearson's chi-squared, of which 99.9 % of true draws stay below the bound (at most 11 degrees of freedom)
    assert ((counts - wanted)[possible] ** 2 / wanted[possible]).sum() < 31.3
    assert (np.asarray(draw(4)) != draws).any()


def test_greedy():
    logits = jnp.asarray([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    assert choose(logits, Options(), jax.random.split(jax.random.key(0), 2), 0).tolist() == [1, 0]
