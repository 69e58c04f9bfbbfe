import itertools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.test_util import check_grads

from ftjax.distill.losses import FLOOR, Divergence, Estimator, Kind, top_k, total
from ftjax.errors import UserError

KINDS, ESTIMATORS = get_args(Kind), get_args(Estimator)
PROPER = [kind for kind in KINDS if kind != "cross_entropy"]  # 0 at equality
B, M, V = 2, 3, 7
RNG = np.random.default_rng(0)
S, T = (jnp.asarray(2 * RNG.standard_normal((B, M, V)), jnp.float32) for _ in range(2))
LOGITS = arrays(np.float32, (B, M, V), elements=st.floats(-60, 60, width=32))


def probabilities(logits, temperature):
    e = np.exp(np.asarray(logits, np.float64) / temperature)
    return e / e.sum(-1, keepdims=True)


def by_hand(kind, p, q, beta=0.5):
    kl = lambda a, b: (a * np.log(a / b)).sum(-1)  # noqa: E731
    match kind:
        case "forward_kl":
            return kl(p, q)
        case "reverse_kl":
            return kl(q, p)
        case "cross_entropy":
            return -(p * np.log(q)).sum(-1)
        case "tv":
            return np.abs(p - q).sum(-1) / 2
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("temperature", "t_squared", "beta"), [(1, True, 0.5), (2.5, True, 0.1), (4, False, 0.9)])
def test_by_hand(kind, temperature, t_squared, beta):
    ours = Divergence(kind, temperature, t_squared, beta)(S, T)
    hand = by_hand(kind, probabilities(T, temperature), probabilities(S, temperature), beta)
    np.testing.assert_allclose(ours, hand * (temperature**2 if t_squared else 1), rtol=1e-4)


@pytest.mark.parametrize("kind", PROPER)
@given(logits=LOGITS)
def test_nothing_apart_from_itself(kind, logits):
    value = Divergence(kind, beta=0.3)(logits, logits)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    assert np.all(value >= 0)


@given(LOGITS, LOGITS, st.sampled_from([0.01, 0.5, 0.9]), st.sampled_from([1.0, 1e-3]))
def test_jsd_is_never_negative_and_bounded(s, t, beta, apart):
    value = Divergence("jsd", beta=beta)(t + apart * s, t)
    assert np.all(value >= 0) and np.all(value <= np.log(2) + 1e-5)


def test_jsd_at_its_ends():
    """Exactly the two KLs; GKD's own formula tends to 0 there, and over beta (1 - beta) to them."""
    for end, near, kind in ((0, 0.001, "forward_kl"), (1, 0.999, "reverse_kl")):
        kl = Divergence(kind)(S, T)
        np.testing.assert_array_equal(Divergence("jsd", beta=end)(S, T), kl)
        np.testing.assert_allclose(Divergence("jsd", beta=near)(S, T) / 0.000999, kl, rtol=0.02)
    np.testing.assert_allclose(Divergence("jsd")(S, T), Divergence("jsd")(T, S), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", [None, *ESTIMATORS])
def test_gradients_against_finite_differences(kind, estimator):
    divergence = Divergence(kind, 1.5, beta=0.3, estimator=estimator or "truncated")
    teacher = T if estimator is None else top_k(T, 3, 1.5)
    check_grads(lambda s: divergence(s, teacher).sum(), (S,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)


@pytest.mark.parametrize(("kind", "temperature"), [("forward_kl", 1), ("forward_kl", 3), ("reverse_kl", 2)])
def test_gradients_of_torch(kind, temperature):
    s = torch.tensor(np.asarray(S), requires_grad=True)
    log_q, log_p = (torch.log_softmax(x / temperature, -1) for x in (s, torch.tensor(np.asarray(T))))
    pair = (log_q, log_p) if kind == "forward_kl" else (log_p, log_q)
    theirs = torch.nn.functional.kl_div(*pair, reduction="sum", log_target=True) * temperature**2
    theirs.backward()
    value, grad = jax.value_and_grad(lambda s: Divergence(kind, temperature)(s, T).sum())(S)
    np.testing.assert_allclose(value, theirs.detach(), rtol=1e-5)
    np.testing.assert_allclose(grad, s.grad, rtol=1e-4, atol=1e-6)


def test_the_gradient_at_high_temperature():
    """(z_s - z_t) / (V T^2) for logits of mean 0, before the factor T^2 (Hinton et al. 2015, eq. 4)."""
    s, t = (x - x.mean(-1, keepdims=True) for x in (S, T))
    for flag, size in ((False, 200.0**2), (True, 1.0)):
        grad = jax.grad(lambda s, flag=flag: Divergence("cross_entropy", 200.0, flag)(s, t).sum())(s)
        np.testing.assert_allclose(grad, (s - t) / (V * size), rtol=0.05, atol=2e-3 / size)


def test_top_k_entries():
    entry = top_k(T, 3, 2.0)
    p = probabilities(T, 2.0)
    kept = np.take_along_axis(p, np.asarray(entry.ids), -1)
    np.testing.assert_allclose(np.exp(entry.log_probs), kept, rtol=1e-5)
    np.testing.assert_allclose(np.exp(entry.log_tail), 1 - kept.sum(-1), rtol=1e-4)
    assert np.all(np.diff(entry.log_probs) <= 0) and kept.min() >= np.sort(p)[..., -3].min()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_reach_the_full_divergence(kind, estimator):
    divergence = Divergence(kind, 2, beta=0.3, estimator=estimator)
    value_and_grad = jax.value_and_grad(lambda s, t: divergence(s, t).sum())
    full, grad = value_and_grad(S, T)
    assert jnp.abs(divergence(S, top_k(T, 3, 2)) - divergence(S, T)).mean() > 1e-3
    value, slope = value_and_grad(S, top_k(T, V, 2))
    np.testing.assert_allclose(value, full, rtol=1e-5)
    np.testing.assert_allclose(slope, grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_teacher_s_padding_of_the_vocabulary_counts_for_nothing(kind, estimator):
    """As of logits, the common part counts: among the k are ids that the student has not."""
    divergence = Divergence(kind, estimator=estimator)
    padded = jnp.concatenate([T, jnp.full((B, M, 2), 3.0 if estimator != "truncated" else -50.0)], -1)
    loss = lambda s, t: divergence(s, t).sum()  # noqa: E731
    for value, full in zip(*map(jax.tree.leaves, (
        jax.value_and_grad(loss)(S, top_k(padded, V + 2)), jax.value_and_grad(loss)(S, padded),
    ))):  # fmt: skip
        np.testing.assert_allclose(value, full, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", PROPER)
def test_a_tail_bucket_is_a_bound_that_tightens(kind):
    values = [Divergence(kind)(S, top_k(T, k)) for k in (2, 3, 5, V)]
    values.append(Divergence(kind)(S, T))
    assert all(np.all(a <= b + 1e-6) for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("kind", PROPER)
@pytest.mark.parametrize("estimator", ["renormalised", "tail_bucket"])
def test_estimators_that_are_least_at_the_teacher(kind, estimator):
    value, grad = jax.value_and_grad(lambda s: Divergence(kind, estimator=estimator)(s, top_k(T, 3)).sum())(T)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    if kind != "tv":  # it has an edge there
        np.testing.assert_allclose(grad, 0, atol=1e-6)


def test_the_truncated_one_is_not():
    grad = jax.grad(lambda s: Divergence("forward_kl", estimator="truncated")(s, top_k(T, 3)).sum())(T)
    assert np.abs(grad).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_by_hand(kind):
    entry = top_k(T, 3)
    p, q = (np.take_along_axis(probabilities(x, 1), np.asarray(entry.ids), -1) for x in (T, S))
    ours = Divergence(kind, beta=0.3, estimator="truncated")(S, entry)
    np.testing.assert_allclose(ours, by_hand(kind, p, q, 0.3), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", [None, *ESTIMATORS])
def test_underflow_gives_no_nan(kind, estimator):
    """Probabilities of exp(-20000) on either side, a token that the teacher forbids, and entries of zeros (filler)."""
    a, b = jnp.asarray([[1e4, -1e4, 0, 0, 0, 0, 0], [-1e4, 1e4, 0, 0, 0, 0, -jnp.inf]])
    divergence = Divergence(kind, beta=0.3, estimator=estimator or "truncated")
    s, t = (jnp.stack(x).reshape(S.shape) for x in ([a, b, a, b, b, S[0, 0]], [b, a, a, b, T[0, 0], b]))
    s = jnp.maximum(s, -2e4)
    teachers = [t]
    if estimator:
        teachers = [top_k(t, 3), top_k(t, V), jax.tree.map(jnp.zeros_like, top_k(t, 3))]
    for teacher in teachers:
        value, grad = jax.value_and_grad(lambda s, x=teacher: divergence(s, x).sum())(s)
        assert np.isfinite(value) and np.all(np.isfinite(grad))


def test_vocabularies_padded_to_different_sizes():
    wide = jnp.pad(T, ((0, 0), (0, 0), (0, 3)), constant_values=5.0)
    for s, t in ((S, wide), (wide, S)):
        np.testing.assert_allclose(Divergence()(s, t), Divergence()(s[..., :V], t[..., :V]), rtol=1e-6)


def test_totals_are_weighted_and_masked():
    values, weights = jnp.asarray([1.0, jnp.nan, 3.0]), jnp.asarray([2.0, 0.0, 0.5])
    assert tuple(map(float, total(values, weights))) == (3.5, 2.5)
    assert tuple(map(float, total(values, 0 * weights))) == (0, 0)


def test_the_floor_is_finite_in_products():
    assert np.exp(np.float32(FLOOR)) * np.float32(FLOOR) == 0


@pytest.mark.parametrize(
    "fields", [dict(kind="kl"), dict(estimator="tail"), dict(temperature=0), dict(beta=1.1), dict(temperature=np.nan)]
)
def test_wrong_fields(fields):
    with pytest.raises(UserError, match=f"distill.{next(iter(fields))}="):
        Divergence(**fields)
