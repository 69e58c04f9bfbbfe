"""BERT's pre-training (Devlin et al. 2018): masked words, and whether the second text follows the first."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.models.transformer import Transformer
from ftjax.objectives.base import IGNORE, Objective, Sums
from ftjax.objectives.body import class_sums, scores
from ftjax.objectives.cross_entropy import cross_entropy
from ftjax.objectives.mlm import masked_words, masking


def next_sentence(
    model: Transformer,
    *,
    mask_id: int,
    special_ids: tuple[int, ...],
    rate: float = 0.15,
    continues: Any = None,
    chunk: int = 2048,
) -> Objective:
    """Masked words plus next-sentence prediction of a model with the head `pretraining`.

    Batches hold `input_ids`, `segment_ids`, `position_ids`, `token_type_ids` `[B, T]`, one pair a row, and `labels`
    `[B]`: 0 where the second text follows the first, 1 where it does not, -100 in an empty row. Masks as in
    `masked_lm`. With m_r predicted words in row r, the loss is

        sum_r (sum of the words' nll + m_r nll(label_r)) / sum_r m_r,

    BERT's sum of the two means where all rows have as many; otherwise a pair counts as its words do, so that
    micro-batches add up.

    Raises:
      UserError: a model with another head.
    """
    if model.cfg.head != "pretraining":
        raise UserError(f"next-sentence prediction needs head='pretraining', got head={model.cfg.head!r}")
    mask = masking(model, mask_id, special_ids, rate, continues)

    def loss(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Sums:
        hidden, masked, words = masked_words(model, variables, batch, key, mask, chunk)
        pooled = model.apply(variables, hidden, batch["segment_ids"], method="pool")
        logits, labels = scores(model, variables, pooled, key), batch["labels"]
        metrics = {f"next_{name}": sums for name, sums in class_sums(logits, labels).metrics.items()}
        total = words.loss + jnp.sum(cross_entropy(logits, labels)[1] * (masked != IGNORE).sum(1))
        return Sums(total, words.weight, words.metrics | metrics)

    return Objective(loss)
