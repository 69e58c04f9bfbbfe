"""Of every loss: padding, empty rows and micro-batches change nothing, and a batch of empty rows gives 0."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax import tree
from ftjax.objectives.regression import regression
from ftjax.objectives.similarity import similarity, with_pair_classifier
from ftjax.objectives.span import FIRST, LAST, span
from ftjax.objectives.tagging import tagging
from ftjax.objectives.words import between_words, label_words

LENGTHS = (6, 4, 7)
FLOATS, NONE = (0.5, 0.9, 0.1), float("nan")


class Case(NamedTuple):
    """A model, its objective, and what stands in the batch beside the tokens."""

    model: dict  # options of `make`
    objective: object
    extras: object  # (row, its first slot, its length) -> the row's extras; row None where it is empty
    group: int = 0


def slots(row, at, n):
    if row is None:
        return {"label_positions": [0, 0, 0], "labels": [-100] * 3}
    return {"label_positions": [at, at + n - 1, 0], "labels": [row, (row + 2) % 3, -100]}


def ends(row, at, n):
    return {"first": -1 if row is None else at + 1, "last": -1 if row is None else at + n - 2}


def one(label, dtype=int):
    return lambda row, at, n: {"labels": dtype(label[row]) if row is not None else (-100 if dtype is int else NONE)}


def in_gap(label, none):
    return lambda row, at, n: {"gap": at + n - 2, "labels": none if row is None else label[row]}


def nothing(row, at, n):
    return {}


CASES = {
    "tagging": Case(dict(head="tagging"), lambda m: tagging(m, label_smoothing=0.1), slots),
    "span": Case(dict(head="span"), span, ends),
    "regression": Case(dict(head="classification", num_classes=1), regression, one(FLOATS, float)),
    "words": Case({}, lambda m: label_words(m, words=((7,), (30,), (11,))), in_gap((2, 0, 1), -100)),
    "between": Case(
        {}, lambda m: between_words(m, words=((7,), (30,)), bounds=(0.0, 5.0)), in_gap((0.5, 5.0, 0.0), NONE)
    ),
    "cosine": Case(dict(head="none", pooling="mean"), lambda m: similarity(m, "cosine"), one(FLOATS, float), 2),
    "softmax": Case(dict(head="none", pooling="max"), lambda m: similarity(m, "softmax"), one((2, 0, 1)), 2),
    "triplet": Case(dict(head="none", pooling="first"), lambda m: similarity(m, "triplet"), nothing, 3),
    "in_batch": Case(dict(head="none", pooling="last"), lambda m: similarity(m, "in_batch"), nothing, 3),
}


def lay(case, rows, length=9, side="right"):
    """Rows by number, None for an empty one."""
    texts = max(case.group, 1)
    shape = (len(rows), texts, length)
    batch = {name: np.zeros(shape, np.int32) for name in ("input_ids", "segment_ids", "position_ids")}
    batch["input_ids"] += 9  # what stands in padding must not matter
    extras = []
    for r, row in enumerate(rows):
        n = at = 0
        for g in range(texts if row is not None else 0):
            n = LENGTHS[(row + g) % 3]
            at = length - n if side == "left" else 0
            part = (r, g, slice(at, at + n))
            batch["input_ids"][part] = np.random.default_rng([row, g]).integers(0, 50, n)
            batch["segment_ids"][part], batch["position_ids"][part] = 1, np.arange(n)
        extras.append(case.extras(row, at, n))
    if not case.group:
        batch = {name: x[:, 0] for name, x in batch.items()}
    columns = {name: [extra[name] for extra in extras] for name in extras[0]}
    if "first" in columns:
        first, last = (np.arange(length) == np.asarray(columns.pop(name))[:, None] for name in ("first", "last"))
        columns["answer"] = FIRST * first + LAST * last
    if "gap" in columns:
        columns["answer"] = np.arange(length) == np.asarray(columns.pop("gap"))[:, None]
    made = {name: np.asarray(x, np.float32 if np.asarray(x).dtype.kind == "f" else np.int32)
            for name, x in columns.items()}  # fmt: skip
    return {**batch, **made}


@pytest.fixture(params=CASES)
def name(request):
    return request.param


def flat(sums):
    return jnp.stack([sums.loss, sums.weight, *(x for _, pair in sorted(sums.metrics.items()) for x in pair)])


class Made(NamedTuple):
    """A case, its parameters, and programs of its objective, each compiled once for all tests."""

    case: Case
    params: dict
    outputs: object  # (params, batch)
    run: object  # (params, batch) -> (the loss, the sums `flat`), gradient
    drawn: object  # (params, batch, key) -> the loss, with dropout


@functools.cache
def of(name, make):
    case = CASES[name]
    model, params = make("bert", **case.model, num_layers=1, hidden_dropout=0.3)
    if name == "softmax":
        params = with_pair_classifier(params, 16, 3, jax.random.key(0), std=0.4)
    objective = case.objective(model)

    def loss(params, batch, key=None):
        sums = objective.loss({"params": params, "adapters": {}}, batch, key)
        return sums.loss, flat(sums)

    outputs = jax.jit(lambda params, batch: objective.outputs({"params": params, "adapters": {}}, batch))
    run, drawn = jax.jit(jax.value_and_grad(loss, has_aux=True)), jax.jit(lambda *args: loss(*args)[0])
    return Made(case, params, outputs, run, drawn)


@pytest.fixture
def made(make, name):
    return of(name, make)


def test_padding_and_micro_batches(made, name):
    sums = lambda rows, **kwargs: np.asarray(made.run(made.params, lay(made.case, rows, **kwargs))[0][1])  # noqa: E731
    whole = sums([0, 1, 2, None])
    assert whole[1] >= 3 and whole[0] > 0
    others = [sums([None, 2, 0, 1]), sums([0, 1, 2, None], side="left")]
    if name in ("span", "softmax"):  # which take a softmax, a maximum over the columns
        others += [sums([0, 1, 2], length=12)]
    for other in others:
        np.testing.assert_allclose(other, whole, rtol=2e-5, atol=1e-5)
    if name != "in_batch":
        parts = sums([0, 2, None, None]) + sums([None, 1, None, None])
        np.testing.assert_allclose(parts, whole, rtol=2e-5, atol=1e-5)


def test_outputs_do_not_see_padding(made, name):
    first = made.outputs(made.params, lay(made.case, [0, 1, 2, None]))
    for side, rows in (("left", [0, 1, 2, None]), ("right", [None, 0, 1, 2])):
        other = made.outputs(made.params, lay(made.case, rows, side=side))
        for key, value in first.items():
            a, b = np.asarray(value)[:3], np.asarray(other[key])[[i for i, r in enumerate(rows) if r is not None]]
            if name == "span":
                a, b = a[:, :4], np.stack([b[r, 9 - n if side == "left" else 0 :][:4] for r, n in enumerate(LENGTHS)])
            if name == "tagging":
                a, b = a[:, :2], b[:, :2]
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=key)


def test_empty_rows_give_zero_and_no_nan(made):
    (value, _), grads = made.run(made.params, lay(made.case, [None] * 4))
    assert value == 0 and all(not np.asarray(g).any() for g in jax.tree.leaves(grads))
    (value, _), grads = made.run(made.params, lay(made.case, [None, 1, None, 2]))
    assert value > 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    body = {path for path, g in tree.flatten(grads).items() if not np.asarray(g).any()}
    assert not {path for path in body if "layers" in path and "bias" not in path}


def test_dropout_only_with_a_key(made):
    batch = lay(made.case, [0, 1, 2, None])
    a, b, again = (float(made.drawn(made.params, batch, jax.random.key(seed))) for seed in (0, 1, 0))
    assert a != b and a == again and not np.isclose(made.run(made.params, batch)[0][0], (a, b), rtol=1e-4).any()
