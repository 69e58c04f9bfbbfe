"""Each processor does what transformers' does, and padding counts for nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hf

from ftjax.decode.options import Options
from ftjax.decode.processors import history, process

T, NEW, VOCAB, ENDS = 5, 7, 12, (2, 4)


def expected(scores, tokens, start, step, how):
    """transformers' scores of one row, which it sees without padding."""
    steps = hf.LogitsProcessorList()
    if how.repetition_penalty != 1:
        steps.append(hf.RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
    if how.no_repeat_ngram_size:
        steps.append(hf.NoRepeatNGramLogitsProcessor(how.no_repeat_ngram_size))
    if how.min_new_tokens:
        steps.append(hf.MinNewTokensLengthLogitsProcessor(T - int(start), how.min_new_tokens, list(ENDS)))
    if how.forced_eos_token_id is not None:
        steps.append(hf.ForcedEOSTokenLogitsProcessor(T - int(start) + NEW, how.forced_eos_token_id))
    return steps(torch.from_numpy(tokens[None, start : T + step]).long(), torch.from_numpy(scores[None]))[0].numpy()


@pytest.mark.parametrize("how", [
    Options(repetition_penalty=1.6), Options(repetition_penalty=0.7), Options(no_repeat_ngram_size=1),
    Options(no_repeat_ngram_size=2), Options(no_repeat_ngram_size=3), Options(min_new_tokens=3),
    Options(repetition_penalty=1.6, no_repeat_ngram_size=2, min_new_tokens=4), Options(no_repeat_ngram_size=13),
    Options(forced_eos_token_id=2, min_new_tokens=7), Options(forced_eos_token_id=(3, 5)),
])  # fmt: skip
def test_as_in_transformers(how):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 3, (4, T + NEW)).astype(np.int32)  # few tokens, many repetitions
    scores = rng.normal(0, 2, (4, VOCAB)).astype(np.float32)
    starts, changed = np.array([0, 2, 4, 3]), 0
    mask = (np.arange(T) >= starts[:, None]).astype(np.int32)

    @jax.jit
    def processed(step):
        seen = history(jnp.asarray(tokens[:, :T]), jnp.asarray(mask), jnp.asarray(tokens[:, T:]), step)
        return process(jnp.asarray(scores), seen, step, how, ENDS)

    for step in (0, 1, 3, NEW - 1):
        ours = np.asarray(processed(step))
        theirs = np.stack([expected(s, t, a, step, how) for s, t, a in zip(scores, tokens, starts)])
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        changed += (ours != scores).sum()
    assert changed > 0 or how.no_repeat_ngram_size == 13


def test_virtual_ids_are_no_tokens():
    how = Options(repetition_penalty=2.0, no_repeat_ngram_size=1)
    prompt = jnp.asarray([[VOCAB, VOCAB + 1, VOCAB, 3]])

    @jax.jit
    def processed(step):
        seen = history(prompt, jnp.ones((1, 4), int), jnp.zeros((1, 2), int), step)
        return process(jnp.ones((1, VOCAB)), seen, step, how, ())

    assert np.asarray(processed(0))[0].tolist() == [1.0] * 3 + [-np.inf] + [1.0] * (VOCAB - 4)
