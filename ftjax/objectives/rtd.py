"""ELECTRA (Clark et al. 2020): a small generator fills in masked words, the model tells which tokens it replaced."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.models.transformer import Transformer, init
from ftjax.objectives.base import IGNORE, Objective, Sums
from ftjax.objectives.body import at, hidden_states, scores
from ftjax.objectives.cross_entropy import chunked, cross_entropy
from ftjax.objectives.mlm import masking

TIED = ("tokens", "positions")  # tables of the model that the generator reads (section 3.2)


def replaced_tokens(
    model: Transformer,
    generator: Transformer,
    *,
    mask_id: int,
    special_ids: tuple[int, ...],
    rate: float = 0.15,
    weight: float = 50.0,
    continues: Any = None,
    chunk: int = 2048,
) -> Objective:
    """Replaced-token detection of batches with `input_ids`, `segment_ids`, `position_ids` `[B, T]`.

    The generator (head `mlm`) sees 85% of the chosen tokens masked and the others as they are; all of them are replaced
    by samples from it, without a gradient; a token is fake where its sample is another one. With m_r chosen ones in
    row r, the loss is

        sum_r (sum of the generator's nll + weight m_r mean over real tokens of the model's binary cross-entropy)
        / sum_r m_r,

    the paper's L_MLM + 50 L_Disc where all rows have as many; otherwise a row counts as its chosen tokens do, so that
    micro-batches add up. The generator's parameters are `params/generator`, made by `with_generator`.

    Metrics: `generator_nll`; of all tokens, `accuracy` and the share `replaced`; of the replaced ones, which are few,
    the detector's `precision`, `recall` and `f1`, 0 where it finds none.

    Raises:
      UserError: other heads, or a generator that cannot read the model's tables.
    """
    _check(model, generator)
    mask = masking(model, mask_id, special_ids, rate, continues, masked=0.85, random=0.0)

    def loss(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Sums:
        draw, sample, drop, other = jax.random.split(jax.random.key(0) if key is None else key, 4)
        original, segments = batch["input_ids"], batch["segment_ids"]
        ids, positions, labels = mask(draw, original, segments)
        tied = {"params": generator_params(variables["params"])}
        hidden = hidden_states(generator, tied, {**batch, "input_ids": ids}, None if key is None else drop)
        nll, samples = _sampled(generator, tied, at(hidden, positions), labels, sample, chunk)

        chosen = labels != IGNORE
        rows = jnp.arange(len(original))[:, None]
        shown = jnp.where(chosen, samples, jnp.take_along_axis(original, positions, 1))
        ids = original.at[rows, positions].set(shown)
        fake = ids != original
        each, right = detection(model, variables, {**batch, "input_ids": ids}, fake, None if key is None else other)
        real, count = segments != 0, chosen.sum(1)
        means = each.sum(1) / jnp.maximum(real.sum(1), 1)
        found, false = (right & fake).sum().astype(jnp.float32), (real & ~fake & ~right).sum().astype(jnp.float32)
        there = fake.sum().astype(jnp.float32)
        words, tokens = count.sum().astype(jnp.float32), real.sum().astype(jnp.float32)
        shares = {"precision": found + false, "recall": there, "f1": (found + false + there) / 2}
        metrics = {
            "generator_nll": (nll, words),
            "accuracy": (right.sum().astype(jnp.float32), tokens),
            "replaced": (there, tokens),
            **{name: (found, all_of) for name, all_of in shares.items()},
        }
        return Sums(nll + weight * jnp.sum(count * means), words, metrics)

    return Objective(loss)


def detection(
    model: Transformer, variables: Any, batch: Mapping[str, jax.Array], fake: jax.Array, key: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """(binary cross-entropy, whether the guess is right) of each token `[B, T]`, 0 and False on padding."""
    logits = scores(model, variables, hidden_states(model, variables, batch, key), key)
    real = batch["segment_ids"] != 0
    each = jax.nn.softplus(logits) - jnp.where(fake, logits, 0)
    return jnp.where(real, each, 0), real & ((logits > 0) == fake)


def generator_params(params: Any) -> Any:
    """The generator's parameters, with the tables of the model that it shares."""
    own, shared = params["generator"], {name: x for name, x in params["embed"].items() if name in TIED}
    return {**own, "embed": {**own["embed"], **shared}}


def with_generator(params: Any, generator: Transformer, key: jax.Array) -> Any:
    """The model's parameters with those of a new generator beside them, but for the tables that it shares."""
    new = jax.jit(init, static_argnums=0)(generator, key)
    own = {name: x for name, x in new["embed"].items() if name not in TIED}
    return {**params, "generator": {**new, "embed": own}}


def _check(model: Transformer, generator: Transformer) -> None:
    if (model.cfg.head, generator.cfg.head) != ("rtd", "mlm"):
        raise UserError(
            f"replaced tokens need a model with head='rtd' and a generator with head='mlm', got {model.cfg.head!r} and"
            f" {generator.cfg.head!r}"
        )
    for name in ("vocab_size", "embed_width", "positions", "max_positions", "position_offset"):
        ours, theirs = getattr(model.cfg, name), getattr(generator.cfg, name)
        if ours != theirs:
            raise UserError(f"the generator reads the model's embeddings: {name} must be {ours}, is {theirs}")


def _sampled(
    generator: Transformer, variables: Any, hidden: jax.Array, labels: jax.Array, key: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """(sum of the nll, a sample at each place `[B, M]`) in chunks: hidden `[B, M, D]`, labels `[B, M]`."""
    batch, length = labels.shape

    def draw(logits: jax.Array, place: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(key, place), logits).astype(jnp.int32)

    def one(variables: Any, h: jax.Array, y: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, size = generator.apply(variables, h, method="logits"), y.shape[1]
        drawn = jax.vmap(draw, (1, 0), 1)(jax.lax.stop_gradient(logits), first + jnp.arange(size))
        places = jnp.zeros((batch, -(-length // size) * size), jnp.int32)  # chunks are summed: each has its own place
        places = jax.lax.dynamic_update_slice(places, drawn, (0, first))
        return cross_entropy(logits, y)[0].sum(), places

    nll, samples = chunked(one, variables, hidden, labels, chunk)
    return nll, samples[:, :length]
