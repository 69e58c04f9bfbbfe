"""Token classification: a tag for each labelled piece (Devlin et al. 2018, section 5.3)."""

from collections.abc import Mapping
from typing import Any

import jax

from ftjax.models.transformer import Transformer
from ftjax.objectives.base import Objective, Sums
from ftjax.objectives.body import at, class_sums, hidden_states, scores
from ftjax.objectives.cross_entropy import cross_entropy


def tagging(model: Transformer, *, label_smoothing: float = 0.0) -> Objective:
    """Cross-entropy of batches with `input_ids`, `segment_ids`, `position_ids` `[B, T]`, and `label_positions`,
    `labels` `[B, M]`: the piece at `label_positions[b, m]` has the tag `labels[b, m]` (-100: none). The mean is over
    tags; the model's head is `tagging`.

    Outputs, of each slot `[B, M]`: `tag`, the likeliest, and `nll` of the label, 0 where there is none.
    """

    def logits(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
        hidden = hidden_states(model, variables, batch, key)
        return scores(model, variables, at(hidden, batch["label_positions"]), key)

    def loss(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Sums:
        return class_sums(logits(variables, batch, key), batch["labels"], label_smoothing)

    def outputs(variables: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        found = logits(variables, batch, None)
        return {"tag": found.argmax(-1), "nll": cross_entropy(found, batch["labels"])[1]}

    return Objective(loss, outputs)
