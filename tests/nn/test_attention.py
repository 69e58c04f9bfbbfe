import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ftjax.nn.attention import attend, visible
from ftjax.nn.positions import rotary, rotate


def plain_attention(q, k, v, mask):
    """One head and one query at a time, in float64."""
    b, t, h, d = q.shape
    out, probs = np.zeros(q.shape), np.zeros((b, h, t, k.shape[1]))
    for i, j, n in np.ndindex(b, t, h):
        kv = n // (h // k.shape[2])
        scores = k[i, :, kv].astype(float) @ q[i, j, n] / np.sqrt(d)
        scores[~mask[i, 0, j]] = -np.inf
        p = np.exp(scores - scores.max())
        probs[i, n, j] = p / p.sum()
        out[i, j, n] = probs[i, n, j] @ v[i, :, kv]
    return out, probs


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_attention_equals_a_plain_one(kv_heads):
    rng = np.random.default_rng(kv_heads)
    q = rng.standard_normal((2, 5, 4, 6)).astype(np.float32)
    k, v = rng.standard_normal((2, 2, 7, kv_heads, 6)).astype(np.float32)
    mask = rng.random((2, 1, 5, 7)) < 0.6
    mask[..., 0] = True
    for ours, theirs in zip(jax.jit(attend)(q, k, v, mask), plain_attention(q, k, v, mask)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_query_that_sees_nothing_stays_finite_also_in_its_gradient():
    mask = np.array([[[[True, False], [False, False]]]])
    grad = jax.jit(jax.value_and_grad(lambda x: attend(x, x, x, mask)[0].sum()))
    value, grads = grad(np.ones((1, 2, 2, 4), np.float32))
    assert np.isfinite(value) and np.isfinite(grads).all()


visible_jit = jax.jit(visible, static_argnums=4)
SEGMENTS = arrays(np.int32, (1, 5), elements=st.integers(0, 2))
POSITIONS = arrays(np.int32, (1, 5), elements=st.integers(0, 4))


@given(SEGMENTS, POSITIONS, st.booleans())
def test_visible_is_same_segment_not_padding_and_not_later(segments, positions, causal):
    mask = np.asarray(visible_jit(positions, segments, positions, segments, causal))
    for i, j in np.ndindex(5, 5):
        (a, b), (p, q) = segments[0, [i, j]], positions[0, [i, j]]
        assert mask[0, 0, i, j] == (a == b != 0 and not (causal and q > p))


def test_rotation_turns_each_pair_by_its_position_times_its_frequency():
    rng = np.random.default_rng(0)
    x, positions = rng.standard_normal((1, 4, 2, 6)).astype(np.float32), np.array([[0, 3, 1, 9]])
    out = np.asarray(jax.jit(lambda x, p: rotate(x, *rotary(p, 6, 100.0)))(x, positions))
    turned = (x[..., :3] + 1j * x[..., 3:]) * np.exp(
        1j * positions[0, :, None, None] * 100.0 ** (-np.arange(0, 6, 2) / 6)
    )
    np.testing.assert_allclose(out, np.concatenate([turned.real, turned.imag], -1), rtol=1e-5, atol=1e-6)
