"""The word in a gap: against torch, by hand, single words against phrases."""

import functools

import jax
import numpy as np
import pytest
import scipy.special
import torch

from ftjax.errors import UserError
from ftjax.objectives.words import between_words, cloze, label_words, value_between

B, T = 3, 7
AT = np.array([2, 6, 0])
MARKS = np.eye(T, dtype=np.int32)[AT] * 5
EMPTY = np.array([1, 1, 0])[:, None]  # the last row is filler


def mean(sums):
    return sums.loss / sums.weight


def logits_of(torch_model, ids, at):
    with torch.no_grad():
        return torch_model(ids).logits[range(len(at)), at]


def test_words_of_a_masked_model(theirs, full):
    torch_model, model, variables = theirs("BertForMaskedLM")
    ids, batch = full(B, T)
    labels, words = np.array([1, 2, -100]), [[9], [41], [3]]
    logits = logits_of(torch_model, ids, AT)[:, [9, 41, 3]]
    batch |= {"answer": MARKS * EMPTY, "labels": labels}
    objective = label_words(model, words=words)
    sums = jax.jit(objective.loss)(variables, batch, None)
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    np.testing.assert_allclose(mean(sums), expected, rtol=1e-5)
    found = jax.jit(objective.outputs)(variables, batch)["logits"]
    np.testing.assert_allclose(np.asarray(found)[:2], logits[:2], rtol=1e-4, atol=1e-5)
    assert sums.weight == 2 and sums.metrics["accuracy"][0] == (logits.numpy().argmax(1) == labels)[:2].sum()
    smooth = jax.jit(label_words(model, words=words, label_smoothing=0.3).loss)(variables, batch, None)
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=0.3)
    np.testing.assert_allclose(mean(smooth), expected, rtol=1e-5)


def test_between_two_words(theirs, full):
    torch_model, model, variables = theirs("BertForMaskedLM")
    ids, batch = full(B, T)
    scores = np.array([1.0, 3.1, np.nan], np.float32)
    logits = logits_of(torch_model, ids, AT)[:, [9, 41]]
    q = torch.from_numpy(np.stack([4 - scores, scores - 1], 1)[:2] / 3)
    batch |= {"answer": MARKS * EMPTY, "labels": scores}
    objective = between_words(model, words=[[9], [41]], bounds=(1.0, 4.0))
    expected = torch.nn.functional.kl_div(logits[:2].log_softmax(-1), q, reduction="batchmean")
    loss = jax.jit(objective.loss)
    sums = loss(variables, batch, None)
    np.testing.assert_allclose(mean(sums), expected, rtol=1e-5)
    p = logits.softmax(-1).numpy()
    found = value_between(np.asarray(jax.jit(objective.outputs)(variables, batch)["logits"]), (1.0, 4.0))
    values = p[:, 0] + 4 * p[:, 1]
    np.testing.assert_allclose(found[:2], values[:2], rtol=1e-5)
    np.testing.assert_allclose(sums.metrics["squared_error"][0], np.square(values - scores)[:2].sum(), rtol=1e-5)
    exact = {**batch, "labels": values}
    np.testing.assert_allclose(loss(variables, exact, None).loss, 0, atol=1e-5)  # KL of a thing from itself


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_causal_model_answers_after_its_last_token(make, full, side):
    made, batch = make("gpt2", num_layers=1), full(B, T)[1]
    lengths = np.array([7, 4, 4])
    first = T - lengths if side == "left" else 0 * lengths
    real = (np.arange(T) >= first[:, None]) & (np.arange(T) < (first + lengths)[:, None])
    batch["segment_ids"] = real.astype(np.int32)
    batch["position_ids"] = np.where(real, np.arange(T) - first[:, None], 0)
    batch["labels"] = np.array([0, 1, 1])
    variables = {"params": made.params, "adapters": {}}
    found = jax.jit(label_words(made.model, words=[[8], [2]]).outputs)(variables, batch)["logits"]
    apply = jax.jit(made.model.apply)
    for i in range(B):
        alone = batch["input_ids"][i : i + 1, first[i] : first[i] + lengths[i]]
        logits = np.asarray(apply(variables, alone).logits)[0, -1]
        np.testing.assert_allclose(found[i], logits[[8, 2]], rtol=1e-4, atol=1e-5)


WORDS = [[9], [41, 3], [7]]


def phrases(full):
    """A batch of two rows in groups of WORDS; the masks of one word are not beside each other."""
    ids, batch = full(2 * 3, T)
    marks = np.zeros((2, 3, T), np.int32)
    marks[:, 0, 2], marks[:, 2, 2] = 10, 8
    marks[:, 1, 1], marks[:, 1, 4] = 42, 4
    batch = {name: x.reshape(2, 3, T) for name, x in batch.items()}
    batch["input_ids"][:, 2] = batch["input_ids"][:, 0]  # both of one mask
    ids = torch.from_numpy(batch["input_ids"].astype(np.int64))
    return ids, batch | {"answer": marks, "labels": np.array([1, 2])}


@functools.cache
def of_phrases(model):
    objective = label_words(model, words=WORDS)
    return jax.jit(objective.loss), jax.jit(objective.outputs)


def test_phrases_are_the_mean_of_their_tokens(theirs, full):
    torch_model, model, variables = theirs("BertForMaskedLM")
    ids, batch = phrases(full)
    with torch.no_grad():
        log_p = torch_model(ids.reshape(6, T)).logits.log_softmax(-1).reshape(2, 3, T, -1)
    scores = torch.stack(
        [log_p[:, 0, 2, 9], (log_p[:, 1, 1, 41] + log_p[:, 1, 4, 3]) / 2, log_p[:, 2, 2, 7]], 1
    )  # fmt: skip
    loss, outputs = of_phrases(model)
    np.testing.assert_allclose(outputs(variables, batch)["logits"], scores, rtol=1e-4, atol=1e-5)
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor([1, 2]))
    np.testing.assert_allclose(mean(loss(variables, batch, None)), expected, rtol=1e-5)


def test_words_of_one_token_are_phrases_of_one(theirs, full):
    _, model, variables = theirs("BertForMaskedLM")
    _, batch = phrases(full)
    grouped = np.asarray(of_phrases(model)[1](variables, batch)["logits"])
    alone = {name: x[:, 0] if x.ndim == 3 else x for name, x in batch.items()}
    single = np.asarray(jax.jit(label_words(model, words=[[9], [7]]).outputs)(variables, alone)["logits"])
    found, expected = (scipy.special.log_softmax(x, -1) for x in (grouped[:, [0, 2]], single))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_cloze_is_over_the_vocabulary_and_chooses_a_candidate(theirs, full):
    torch_model, model, variables = theirs("BertForMaskedLM")
    ids, batch = full(B, T)
    labels = np.array([17, 30, -100])
    logits = logits_of(torch_model, ids, AT)
    batch |= {"answer": MARKS * EMPTY, "labels": labels}
    whole, some = cloze(model), cloze(model, candidates=(30, 5, 17))
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="none")
    candidates = np.array([30, 5, 17])
    best = logits.argmax(-1).numpy(), candidates[logits[:, candidates].argmax(-1)]
    for objective, word in zip((whole, some), best):
        np.testing.assert_allclose(jax.jit(objective.loss)(variables, batch, None).loss, expected.sum(), rtol=1e-5)
        found = jax.device_get(jax.jit(objective.outputs)(variables, batch))
        np.testing.assert_allclose(found["nll"], expected, rtol=1e-5)
        assert found["best"][:2].tolist() == word[:2].tolist()


def test_words_that_are_none(make):
    model = make("gpt2").model
    with pytest.raises(UserError, match=r"label words \[50, -1\] are outside the vocabulary of 50 tokens"):
        label_words(model, words=[[50, 3], [-1]])
    with pytest.raises(UserError, match="give each class one token or more"):
        label_words(model, words=[[3], []])
    with pytest.raises(UserError, match=r"label words \[50\] are outside"):
        cloze(model, candidates=(1, 50))
    for words, bounds in (([[1], [2]], (5.0, 0.0)), ([[1], [2], [3]], (0.0, 5.0))):
        with pytest.raises(UserError, match="give the low end, then the high one, a word each"):
            between_words(model, words=words, bounds=bounds)
