"""Losses of the heads are those of transformers, and what they predict."""

import functools

import jax
import numpy as np
import pytest
import torch

from ftjax.errors import UserError
from ftjax.objectives.regression import regression
from ftjax.objectives.span import FIRST, LAST, span
from ftjax.objectives.tagging import tagging

B, T = 3, 7
RNG = np.random.default_rng(0)


@functools.cache
def programs(objective, model):
    """The loss and the outputs, compiled once for all tests."""
    made = objective(model)
    return jax.jit(made.loss), jax.jit(made.outputs)


def mean(sums):
    return sums.loss / sums.weight


def test_tagging(theirs, full):
    torch_model, model, variables = theirs("BertForTokenClassification", num_labels=4)
    ids, batch = full(B, T)
    labels = RNG.integers(0, 4, (B, T))
    labels[0, 2:5] = labels[1] = -100
    batch |= {"label_positions": np.broadcast_to(np.arange(T), (B, T)), "labels": labels}
    with torch.no_grad():
        out = torch_model(ids, labels=torch.from_numpy(labels))
    loss, outputs = programs(tagging, model)
    sums = loss(variables, batch, None)
    np.testing.assert_allclose(mean(sums), out.loss, rtol=1e-5)
    tags = out.logits.argmax(-1).numpy()
    real = labels != -100
    assert sums.weight == real.sum() and sums.metrics["accuracy"][0] == (tags == labels)[real].sum()
    found = jax.device_get(outputs(variables, batch))
    np.testing.assert_array_equal(found["tag"], tags)
    np.testing.assert_allclose(found["nll"].sum(), sums.loss, rtol=1e-5)

    some = {"label_positions": np.array([[5, 1], [0, 0], [3, 6]]), "labels": np.array([[1, 2], [-100, -100], [0, 3]])}
    picked = outputs(variables, batch | some)["tag"]
    np.testing.assert_array_equal(picked, np.take_along_axis(tags, some["label_positions"], 1))


def marks(ends):
    first, last = (np.arange(T) == np.asarray(end)[:, None] for end in ends.T)
    return {"answer": FIRST * first + LAST * last}


def test_span(theirs, full):
    torch_model, model, variables = theirs("BertForQuestionAnswering")
    ids, batch = full(B, T)
    labels = np.array([[1, 4], [0, 0], [6, 6]])
    with torch.no_grad():
        starts, ends = torch.from_numpy(labels.T.copy())
        out = torch_model(ids, start_positions=starts, end_positions=ends)
    loss, outputs = programs(span, model)
    sums = loss(variables, batch | marks(labels), None)
    np.testing.assert_allclose(mean(sums), out.loss, rtol=1e-5)
    found = outputs(variables, batch)
    np.testing.assert_allclose(found["start"], out.start_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["end"], out.end_logits, rtol=1e-4, atol=1e-5)
    right = [out.start_logits.numpy().argmax(1), out.end_logits.numpy().argmax(1)]
    full_marks = loss(variables, batch | marks(np.stack(right, 1)), None)
    assert full_marks.metrics["accuracy"] == (3, 3) and full_marks.loss < sums.loss
    half = loss(variables, batch | marks(np.stack([right[0], (right[1] + 1) % T], 1)), None)
    assert half.metrics["accuracy"][0] == 0


def test_span_never_chooses_padding(theirs, full):
    _, model, variables = theirs("BertForQuestionAnswering")
    batch = full(B, T)[1]
    batch["segment_ids"] = (np.arange(T) < np.array([[7], [3], [0]])).astype(np.int32)
    found = jax.device_get(programs(span, model)[1](variables, batch))
    assert (found["start"][1, 3:] == np.finfo(np.float32).min).all() and found["end"].argmax(1)[1] < 3


def test_regression(theirs, full):
    torch_model, model, variables = theirs("BertForSequenceClassification", num_labels=1)
    ids, batch = full(B, T)
    labels = np.array([0.0, 3.2, 5.0], np.float32)
    with torch.no_grad():
        out = torch_model(ids, labels=torch.from_numpy(labels))
    batch["labels"] = labels
    objective = regression(model)

    @jax.jit
    def all_of(variables, batch, key):  # in one program equal operations are one: equal bits
        features = {"features": objective.features(variables, batch), "labels": batch["labels"]}
        losses = [objective.head.loss(variables, features, k).loss for k in (None, key)]
        values = objective.outputs(variables, batch)["value"], objective.head.outputs(variables, features)["value"]
        return objective.loss(variables, batch, None), values, losses

    sums, (found, split), (loss, drawn) = all_of(variables, batch, jax.random.key(0))
    np.testing.assert_allclose(mean(sums), out.loss, rtol=1e-5)
    np.testing.assert_allclose(found, out.logits[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(split, found)
    assert sums.loss == loss and np.isfinite(drawn)


def test_regression_needs_one_output(make):
    with pytest.raises(UserError, match="num_classes=1, got head='classification' with num_classes=3"):
        regression(make("bert", head="classification").model)
