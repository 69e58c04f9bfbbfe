"""Span corruption: what goes, what comes back, and how it is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.errors import UserError
from ftjax.objectives.cross_entropy import cross_entropy
from ftjax.objectives.spans import _partition, corrupt, span_corruption, span_counts

SENTINELS, EOS, START = tuple(range(99, 60, -1)), 1, 0
B = 16


OPTIONS = ("sentinels", "eos_id", "start_id", "rate", "mean_span")
corrupt_jit = jax.jit(corrupt, static_argnames=OPTIONS)


def corrupted(length, seed=0, segments=None, rate=0.15, mean_span=3.0):
    """(ids, what becomes of them), in numpy."""
    ids = np.random.default_rng(seed).integers(2, 60, (B, length))
    segments = np.ones(ids.shape, np.int32) if segments is None else segments
    options = dict(zip(OPTIONS, (SENTINELS, EOS, START, rate, mean_span)))
    return ids, jax.device_get(corrupt_jit(jax.random.key(seed), ids, segments, **options))


def rebuilt(source, target):
    """The text, from what both sides hold."""
    spans, current = {}, None
    assert source[-1] == target[-1] == EOS
    for token in target[:-1]:
        if token in SENTINELS:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    assert list(spans) == list(SENTINELS[: len(spans)]) and all(spans.values())
    assert [token for token in source if token in SENTINELS] == list(spans)
    return [t for token in source[:-1] for t in spans.get(token, [token])]


@pytest.mark.parametrize("length, rate, mean_span", [(64, 0.15, 3.0), (20, 0.5, 1.0), (7, 0.15, 3.0), (30, 0.15, 8.0)])
def test_the_original_comes_back(length, rate, mean_span):
    ids, batch = corrupted(length, rate=rate, mean_span=mean_span)
    gone, spans = span_counts(length, rate, mean_span)
    source, target = batch["encoder_input_ids"], batch["labels"]
    assert source.shape == (B, length - gone + spans + 1) and target.shape == (B, gone + spans + 1)
    for row in range(B):
        assert rebuilt(source[row].tolist(), target[row].tolist()) == ids[row].tolist()
        assert (target[row] >= 61).sum() == spans
    np.testing.assert_array_equal(batch["input_ids"][:, 1:], target[:, :-1])
    assert (batch["input_ids"][:, 0] == START).all()
    for side, name in ((source, "encoder_"), (target, "")):
        assert (batch[f"{name}segment_ids"] == 1).all()
        np.testing.assert_array_equal(batch[f"{name}position_ids"][3], np.arange(side.shape[1]))
    np.testing.assert_array_equal(batch["label_positions"], batch["position_ids"])


def test_lengths_of_the_paper():
    """568 tokens fill an encoder of 512 and a decoder of 114."""
    gone, spans = span_counts(568, 0.15, 3.0)
    assert (568 - gone + spans + 1, gone + spans + 1) == (512, 114)
    assert [span_counts(n, 0.15, 3.0) for n in (2, 3, 10)] == [(1, 1), (1, 1), (2, 1)]
    assert span_counts(10, 0.9, 1.0) == (9, 1)  # there has to be text before each span


def test_draws_are_of_the_key():
    (_, one), (_, again), (_, other) = (corrupted(64, seed) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    rows = corrupted(64, 5)[1]["encoder_input_ids"] > 60
    assert len({row.tobytes() for row in rows}) == B  # each row its own
    assert not np.array_equal(one["labels"] > 60, other["labels"] > 60)


def test_partitions_are_uniform():
    drawn = np.asarray(jax.jit(_partition, static_argnums=(1, 2, 3))(jax.random.key(0), 6000, 5, 3))
    assert (drawn >= 1).all() and (drawn.sum(1) == 5).all()
    kinds, times = np.unique(drawn, axis=0, return_counts=True)
    assert len(kinds) == 6
    np.testing.assert_allclose(times, 1000, atol=4.5 * np.sqrt(1000))


def test_rows_that_are_not_full_count_as_empty():
    segments = np.ones((B, 7), np.int32)
    segments[0], segments[1, 5:] = 0, 0
    batch = corrupted(7, segments=segments)[1]
    for name, none in (("labels", -100), ("segment_ids", 0), ("encoder_segment_ids", 0)):
        assert (batch[name][:2] == none).all() and (batch[name][2:] != none).all()


@pytest.fixture(scope="module")
def learned(make):
    """(objective, model, variables)."""
    made = make("t5", num_layers=1, encoder=make("t5").cfg.encoder.replace(num_layers=1))
    objective = span_corruption(made.model, sentinels=(49, 48, 47), eos_id=1, start_id=0)
    return objective, made.model, {"params": made.params, "adapters": {}}


def rows(real):
    ids = np.random.default_rng(0).integers(2, 40, (3, 14)).astype(np.int32)
    segments = np.broadcast_to(np.asarray(real, np.int32)[:, None], ids.shape)
    return {"input_ids": ids, "segment_ids": segments}


def test_the_loss_is_the_cross_entropy_of_the_decoder(learned):
    objective, model, variables = learned
    batch = rows((1, 0, 1))

    @jax.jit
    def nll(v, ids, segments):
        key = jax.random.split(jax.random.key(0))[0]
        seen = corrupt(key, ids, segments, sentinels=(49, 48, 47), eos_id=1, start_id=0)
        logits = model.apply(v, seen["input_ids"], encoder_input_ids=seen["encoder_input_ids"]).logits
        return cross_entropy(logits, seen["labels"])[1].sum()

    sums = jax.jit(objective.loss)(variables, batch, None)
    np.testing.assert_allclose(sums.loss, nll(variables, batch["input_ids"], batch["segment_ids"]), rtol=1e-5)
    assert sums.weight == 2 * (2 + 1 + 1)


def test_empty_rows_give_zero_and_no_nan(learned):
    objective, _, variables = learned
    grad = jax.jit(jax.value_and_grad(lambda v, batch: objective.loss(v, batch, jax.random.key(0)).loss))
    value, grads = grad(variables, rows((0, 0, 0)))
    assert value == 0 and all(not np.asarray(g).any() for g in jax.tree.leaves(grads))
    value, grads = grad(variables, rows((0, 1, 0)))
    assert value > 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_what_cannot_be(make, learned):
    with pytest.raises(UserError, match="this model has no encoder"):
        span_corruption(make("gpt2").model, sentinels=(3,), eos_id=1, start_id=0)
    ids = jnp.ones((1, 64), jnp.int32)
    with pytest.raises(UserError, match="64 tokens have 3 spans, but there are 2 sentinels"):
        corrupt(jax.random.key(0), ids, ids, sentinels=(9, 8), eos_id=1, start_id=0)
    with pytest.raises(UserError, match="2 tokens or more"):
        corrupt(jax.random.key(0), ids[:, :1], ids[:, :1], sentinels=(9, 8), eos_id=1, start_id=0)
