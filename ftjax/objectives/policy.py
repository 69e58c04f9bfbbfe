"""Policy gradient: tokens that a model drew are made likelier by how much better than its others their answer was."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.models.transformer import Transformer
from ftjax.objectives.base import IGNORE, Objective, Sums
from ftjax.objectives.body import at, hidden_states
from ftjax.objectives.cross_entropy import chunked, cross_entropy


def policy_gradient(model: Transformer, *, temperature: float, chunk: int = 2048) -> Objective:
    """-sum over drawn tokens of advantage * log p(token), by their number (REINFORCE, Williams 1992, with the mean
    reward of a prompt's own answers as its baseline, Shao et al. 2024, without their division by its spread).

    Batches are those of `causal_lm`, a row an answer: its drawn tokens are the `labels [B, M]`. `rewards` and
    `advantages` are fp32 `[B]`. Metrics: `reward`, the mean over answers; `answer_tokens`.

    temperature: that the tokens were drawn at; p is the distribution that they were drawn from.
    chunk: positions of a device whose logits exist at a time.
    """

    def one(variables: Any, h: jax.Array, y: jax.Array, first: jax.Array, advantage: jax.Array) -> tuple[Any, Any]:
        logits: Any = model.apply(variables, h, False, method="logits")
        _, nll = cross_entropy(logits / temperature, y)
        return jnp.sum(nll * advantage), {}

    def loss(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Sums:
        labels = batch["labels"]
        hidden = at(hidden_states(model, variables, batch, key), batch["label_positions"])
        spread = jnp.broadcast_to(batch["advantages"][:, None], labels.shape)
        value, _ = chunked(one, variables, hidden, labels, chunk, spread)
        drawn = labels != IGNORE
        tokens, answers = drawn.sum().astype(jnp.float32), drawn.any(1)
        count = answers.sum().astype(jnp.float32)
        rewards = jnp.sum(batch["rewards"] * answers)
        return Sums(value, tokens, {"reward": (rewards, count), "answer_tokens": (tokens, count)})

    return Objective(loss)
