"""The word in a gap: classes and numbers by label words (LM-BFF, Gao et al. 2021, section 4), and the word itself
(LAMA, Petroni et al. 2019).

Batches hold `input_ids`, `segment_ids`, `position_ids` `[B, T]`, one example a row, and `answer` `[B, T]`, which is not
0 at the gap; without `answer`, as of a causal model, the gap is after the last real token. The model's head is `mlm` or
`lm`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.errors import UserError
from ftjax.models.transformer import Transformer
from ftjax.objectives.base import Objective, Sums
from ftjax.objectives.body import at, class_sums, hidden_states, scores
from ftjax.objectives.cross_entropy import cross_entropy

Batch = Mapping[str, jax.Array]
Words = Sequence[Sequence[int]]  # the tokens of each class's word


def label_words(model: Transformer, *, words: Words, label_smoothing: float = 0.0) -> Objective:
    """Cross-entropy over label words: p(c | x) = softmax over c of s_c, at `labels` int `[B]`, -100 in an empty row.

    Where each word is one token, s_c is its logit in the gap. Otherwise a batch has groups of C sequences `[B, C, T]`,
    of which the c-th has as many masks as `words[c]` has tokens; `answer` is 1 + the token at its masks, and s_c the
    mean of their log-probabilities.

    Outputs: `logits` `[B, C]`, fp32.

    Raises:
      UserError: a word without tokens, or one outside the vocabulary.
    """
    of_words = _scores(model, words)

    def loss(variables: Any, batch: Batch, key: jax.Array | None) -> Sums:
        return class_sums(of_words(variables, batch, key), batch["labels"], label_smoothing)

    return Objective(loss, lambda variables, batch: {"logits": of_words(variables, batch, None)})


def between_words(model: Transformer, *, words: Words, bounds: tuple[float, float]) -> Objective:
    """Regression by interpolation between two label words, for the low and the high end of `bounds` (section 4.2):
    value = low p(words[0]) + high p(words[1]), and the loss is KL(q || p) with q(words[1]) = (label - low) / (high -
    low).

    Batches as of `label_words`, with `labels` float `[B]` in `bounds`, NaN in an empty row.

    Outputs: `logits` `[B, 2]`, fp32; `value_between` makes numbers of them.

    Raises:
      UserError: as `label_words`; not two words, or bounds that do not rise.
    """
    of_words = _scores(model, words)
    low, high = bounds
    if not low < high or len(words) != 2:
        raise UserError(
            f"bounds={tuple(bounds)} of {len(words)} words: give the low end, then the high one, a word each"
        )

    def loss(variables: Any, batch: Batch, key: jax.Array | None) -> Sums:
        found, labels = of_words(variables, batch, key), batch["labels"]
        real = ~jnp.isnan(labels)
        share = (jnp.where(real, labels, low) - low) / (high - low)
        q, log_p = jnp.stack([1 - share, share], -1), jax.nn.log_softmax(found)
        divergence = jnp.where(real, (jax.scipy.special.xlogy(q, q) - q * log_p).sum(-1), 0).sum()
        weight = real.sum().astype(jnp.float32)
        value = (jax.nn.softmax(found) * jnp.asarray(bounds)).sum(-1)
        error = jnp.where(real, jnp.square(value - labels), 0).sum()
        return Sums(divergence, weight, {"squared_error": (error, weight)})

    return Objective(loss, lambda variables, batch: {"logits": of_words(variables, batch, None)})


def value_between(logits: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """low p(0) + high p(1) of logits `[n, 2]`: `[n]`, fp64."""
    low, high = bounds
    gap = logits[:, 1].astype(np.float64) - logits[:, 0]
    return low + (high - low) * np.exp(-np.logaddexp(0, -gap))


def cloze(model: Transformer, *, candidates: Sequence[int] | None = None) -> Objective:
    """Cross-entropy over the whole vocabulary of the token in the gap, `labels` int `[B]`, -100 in an empty row.

    Outputs: `best` int `[B]`, the likeliest token, of `candidates` where they are given; `nll` `[B]` of the label.

    Raises:
      UserError: a candidate outside the vocabulary.
    """
    if candidates is not None:
        _check(model, candidates)

    def logits(variables: Any, batch: Batch, key: jax.Array | None) -> jax.Array:
        hidden = _in_gap(hidden_states(model, variables, batch, key), batch)
        return scores(model, variables, hidden, key, "logits")

    def loss(variables: Any, batch: Batch, key: jax.Array | None) -> Sums:
        return class_sums(logits(variables, batch, key), batch["labels"])

    def outputs(variables: Any, batch: Batch) -> dict[str, jax.Array]:
        found = logits(variables, batch, None)
        known = jnp.arange(found.shape[-1]) if candidates is None else jnp.asarray(candidates)
        return {"best": known[found[:, known].argmax(-1)], "nll": cross_entropy(found, batch["labels"])[1]}

    return Objective(loss, outputs)


def _check(model: Transformer, tokens: Sequence[int]) -> None:
    outside = [token for token in tokens if not 0 <= token < model.cfg.vocab_size]
    if outside:
        raise UserError(f"label words {outside} are outside the vocabulary of {model.cfg.vocab_size} tokens")


def _in_gap(hidden: jax.Array, batch: Batch) -> jax.Array:
    """`[B, T, D]` -> `[B, D]`."""
    if "answer" in batch:
        where = (batch["answer"] != 0).argmax(-1)
    else:
        where = hidden.shape[1] - 1 - (batch["segment_ids"] != 0)[:, ::-1].argmax(-1)
    return at(hidden, where[:, None])[:, 0]


def _scores(model: Transformer, words: Words) -> Callable[[Any, Batch, jax.Array | None], jax.Array]:
    """(variables, batch, key) -> a score of each word, `[B, C]`."""
    _check(model, [token for word in words for token in word])
    most = max(map(len, words), default=0)
    if not all(map(len, words)) or not words:
        raise UserError(f"label words {[list(word) for word in words]}: give each class one token or more")

    def single(variables: Any, batch: Batch, key: jax.Array | None) -> jax.Array:
        hidden = _in_gap(hidden_states(model, variables, batch, key), batch)
        return scores(model, variables, hidden, key, "logits")[:, jnp.asarray([word[0] for word in words])]

    def phrases(variables: Any, batch: Batch, key: jax.Array | None) -> jax.Array:
        rows, group, length = batch["input_ids"].shape
        flat = {name: x.reshape(rows * group, length) for name, x in batch.items() if x.ndim == 3}
        marks = flat["answer"]
        places = jnp.argsort(marks == 0, axis=-1, stable=True)[:, :most]  # of the masks, then of others
        tokens = jnp.take_along_axis(marks, places, 1) - 1
        hidden = at(hidden_states(model, variables, flat, key), places)
        log_p = jax.nn.log_softmax(scores(model, variables, hidden, key, "logits"))
        each = jnp.take_along_axis(log_p, jnp.maximum(tokens, 0)[..., None], -1)[..., 0]
        real = tokens >= 0
        return (jnp.where(real, each, 0).sum(-1) / jnp.maximum(real.sum(-1), 1)).reshape(rows, group)

    return single if most == 1 else phrases
