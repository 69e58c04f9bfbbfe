"""Losses between sentence vectors, by hand and by torch."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ftjax.errors import UserError
from ftjax.objectives import similarity as module
from ftjax.objectives.similarity import cosine, similarity, with_pair_classifier

B, T = 4, 6
RNG = np.random.default_rng(0)


@pytest.fixture
def fixed(monkeypatch, make):
    """fixed(loss, vectors [B, G, D], labels, real=...) -> (sums, outputs, gradient in the vectors)."""
    model = make("bert", head="none", num_layers=1).model

    def run(loss, vectors, labels=None, real=(1, 1, 1, 1), kernel=None, **options):
        b, g, _ = vectors.shape
        monkeypatch.setattr(module, "pooled", lambda model, variables, batch, key: variables["params"]["vectors"])
        segments = np.broadcast_to(np.asarray(real)[:, None, None], (b, g, T))
        batch = {"input_ids": np.zeros((b, g, T), int), "segment_ids": segments}
        if labels is not None:
            batch["labels"] = labels
        objective = similarity(model, loss, **options)
        variables = lambda v: {"params": {"vectors": v, "pair_classifier": {"kernel": kernel}}}  # noqa: E731

        @jax.jit
        def all_of(v, batch):
            grad = jax.grad(lambda v: objective.loss(variables(v), batch, None).loss)(v)
            return objective.loss(variables(v), batch, None), objective.outputs(variables(v), batch), grad

        sums, outputs, grad = jax.device_get(all_of(np.float32(vectors).reshape(b * g, -1), batch))
        return sums, outputs, grad.reshape(vectors.shape)

    return run


def draw(g):
    x = RNG.standard_normal((B, g, 5)).astype(np.float32)
    return x, torch.tensor(x, requires_grad=True)


def check(ours, total, vectors):
    sums, _, grad = ours
    np.testing.assert_allclose(sums.loss / sums.weight, total.item(), rtol=1e-5)
    total.backward()
    np.testing.assert_allclose(grad / sums.weight, vectors.grad, rtol=1e-4, atol=1e-6)


def test_cosine(fixed):
    x, v = draw(2)
    labels = np.array([0.2, 1.0, np.nan, 0.0], np.float32)
    ours = fixed("cosine", x, labels)
    cos = F.cosine_similarity(v[:, 0], v[:, 1])
    real = [0, 1, 3]
    check(ours, F.mse_loss(cos[real], torch.tensor(labels[real])), v)
    np.testing.assert_allclose(ours[1]["cosine"], cos.detach(), rtol=1e-5)
    np.testing.assert_array_equal(ours[1]["vectors"], x)


def test_softmax(fixed):
    x, v = draw(2)
    kernel = RNG.standard_normal((15, 3)).astype(np.float32)
    labels = np.array([0, -100, 2, 1])
    ours = fixed("softmax", x, labels, kernel=kernel)
    logits = torch.cat([v[:, 0], v[:, 1], (v[:, 0] - v[:, 1]).abs()], 1) @ torch.tensor(kernel)
    check(ours, F.cross_entropy(logits, torch.tensor(labels)), v)
    np.testing.assert_allclose(ours[1]["logits"], logits.detach(), rtol=1e-4, atol=1e-5)
    hits = (logits.argmax(1).numpy() == labels)[labels >= 0].sum()
    assert ours[0].metrics["accuracy"] == (hits, 3)


@pytest.mark.parametrize("margin", [1.0, 0.2])
def test_triplet(fixed, margin):
    x, v = draw(3)
    ours = fixed("triplet", x, real=(1, 1, 0, 1), margin=margin)
    real = [0, 1, 3]
    check(ours, F.triplet_margin_loss(v[real, 0], v[real, 1], v[real, 2], margin=margin, eps=0.0), v)
    near, far = (np.linalg.norm(x[:, 0] - x[:, i], axis=-1) for i in (1, 2))
    np.testing.assert_allclose(ours[1]["nearer"], far - near, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("g", [2, 3])
@pytest.mark.parametrize("scale", [20.0, 3.0])
def test_in_batch(fixed, g, scale):
    """An empty row is neither an anchor nor anybody's negative."""
    x, v = draw(g)
    ours = fixed("in_batch", x, real=(1, 0, 1, 1), scale=scale)
    real = [0, 2, 3]
    u, others = v[real, 0], torch.cat([v[real, i] for i in range(1, g)])
    logits = scale * F.cosine_similarity(u[:, None], others[None], dim=-1)
    check(ours, F.cross_entropy(logits, torch.arange(3)), v)
    assert ours[0].metrics["accuracy"] == ((logits.argmax(1) == torch.arange(3)).sum().item(), 3)
    assert not ours[2][1].any()


@pytest.mark.parametrize("loss, g", [("cosine", 2), ("triplet", 3), ("in_batch", 2)])
def test_equal_and_zero_vectors_have_no_nan(fixed, loss, g):
    x = np.zeros((B, g, 5), np.float32)
    x[0] = 1.0
    sums, _, grad = fixed(loss, x, np.array([1.0, 0.5, 0.2, 0.0]) if loss == "cosine" else None)
    assert np.isfinite(sums.loss) and np.isfinite(grad).all()


def test_cosine_by_hand():
    a = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    b = np.array([[4.0, 3.0], [-2.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(jax.jit(cosine)(a, b), [24 / 25, -1, 0], rtol=1e-6)


@pytest.fixture(scope="module")
def hidden(make):
    """hidden(variables, ids, segments, types) -> the last hidden states."""
    model = make("bert", head="none", num_layers=1).model
    return jax.jit(
        lambda v, ids, segments, types: model.apply(v, ids, segments, token_type_ids=types, method="hidden").last_hidden
    )


@pytest.mark.parametrize("pooling", ["first", "last", "mean", "max"])
def test_vectors_are_the_pooled_rows(make, hidden, pooling):
    made = make("bert", head="none", pooling=pooling, num_layers=1)
    variables = {"params": made.params, "adapters": {}}
    ids = RNG.integers(0, 50, (2, 3, T))
    segments = (np.arange(T) < RNG.integers(1, T + 1, (2, 3, 1))).astype(np.int32)
    positions = np.broadcast_to(np.arange(T), ids.shape)
    types = (np.arange(T) >= 2) * np.ones_like(ids)
    batch = dict(input_ids=ids, segment_ids=segments, position_ids=positions, token_type_ids=types)
    found = jax.jit(similarity(made.model, "triplet").outputs)(variables, batch)["vectors"]
    reduce = {
        "first": lambda h: h[0], "last": lambda h: h[-1], "mean": lambda h: h.mean(0), "max": lambda h: h.max(0),
    }[pooling]  # fmt: skip
    for b in range(2):
        states = np.asarray(hidden(variables, ids[b], segments[b], types[b]))
        for g in range(3):
            expected = reduce(states[g, : segments[b, g].sum()])
            np.testing.assert_allclose(found[b, g], expected, rtol=1e-5, atol=1e-5)


def test_the_maximum_of_an_empty_row_is_zero(make):
    made = make("bert", head="none", pooling="max")
    hidden, segments = -1 - np.arange(24.0).reshape(2, 3, 4), np.array([[0, 1, 1], [0, 0, 0]])
    pooled = jax.jit(lambda h, s: made.model.apply({"params": {}}, h, s, method="pool"))(hidden, segments)
    np.testing.assert_array_equal(pooled, [[-5, -6, -7, -8], [0, 0, 0, 0]])


def test_the_pair_classifier_is_seeded():
    one, again = (with_pair_classifier({"embed": 0}, 16, 3, jax.random.key(1)) for _ in range(2))
    kernel, same = (np.asarray(x["pair_classifier"]["kernel"]) for x in (one, again))
    assert kernel.shape == (48, 3) and (kernel == same).all() and one["embed"] == 0
    assert 0.015 < kernel.std() < 0.025


def test_wrong_groups_and_losses(make, fixed):
    with pytest.raises(UserError, match="'triplet' compares 3 texts, the batch has groups of 2"):
        fixed("triplet", draw(2)[0])
    with pytest.raises(UserError, match="unknown; there are cosine, softmax, triplet, in_batch"):
        similarity(make("bert", head="none").model, "dot")
