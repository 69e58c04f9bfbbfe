"""Beam search on the device: one prefill an example, one compiled loop for all beams of a batch.

`beam_rule="transformers"` is the search of that library, token for token. Of each example's best continuations, those
among the first `num_beams` that end go to its finished ones, and as many others run on. It is over when the best beam
that runs cannot beat the worst finished one, by the bound that `early_stopping` names: False takes the present length,
'never' the most favourable one, True asks no more than `num_beams` finished ones.

`beam_rule="lora"` is that of the LoRA paper's NLG tables (Hu et al. 2021, their published code): penalties look at new
tokens only and come before the softmax; the best `num_beams` continuations are all there is, ended ones included, which
leave the beam empty; at the last step what has not ended competes too. Their code takes all steps; ours stops where no
further one could change the result.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.decode.loop import Prompt, is_end, prefill
from ftjax.decode.options import Options
from ftjax.decode.processors import history, process
from ftjax.models.transformer import Transformer
from ftjax.nn.attention import Cache

NEVER = -1e9  # transformers' minus infinity: sums of it decide between candidates when there are too few


class Beams(NamedTuple):
    """K running beams of each of B examples, and the F best finished ones, the best first."""

    step: jax.Array  # [] new tokens so far
    tokens: jax.Array  # [B, K, N]
    scores: jax.Array  # [B, K] log-probabilities
    origins: jax.Array  # [B, K, N] the beam that each token was of when it was chosen
    found: jax.Array  # [B, F, N]
    found_scores: jax.Array  # [B, F] log-probability / length ** length_penalty
    full: jax.Array  # bool [B, F]: a finished one, no placeholder
    open: jax.Array  # bool [B]: may still find better ones


class Rule(NamedTuple):
    """What is fixed for a search."""

    options: Options
    ends: tuple[int, ...]
    new: int

    @property
    def lengths(self) -> np.ndarray:
        """`[N]`: what a log-probability of 1, 2, ... tokens is divided by."""
        return (np.arange(1, self.new + 1) ** float(self.options.length_penalty)).astype(np.float32)

    def bound(self, step: jax.Array, longest: bool) -> jax.Array:
        """The divisor of the best score that a beam of `step` tokens may get, at its present length or at the last."""
        return jnp.asarray(self.lengths)[self.new - 1 if longest else step - 1]


def _best(scores: jax.Array, k: int, *others: jax.Array) -> tuple[jax.Array, ...]:
    """The k best of `[B, M]`, the first of equals, and the rows of the others at their places."""
    best, at = jax.lax.top_k(scores, k)
    rows = jnp.arange(len(scores))[:, None]
    return best, *(x[rows, at] for x in others)


def _candidates(beams: Beams, logprobs: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The best continuations of all beams: scores `[B, count]`, last token, origins and tokens `[B, count, N]`."""
    b, _, v = logprobs.shape
    scores, at = jax.lax.top_k((logprobs + beams.scores[:, :, None]).reshape(b, -1), count)
    tokens = beams.tokens[jnp.arange(b)[:, None], at // v]
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, (at % v)[:, :, None], beams.step, 2)
    origins = beams.origins[jnp.arange(b)[:, None], at // v]
    return scores, at % v, origins, tokens


def _transformers(beams: Beams, logprobs: jax.Array, rule: Rule) -> Beams:
    o, k, step = rule.options, rule.options.num_beams, beams.step + 1
    early = o.early_stopping is True
    count = max(2, 1 + len(rule.ends)) * k
    scores, ids, origins, tokens = _candidates(beams, logprobs, count)
    stops = is_end(ids, rule.ends) | (step == rule.new)
    running, tokens_on, origins_on = _best(scores + stops * NEVER, k, tokens, origins)
    ended = stops & (jnp.arange(count) < k)
    final = scores / rule.bound(step, False)
    final += (beams.full.all(1, keepdims=True) & early) * NEVER
    final += ~beams.open[:, None] * NEVER
    final += ~ended * NEVER
    merged = (jnp.concatenate(x, 1) for x in ((beams.found, tokens), (beams.full, ended)))
    found_scores, found, full = _best(jnp.concatenate([beams.found_scores, final], 1), k, *merged)
    best = running[:, :1] / rule.bound(step, o.early_stopping == "never" and o.length_penalty > 0)
    better = (best > jnp.where(full, found_scores.min(1, keepdims=True), NEVER)).any(1)
    return Beams(step, tokens_on, running, origins_on, found, found_scores, full, beams.open & better)


def _lora(beams: Beams, logprobs: jax.Array, rule: Rule) -> Beams:
    o, step = rule.options, beams.step + 1
    scores, ids, origins, tokens = _candidates(beams, logprobs, o.num_beams)
    ended = is_end(ids, rule.ends)
    final = jnp.where(ended | (step == rule.new), scores / rule.bound(step, False), -jnp.inf)
    merged = (jnp.concatenate(x, 1) for x in ((beams.found, tokens), (beams.full, final > -jnp.inf)))
    found_scores, found, full = _best(jnp.concatenate([beams.found_scores, final], 1), beams.found.shape[1], *merged)
    running = jnp.where(ended, -jnp.inf, scores)
    better = running.max(1) / rule.bound(step, o.length_penalty > 0) > found_scores[:, -1]
    return Beams(step, tokens, running, origins, found, found_scores, full, better)


def _select(logits: jax.Array, prompt: Prompt, beams: Beams, rule: Rule) -> Beams:
    """One more token of each beam, from logits `[B, K, V]`; `prompt` has B x K rows."""
    rows = logits.reshape(-1, logits.shape[-1])
    seen = history(prompt.ids, prompt.mask, beams.tokens.reshape(len(rows), -1), beams.step)
    if rule.options.beam_rule == "lora":
        seen = seen._replace(start=jnp.full_like(seen.start, prompt.ids.shape[1]))
        rows = jax.nn.log_softmax(process(rows, seen, beams.step, rule.options, rule.ends), -1)
        return _lora(beams, rows.reshape(logits.shape), rule)
    rows = process(jax.nn.log_softmax(rows, -1), seen, beams.step, rule.options, rule.ends)
    return _transformers(beams, rows.reshape(logits.shape), rule)


@functools.partial(jax.jit, static_argnames=("model", "new", "options", "ends"))
def beam_search(
    model: Transformer, variables: Any, step_variables: Any, prompt: Prompt, pad: int, *, new: int, options: Options,
    ends: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The best `num_return_sequences` of each example, the best first.

    Args:
      step_variables: `for_steps`' for one row an example: its beams are that row's queries.
    Returns:
      (new tokens `[B, R, N]` up to an end, then `pad`; scores `[B, R]`: log-probability / length ** length_penalty)
    """
    b, t = prompt.ids.shape
    k, rule = options.num_beams, Rule(options, ends, new)
    lora = options.beam_rule == "lora"
    finished, least = (options.num_return_sequences, -jnp.inf) if lora else (k, NEVER)
    logits, cache = prefill(model, variables, prompt, k * (new - 1))
    lengths, mask = prompt.mask.sum(1), jnp.broadcast_to(prompt.mask[:, None] != 0, (b, k, t))
    prompt = prompt.repeat(k)
    beams = Beams(
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.full((b, k, new), pad, jnp.int32),
        scores=jnp.broadcast_to(jnp.where(jnp.arange(k) == 0, 0.0, least), (b, k)),  # beams are alike at first
        origins=jnp.zeros((b, k, new), jnp.int32),
        found=jnp.full((b, finished, new), pad, jnp.int32),
        found_scores=jnp.full((b, finished), least),
        full=jnp.zeros((b, finished), bool),
        open=jnp.ones(b, bool),
    )
    beams = _select(jnp.repeat(logits[:, None], k, 1), prompt, beams, rule)
    kept = slice(options.num_return_sequences)
    if new == 1:  # the cache has no slot for what the loop would feed
        return beams.found[:, kept], beams.found_scores[:, kept]

    def going(state: tuple[Beams, Cache]) -> jax.Array:
        beams = state[0]
        enough = beams.full.all() & (options.early_stopping is True)
        return (beams.step < new) & beams.open.any() & ~enough

    def body(state: tuple[Beams, Cache]) -> tuple[Beams, Cache]:
        beams, cache = state
        # the token chosen at a step lies in the slot of its beam, the beam itself in those of its forebears
        own = jnp.arange(k)
        origins = jax.lax.dynamic_update_slice_in_dim(
            beams.origins, jnp.broadcast_to(own[:, None], (b, k, 1)), beams.step - 1, 2
        )
        beams = beams._replace(origins=origins)
        ours = (origins[:, :, : new - 1, None] == own) & (jnp.arange(new - 1) < beams.step)[:, None]
        seen = jnp.concatenate([mask, ours.reshape(b, k, -1)], 2)
        last = jax.lax.dynamic_index_in_dim(beams.tokens, beams.step - 1, 2, keepdims=False)
        at = jnp.broadcast_to((lengths + beams.step - 1)[:, None], (b, k))
        out: Any = model.apply(step_variables, last, position_ids=at, cache=cache, seen=seen, method="hidden")
        logits, cache = model.apply(step_variables, out.last_hidden, method="logits"), out.cache
        return _select(logits.reshape(b, k, -1), prompt, beams, rule), cache

    beams, _ = jax.lax.while_loop(going, body, (beams, cache))
    return beams.found[:, kept], beams.found_scores[:, kept]
