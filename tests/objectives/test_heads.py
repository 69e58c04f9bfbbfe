"""Losses of the heads are those of transformers, and what they predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ftjax.errors import UserError
from ftjax.objectives.regression import regression
from ftjax.objectives.span import span
from ftjax.objectives.tagging import tagging
from ftjax.objectives.words import between_words, cloze, label_words, value_between

B, T = 3, 7
RNG = np.random.default_rng(0)


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
    sums = tagging(model).loss(variables, batch, None)
    np.testing.assert_allclose(mean(sums), out.loss, rtol=1e-5)
    tags = out.logits.argmax(-1).numpy()
    real = labels != -100
    assert sums.weight == real.sum() and sums.metrics["accuracy"][0] == (tags == labels)[real].sum()
    found = tagging(model).outputs(variables, batch)
    np.testing.assert_array_equal(found["tag"], tags)
    np.testing.assert_allclose(found["nll"].sum(), sums.loss, rtol=1e-5)

    some = {"label_positions": np.array([[5, 1], [0, 0], [3, 6]]), "labels": np.array([[1, 2], [-100, -100], [0, 3]])}
    picked = tagging(model).outputs(variables, batch | some)["tag"]
    np.testing.assert_array_equal(picked, np.take_along_axis(tags, some["label_positions"], 1))


def test_span(theirs, full):
    torch_model, model, variables = theirs("BertForQuestionAnswering")
    ids, batch = full(B, T)
    labels = np.array([[1, 4], [0, 0], [6, 6]])
    with torch.no_grad():
        starts, ends = torch.from_numpy(labels.T.copy())
        out = torch_model(ids, start_positions=starts, end_positions=ends)
    sums = span(model).loss(variables, batch | {"labels": labels}, None)
    np.testing.assert_allclose(mean(sums), out.loss, rtol=1e-5)
    found = span(model).outputs(variables, batch)
    np.testing.assert_allclose(found["start"], out.start_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["end"], out.end_logits, rtol=1e-4, atol=1e-5)
    right = [out.start_logits.numpy().argmax(1), out.end_logits.numpy().argmax(1)]
    full_marks = span(model).loss(variables, batch | {"labels": np.stack(right, 1)}, None)
    assert full_marks.metrics["accuracy"] == (3, 3) and full_marks.loss < sums.loss
    half = span(model).loss(variables, batch | {"labels": np.stack([right[0], (right[1] + 1) % T], 1)}, None)
    assert half.metrics["accuracy"][0] == 0


def test_span_never_chooses_padding(theirs, full):
    _, model, variables = theirs("BertForQuestionAnswering")
    batch = full(B, T)[1]
    batch["segment_ids"] = (np.arange(T) < np.array([[7], [3], [0]])).astype(np.int32)
    found = span(model).outputs(variables, batch)
    assert (np.asarray(found["start"])[1, 3:] == np.finfo(np.float32).min).all() and found["end"].argmax(1)[1] < 3


def test_regression(theirs, full):
    torch_model, model, variables = theirs("BertForSequenceClassification", num_labels=1)
    ids, batch = full(B, T)
    labels = np.array([0.0, 3.2, 5.0], np.float32)
    with torch.no_grad():
        out = torch_model(ids, labels=torch.from_numpy(labels))
    batch["labels"] = labels
    objective = regression(model)
    np.testing.assert_allclose(mean(objective.loss(variables, batch, None)), out.loss, rtol=1e-5)
    found = objective.outputs(variables, batch)["value"]
    np.testing.assert_allclose(found, out.logits[:, 0], rtol=1e-4, atol=1e-5)
    features = {"features": objective.features(variables, batch), "labels": labels}
    np.testing.assert_array_equal(objective.head.outputs(variables, features)["value"], found)
    for key in (None, jax.random.key(0)):
        assert objective.loss(variables, batch, None).loss == objective.head.loss(variables, features, None).loss
        assert np.isfinite(objective.head.loss(variables, features, key).loss)


def test_regression_needs_one_output(make):
    with pytest.raises(UserError, match="num_classes=1, got head='classification' with num_classes=3"):
        regression(make("bert", head="classification").model)


def gap(at):
    """`[B, T]`, 1 at each row's slot."""
    return jnp.asarray(np.arange(T) == np.asarray(at)[:, None], jnp.int32)


def test_words_of_a_masked_model(theirs, full):
    torch_model, model, variables = theirs("BertForMaskedLM")
    ids, batch = full(B, T)
    at, labels, words = [2, 6, 0], np.array([1, -100, 2]), [9, 41, 3]
    with torch.no_grad():
        logits = torch_model(ids).logits[range(B), at][:, words]
    theirs_loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    batch |= {"answer": gap(at), "labels": labels}
    objective = label_words(model, words=[[word] for word in words])
    sums = objective.loss(variables, batch, None)
    np.testing.assert_allclose(mean(sums), theirs_loss, rtol=1e-5)
    np.testing.assert_allclose(objective.outputs(variables, batch)["logits"], logits, rtol=1e-4, atol=1e-5)
    assert sums.weight == 2


def test_words_of_several_tokens(theirs, full):
    """Two classes, of one and of two tokens: the mean of the log-probabilities at the masks of each."""
    torch_model, model, variables = theirs("BertForMaskedLM")
    ids, flat = full(2 * B, T)
    with torch.no_grad():
        log_p = torch_model(ids).logits.log_softmax(-1)
    answer = np.zeros((B, 2, T), int)
    answer[:, 0, 3] = 10
    answer[:, 1, [2, 3]] = 42, 4
    expected = torch.stack([log_p[::2, 3, 9], (log_p[1::2, 2, 41] + log_p[1::2, 3, 3]) / 2], 1)
    batch = {name: x.reshape(B, 2, T) for name, x in flat.items()} | {"answer": jnp.asarray(answer)}
    found = label_words(model, words=[[9], [41, 3]]).outputs(variables, batch | {"labels": np.zeros(B, int)})["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_between_two_words(theirs, full):
    torch_model, model, variables = theirs("BertForMaskedLM")
    ids, batch = full(B, T)
    scores = np.array([1.0, 4.0, 3.1], np.float32)
    with torch.no_grad():
        log_p = torch_model(ids).logits[:, 2][:, [9, 41]].log_softmax(-1)
    q = torch.from_numpy(np.stack([4 - scores, scores - 1], 1) / 3)
    batch |= {"answer": gap([2] * B), "labels": scores}
    objective = between_words(model, words=[[9], [41]], bounds=(1.0, 4.0))
    theirs_loss = torch.nn.functional.kl_div(log_p, q, reduction="batchmean")
    np.testing.assert_allclose(mean(objective.loss(variables, batch, None)), theirs_loss, rtol=1e-5)
    p = log_p.exp().numpy()
    values = p[:, 0] + 4 * p[:, 1]
    logits = np.asarray(objective.outputs(variables, batch)["logits"])
    np.testing.assert_allclose(value_between(logits, (1.0, 4.0)), values, rtol=1e-5)
    exact = objective.loss(variables, batch | {"labels": jnp.asarray(values)}, None)
    np.testing.assert_allclose(exact.loss, 0, atol=1e-5)  # KL of a thing from itself


def test_the_word_itself(theirs, full):
    torch_model, model, variables = theirs("BertForMaskedLM")
    ids, batch = full(B, T)
    at, labels = [2, 6, 0], np.array([1, -100, 2])
    with torch.no_grad():
        logits = torch_model(ids).logits[range(B), at]
    batch |= {"answer": gap(at), "labels": labels}
    sums = cloze(model).loss(variables, batch, None)
    np.testing.assert_allclose(
        mean(sums), torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)), rtol=1e-5
    )
    np.testing.assert_array_equal(cloze(model).outputs(variables, batch)["best"], logits.argmax(-1))
    known = torch.tensor([30, 4, 17])
    found = cloze(model, candidates=known.tolist()).outputs(variables, batch)["best"]
    np.testing.assert_array_equal(found, known[logits[:, known].argmax(-1)])


def test_words_of_a_causal_model(make, full):
    """Without a mask the gap is after the last real token."""
    made, batch = make("gpt2"), full(B, T)[1]
    batch |= {"segment_ids": jnp.asarray(np.arange(T) < np.full((B, 1), 5), jnp.int32), "labels": np.array([0, 1, 1])}
    variables = {"params": made.params, "adapters": {}}
    logits = made.model.apply(variables, batch["input_ids"][:, :5]).logits[:, -1]
    found = label_words(made.model, words=[[8], [2]]).outputs(variables, batch)["logits"]
    np.testing.assert_allclose(found, logits[:, jnp.array([8, 2])], rtol=1e-4, atol=1e-5)


def test_words_that_are_none(make):
    model = make("gpt2").model
    with pytest.raises(UserError, match=r"label words \[50, -1\] are outside the vocabulary of 50 tokens"):
        label_words(model, words=[[50], [3], [-1]])
    with pytest.raises(UserError, match="give each class one token or more"):
        label_words(model, words=[[5], []])
    with pytest.raises(UserError, match="give the low end"):
        between_words(model, words=[[1], [2]], bounds=(5.0, 0.0))
