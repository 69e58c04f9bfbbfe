"""Prompt-based classification and regression by label words (LM-BFF, Gao et al. 2021, section 4)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.models.transformer import Transformer
from ftjax.objectives.base import Objective, Sums
from ftjax.objectives.body import at, class_sums, hidden_states


def label_words(model: Transformer, *, words: Sequence[int]) -> Objective:
    """Cross-entropy over label words, one token a class: p(c | x) = softmax over c of the logits of `words[c]`.

    Batches hold `input_ids`, `segment_ids`, `position_ids` `[B, T]`, and `label_positions`, `labels` `[B, 1]`: where
    the mask is (of a causal model: the token before the answer), and the class, -100 in an empty row. The model's head
    is `mlm` or `lm`.

    Outputs: `logits` `[B, C]`, fp32.

    Raises:
      UserError: a word outside the vocabulary.
    """
    _check(model, words)

    def loss(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Sums:
        return class_sums(_of_words(model, variables, batch, words, key), batch["labels"][:, 0])

    return Objective(loss, lambda variables, batch: {"logits": _of_words(model, variables, batch, words, None)})


def between_words(model: Transformer, *, words: tuple[int, int], bounds: tuple[float, float]) -> Objective:
    """Regression by interpolation between two label words, for the low and the high end of `bounds` (section 4.2):
    value = low p(words[0]) + high p(words[1]), and the loss is KL(q || p) with q(words[1]) = (label - low) / (high -
    low).

    Batches as of `label_words`, with `labels` float `[B, 1]` in `bounds`, NaN in an empty row.

    Outputs: `value` `[B]`, fp32.

    Raises:
      UserError: a word outside the vocabulary, or bounds that do not rise.
    """
    _check(model, words)
    low, high = bounds
    if not low < high:
        raise UserError(f"bounds={bounds}: give the low end, then the high one")

    def loss(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Sums:
        found, labels = _of_words(model, variables, batch, words, key), batch["labels"][:, 0]
        real = ~jnp.isnan(labels)
        share = (jnp.where(real, labels, low) - low) / (high - low)
        q, log_p = jnp.stack([1 - share, share], -1), jax.nn.log_softmax(found)
        divergence = jnp.where(real, (jax.scipy.special.xlogy(q, q) - q * log_p).sum(-1), 0).sum()
        weight = real.sum().astype(jnp.float32)
        error = jnp.where(real, jnp.square(value(found) - labels), 0).sum()
        return Sums(divergence, weight, {"squared_error": (error, weight)})

    def value(logits: jax.Array) -> jax.Array:
        return (jax.nn.softmax(logits) * jnp.asarray(bounds)).sum(-1)

    return Objective(loss, lambda variables, batch: {"value": value(_of_words(model, variables, batch, words, None))})


def _check(model: Transformer, words: Sequence[int]) -> None:
    outside = [word for word in words if not 0 <= word < model.cfg.vocab_size]
    if outside:
        raise UserError(f"label words {outside} are outside the vocabulary of {model.cfg.vocab_size} tokens")


def _of_words(
    model: Transformer, variables: Any, batch: Mapping[str, jax.Array], words: Sequence[int], key: jax.Array | None
) -> jax.Array:
    """Logits of the words at each row's one labelled position: `[B, C]`."""
    hidden = at(hidden_states(model, variables, batch, key), batch["label_positions"])[:, 0]
    rngs = None if key is None else {"dropout": jax.random.fold_in(key, 1)}
    return model.apply(variables, hidden, key is not None, method="logits", rngs=rngs)[:, jnp.asarray(words)]
