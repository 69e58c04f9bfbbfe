"""Which tokens masked language modelling hides, and as what."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ftjax.errors import UserError
from ftjax.objectives import mlm

MASK, SPECIAL, V, T = 4, (1, 2, 3), 1000, 128


@pytest.fixture(scope="module")
def masked():
    """(ids, segments, key) -> what the body saw [B, T], and the labels with their slots [B, M]."""
    seen = {}

    def apply(variables, ids, **kwargs):
        seen["ids"] = ids
        return SimpleNamespace(last_hidden=jnp.arange(T)[None, :, None] + jnp.zeros((*ids.shape, 1), jnp.int32))

    def record(model, variables, hidden, labels, *rest):
        seen["slots"], seen["labels"] = hidden[..., 0], labels

    model = SimpleNamespace(cfg=SimpleNamespace(vocab_size=V), apply=apply)
    objective = mlm.masked_lm(model, mask_id=MASK, special_ids=SPECIAL)

    @jax.jit
    def traced(batch, key):
        objective.loss({}, batch, key)
        return seen["ids"], seen["slots"], seen["labels"]

    def run(ids, segments, key):
        batch = dict(input_ids=ids, segment_ids=segments, position_ids=np.zeros_like(ids))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mlm, "vocabulary_loss", record)
            return jax.device_get(traced(batch, key))

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
    ids, segments = np.full((256, T), 9), np.ones((256, T), int)
    shown = [
        masked(ids, segments, key)[0] for key in (jax.random.key(1), jax.random.key(1), jax.random.key(2), None, None)
    ]
    np.testing.assert_array_equal(shown[0], shown[1])
    np.testing.assert_array_equal(shown[3], shown[4])
    assert not np.array_equal(shown[0], shown[2])


WORDS = dict(vocab=V, mask_id=MASK, special_ids=SPECIAL, rate=0.15, masked=0.8, random=0.1)
CONTINUES = np.arange(V) >= 500
ROWS = 2000


@functools.cache
def drawing(rate):
    return jax.jit(functools.partial(mlm.mask_tokens, **WORDS | {"rate": rate}, continues=CONTINUES))


def mask_tokens(seed, ids, segments, rate=0.15):
    return jax.device_get(drawing(rate)(jax.random.key(seed), ids, segments))


def pieces(rows, seed=0):
    """ids, segments `[rows, T]`: words of one to four pieces, specials among them, two segments and padding."""
    rng = np.random.default_rng(seed)
    ids = np.where(rng.random((rows, T)) < 0.4, rng.integers(500, V, (rows, T)), rng.integers(5, 500, (rows, T)))
    ids = np.where(rng.random((rows, T)) < 0.03, 2, ids)
    lengths = rng.integers(0, T + 1, (rows, 1))
    return ids, np.where(np.arange(T) < lengths, 1 + (np.arange(T) > lengths // 2), 0)


def words_of(ids, segments):
    """The slots of each word of one row."""
    words, before = [], None
    for t, (i, s) in enumerate(zip(ids, segments)):
        real = s and i not in SPECIAL
        if real and CONTINUES[i] and before == s:
            words[-1].append(t)
        elif real:
            words.append([t])
        before = s if real else None
    return words


def test_whole_words_fill_the_share():
    ids, segments = pieces(ROWS)
    shown, slots, labels = mask_tokens(0, ids, segments)
    short = 0
    for row in range(64):
        chosen = set(slots[row][labels[row] != -100].tolist())
        words = words_of(ids[row], segments[row])
        share = float(np.round(np.float32(0.15) * sum(map(len, words))))
        left = share - len(chosen)
        assert left >= 0
        for word in words:
            assert chosen.issuperset(word) or (chosen.isdisjoint(word) and len(word) > left)
        assert chosen <= {t for word in words for t in word}
        short += left
        np.testing.assert_array_equal(labels[row][labels[row] != -100], ids[row][slots[row][labels[row] != -100]])
        untouched = [t for t in range(T) if t not in chosen]
        np.testing.assert_array_equal(shown[row][untouched], ids[row][untouched])
    assert short < 20  # 64 rows: hardly any lacks a word that fits


def test_words_of_a_size_are_as_likely():
    ids = np.tile(np.where(np.arange(T) % 2, 600, 7), (ROWS, 1))  # 64 words of two pieces, 18 of 19.2 tokens
    _, slots, labels = mask_tokens(3, ids, np.ones_like(ids))
    times = np.bincount(slots[labels != -100], minlength=T)
    assert (times[::2] == times[1::2]).all() and times.sum() == 18 * ROWS
    expected = ROWS * 9 / 64
    np.testing.assert_allclose(times[::2], expected, atol=4.5 * np.sqrt(expected))


@pytest.mark.parametrize("ids, segments", [([7, 600, 0], [1, 2, 0]), ([7, 2, 600], [1, 1, 1]), ([2, 600, 7], [1] * 3)])
def test_a_word_ends_with_its_segment_and_at_a_special_token(ids, segments):
    """Of two words of one piece each, the share of half is one; a word of two would be over it."""
    ids, segments = (np.tile(x, (50, 1)) for x in (ids, segments))
    labels = mask_tokens(0, ids, segments, rate=0.5)[2]
    assert ((labels != -100).sum(1) == 1).all() and len(np.unique(labels)) == 3


def test_soft_tokens_are_not_predicted():
    ids = np.tile(np.where(np.arange(T) < 100, V + np.arange(T), 9), (ROWS, 1))
    shown, slots, labels = mask_tokens(0, ids, np.ones_like(ids))
    assert ((labels != -100).sum(1) == 4).all() and (slots[labels != -100] >= 100).all()
    np.testing.assert_array_equal(shown[:, :100], ids[:, :100])


@pytest.mark.parametrize("options, message", [
    (dict(rate=0.0), "between 0 and 1, is 0.0"),
    (dict(continues=np.zeros(7, bool)), r"shape \(7,\), the vocabulary has 50 tokens"),
])  # fmt: skip
def test_bad_options(make, options, message):
    with pytest.raises(UserError, match=message):
        mlm.masked_lm(make("bert").model, mask_id=4, special_ids=(), **options)


def test_the_loss_is_that_of_transformers(theirs, full, monkeypatch):
    torch_model, model, variables = theirs("BertForMaskedLM")
    ids, batch = full(3, 7)
    shown, labels = ids.clone(), torch.full_like(ids, -100)
    for row, column in ((0, 1), (0, 6), (2, 3)):
        shown[row, column], labels[row, column] = 4, ids[row, column]
    with torch.no_grad():
        out = torch_model(shown, labels=labels)
    slots, wanted = np.array([[1, 6], [0, 0], [3, 0]]), np.array([[1, 1], [0, 0], [1, 0]])
    picked = np.where(wanted, np.take_along_axis(batch["input_ids"], slots, 1), -100)
    fixed = tuple(map(jnp.asarray, (shown.numpy(), slots, picked)))
    monkeypatch.setattr(mlm, "mask_tokens", lambda *args, **kwargs: fixed)
    sums = jax.jit(mlm.masked_lm(model, mask_id=4, special_ids=()).loss)(variables, batch, None)
    np.testing.assert_allclose(sums.loss / sums.weight, out.loss, rtol=1e-5)
    right = (out.logits.argmax(-1) == labels)[labels != -100].sum().item()
    assert sums.weight == 3 and sums.metrics["token_accuracy"] == (right, 3)


def test_rows_without_a_word_give_zero(make):
    made = make("bert", num_layers=1)
    empty = {name: np.zeros((2, 7), np.int32) for name in ("input_ids", "segment_ids", "position_ids")}
    loss = mlm.masked_lm(made.model, mask_id=4, special_ids=(0,)).loss
    grad = jax.jit(jax.value_and_grad(lambda p, batch: loss({"params": p, "adapters": {}}, batch, None).loss))
    value, grads = grad(made.params, empty)
    assert value == 0 and all(not np.asarray(g).any() for g in jax.tree.leaves(grads))
