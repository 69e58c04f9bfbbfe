"""Beam search finds what transformers' finds, and by LoRA's rule what a slow reading of it finds."""

import math
from itertools import cycle

import jax
import numpy as np
import pytest

from ftjax.decode.generate import continuations
from tests.decode.conftest import NEW, PAD, VOCAB, T

CASES = {
    "plain": dict(num_beams=3, num_return_sequences=3, eos_token_id=2),
    "early": dict(num_beams=3, num_return_sequences=2, early_stopping=True, eos_token_id=(2, 7, 11, 20)),
    "never": dict(
        num_beams=4, early_stopping="never", length_penalty=2.0, num_return_sequences=4, eos_token_id=(14, 25)
    ),
    "short": dict(num_beams=3, early_stopping="never", length_penalty=-1.0, eos_token_id=(2, 7)),
    "penalties": dict(
        num_beams=4, repetition_penalty=1.7, no_repeat_ngram_size=2, min_new_tokens=3, length_penalty=0.0,
        num_return_sequences=4, eos_token_id=(2, 7, 11, 20),
    ),
}  # fmt: skip


@pytest.mark.parametrize(  # each case on one of the models
    ("twins", "case"), list(zip(cycle(("gpt2", "llama")), CASES.values())), indirect=["twins"], ids=CASES
)
def test_transformers_finds_the_same(case, twins, prompts, their_answer):
    torch_model, model, params = twins
    ends = np.atleast_1d(case["eos_token_id"]).tolist()
    theirs, scores = their_answer(torch_model, **case | {"eos_token_id": ends})
    ours = continuations(model, params, *prompts, max_new_tokens=NEW, pad_token_id=PAD, **case)
    assert (ours.tokens.reshape(theirs.shape) == theirs).all()
    np.testing.assert_allclose(ours.scores.reshape(-1), scores, rtol=1e-4)
    ended = np.isin(ours.tokens, ends).any(-1)
    assert ((ours.lengths < NEW) <= ended).all() and (ended.any() or len(ends) == 1)


@pytest.mark.parametrize("twins", ["llama"], indirect=True)
def test_one_token_of_more_beams_than_the_prompt_is_long(twins, prompts, their_answer):
    torch_model, model, params = twins
    options = dict(num_beams=T + 2, num_return_sequences=T + 2, eos_token_id=2)
    theirs, scores = their_answer(torch_model, new=1, **options)
    ours = continuations(model, params, *prompts, max_new_tokens=1, pad_token_id=PAD, **options)
    assert (ours.tokens.reshape(theirs.shape) == theirs).all()
    np.testing.assert_allclose(ours.scores.reshape(-1), scores, rtol=1e-4)


def lora_beams(logits_of, prompt, ends, num_beams, length_penalty, ngram):
    """[(score, tokens)] of all that ever competed, the best first: the paper's search (its code, in words), slowly."""
    beams, found = [(0.0, [])], []
    for step in range(1, NEW + 1):
        options = []
        for number, (total, tokens) in enumerate(beams):
            if total == -math.inf:
                continue
            logits = logits_of([*prompt, *tokens])
            for token in range(VOCAB):
                run = [*tokens, token][-ngram:]
                before = [tokens[i : i + ngram] for i in range(len(tokens) - ngram + 1)]
                if ngram and len(run) == ngram and run in before:
                    logits[token] = -math.inf
            logprobs = logits - np.logaddexp.reduce(logits)
            options += [(total + logprobs[token], number, token) for token in range(VOCAB)]
        beams = [(total, [*beams[number][1], token]) for total, number, token in sorted(options)[::-1][:num_beams]]
        for i, (total, tokens) in enumerate(beams):
            if tokens[-1] in ends or step == NEW:
                found.append((total / step**length_penalty, tokens))
                beams[i] = (-math.inf, tokens)
    return sorted(found, key=lambda pair: -pair[0])


@pytest.mark.parametrize(("twins", "options"), [
    ("gpt2", dict(num_beams=4, length_penalty=0.8, no_repeat_ngram_size=2)),
    ("llama", dict(num_beams=3, length_penalty=-0.5, no_repeat_ngram_size=1)),
    ("gpt2", dict(num_beams=1)),
], indirect=["twins"])  # fmt: skip
def test_the_rule_of_lora(options, twins, prompts):
    _, model, params = twins
    apply = jax.jit(lambda ids, mask: model.apply({"params": params}, ids, mask).logits)

    def logits_of(tokens):
        row = np.zeros((2, 1, T + NEW), np.int32)
        row[0, 0, : len(tokens)], row[1, 0, : len(tokens)] = tokens, 1
        return np.asarray(apply(*row))[0, len(tokens) - 1].astype(np.float64)

    ends, kept = (2, 7, 11), min(options["num_beams"], 2)
    ours = continuations(
        model, params, *prompts, max_new_tokens=NEW, eos_token_id=ends, pad_token_id=PAD, beam_rule="lora",
        num_return_sequences=kept, **options,
    )  # fmt: skip
    for ids, mask, tokens, lengths, scores in zip(*prompts, *ours):
        slow = lora_beams(
            logits_of, ids[mask == 1].tolist(), ends, options["num_beams"], options.get("length_penalty", 1.0),
            options.get("no_repeat_ngram_size", 0),
        )  # fmt: skip
        assert [row[:n].tolist() for row, n in zip(tokens, lengths)] == [row for _, row in slow[:kept]]
        np.testing.assert_allclose(scores, [score for score, _ in slow[:kept]], rtol=1e-4)
