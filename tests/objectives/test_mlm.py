"""Which tokens masked language modelling hides, and as what."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.objectives import mlm

MASK, SPECIAL, V, T = 4, (1, 2, 3), 1000, 128


@pytest.fixture
def masked(monkeypatch):
    """(ids, segments, key) -> what the body saw [B, T], and the labels with their slots [B, M]."""
    seen = {}

    def apply(variables, ids, **kwargs):
        seen["ids"] = np.asarray(ids)
        return SimpleNamespace(last_hidden=jnp.arange(T)[None, :, None] + jnp.zeros((*ids.shape, 1), jnp.int32))

    def record(model, variables, hidden, labels, *rest):
        seen["slots"], seen["labels"] = np.asarray(hidden[..., 0]), np.asarray(labels)

    monkeypatch.setattr(mlm, "vocabulary_loss", record)
    model = SimpleNamespace(cfg=SimpleNamespace(vocab_size=V), apply=apply)
    objective = mlm.masked_lm(model, mask_id=MASK, special_ids=SPECIAL)

    def run(ids, segments, key):
        batch = dict(input_ids=jnp.asarray(ids), segment_ids=jnp.asarray(segments), position_ids=jnp.zeros_like(ids))
        objective.loss({}, batch, key)
        return seen["ids"], seen["slots"], seen["labels"]

    return run


def test_counts_labels_and_shares(masked):
    rng = np.random.default_rng(0)
    ids = rng.integers(5, V, (256, T))
    lengths = rng.integers(0, T + 1, 256)
    segments = (np.arange(T) < lengths[:, None]).astype(int)
    ids[:, [0, 9]] = 1, 2  # specials
    shown, slots, labels = masked(ids, segments, jax.random.key(0))

    real = (segments * ~np.isin(ids, SPECIAL)).sum(1)
    exact = np.isin((real * 15) % 100, [50])  # n and a half rounds either way
    chosen = labels != -100
    np.testing.assert_array_equal(chosen.sum(1)[~exact], np.round(0.15 * real)[~exact])
    rows = np.broadcast_to(np.arange(256)[:, None], slots.shape)[chosen]
    where = rows, slots[chosen]
    assert len(set(zip(*where))) == chosen.sum()  # each once
    np.testing.assert_array_equal(labels[chosen], ids[where])
    assert segments[where].all() and not np.isin(ids[where], SPECIAL).any()
    untouched = np.ones_like(ids, bool)
    untouched[where] = False
    np.testing.assert_array_equal(shown[untouched], ids[untouched])

    n = chosen.sum()
    shares = [(shown[where] == MASK).mean(), (shown[where] == ids[where]).mean()]
    np.testing.assert_allclose(shares, [0.8, 0.1], atol=4 * np.sqrt(0.16 / n))


def test_draws_differ_by_key_and_evaluation_repeats(masked):
    ids, segments = np.full((4, T), 9), np.ones((4, T), int)
    shown = [
        masked(ids, segments, key)[0] for key in (jax.random.key(1), jax.random.key(1), jax.random.key(2), None, None)
    ]
    np.testing.assert_array_equal(shown[0], shown[1])
    np.testing.assert_array_equal(shown[3], shown[4])
    assert not np.array_equal(shown[0], shown[2])
