"""Sentence vectors (Sentence-BERT, Reimers & Gurevych 2019): one encoder for all texts of a group, and a loss between
its vectors."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.models.transformer import Transformer
from ftjax.objectives.base import IGNORE, Objective, Sums
from ftjax.objectives.body import pooled
from ftjax.objectives.cross_entropy import cross_entropy

Loss = Literal["cosine", "softmax", "triplet", "in_batch"]
TEXTS = {"cosine": (2,), "softmax": (2,), "triplet": (3,), "in_batch": (2, 3)}  # of a group


def similarity(model: Transformer, loss: Loss, *, margin: float = 1.0, scale: float = 20.0) -> Objective:
    """A loss between the pooled vectors u, v (and w) of the texts of a group, of batches with `input_ids`,
    `segment_ids`, `position_ids` `[B, G, T]`; a row without tokens is empty. The model's `pooling` makes the vectors.

    - `cosine`: squared error of cos(u, v) from `labels` float `[B]` (NaN: an empty row).
    - `softmax`: cross-entropy of softmax(W [u; v; |u - v|]) at `labels` int `[B]` (-100: an empty row). W `[3 D, C]` is
      `params/pair_classifier/kernel`, made by `with_pair_classifier`.
    - `triplet`: max(|u - v| - |u - w| + margin, 0) in Euclidean distance, of anchor, positive and negative.
    - `in_batch`: cross-entropy of softmax_j(scale cos(u_i, c_j)) at v_i, over the v of all rows and, in groups of
      three, their w (Henderson et al. 2017). It reads the whole batch, so micro-batches would change it: use one.

    Outputs: `vectors` `[B, G, D]`, fp32, and of `softmax` its `logits` `[B, C]`, of `triplet` `nearer` `[B]`, the
    distance of w less that of v, otherwise `cosine` `[B]`, of u and v.

    Raises:
      UserError: an unknown loss; when it is traced, groups of another size than it compares.
    """
    if loss not in LOSSES:
        raise UserError(f"similarity loss {loss!r} is unknown; there are {', '.join(LOSSES)}")
    compare = LOSSES[loss]
    options = Options(margin, scale)

    def vectors(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
        rows, group, _ = batch["input_ids"].shape
        if group not in TEXTS[loss]:
            wanted = " or ".join(map(str, TEXTS[loss]))
            raise UserError(f"similarity loss {loss!r} compares {wanted} texts, the batch has groups of {group}")
        flat = {name: x.reshape(rows * group, -1) for name, x in batch.items() if x.ndim == 3}
        return pooled(model, variables, flat, key).reshape(rows, group, -1).astype(jnp.float32)

    def total(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Sums:
        found = compare(variables["params"], vectors(variables, batch, key), batch, options)
        weight = found.real.sum().astype(jnp.float32)
        each = jnp.where(found.real, found.loss, 0).sum()
        right = {} if found.right is None else {"accuracy": (jnp.sum(found.right & found.real) * 1.0, weight)}
        return Sums(each, weight, {found.name: (each, weight), **right})

    def outputs(variables: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        made = vectors(variables, batch, None)
        return {"vectors": made, **compare(variables["params"], made, batch, options).outputs}

    return Objective(total, outputs)


def with_pair_classifier(params: Any, width: int, classes: int, key: jax.Array, std: float = 0.02) -> Any:
    """Parameters with a new `pair_classifier/kernel [3 width, classes]`, normal(std), for the loss `softmax`."""
    return {**params, "pair_classifier": {"kernel": std * jax.random.normal(key, (3 * width, classes))}}


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """`[..., D]`, `[..., D]` -> `[...]`; 0, without a gradient, where one of the two is zero."""
    return (_unit(a) * _unit(b)).sum(-1)


class Options(NamedTuple):
    """Numbers of the losses."""

    margin: float
    scale: float


class Compared(NamedTuple):
    """What a loss makes of each row, `[B]` all; only those that are `real` count."""

    name: str  # of the loss among the metrics
    loss: jax.Array
    real: jax.Array
    right: jax.Array | None
    outputs: dict[str, jax.Array]


def _norm(x: jax.Array) -> jax.Array:
    """The length of `[..., D]`, with a gradient of 0 at 0."""
    square = jnp.square(x).sum(-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _unit(x: jax.Array) -> jax.Array:
    norm = _norm(x)[..., None]
    return x / jnp.where(norm > 0, norm, 1)


def _cosine(params: Any, vectors: jax.Array, batch: Mapping[str, jax.Array], options: Options) -> Compared:
    found = cosine(vectors[:, 0], vectors[:, 1])
    real = ~jnp.isnan(batch["labels"])
    error = jnp.square(found - jnp.where(real, batch["labels"], found))
    return Compared("squared_error", error, real, None, {"cosine": found})


def _softmax(params: Any, vectors: jax.Array, batch: Mapping[str, jax.Array], options: Options) -> Compared:
    u, v = vectors[:, 0], vectors[:, 1]
    kernel = params["pair_classifier"]["kernel"].astype(jnp.float32)
    logits, labels = jnp.concatenate([u, v, jnp.abs(u - v)], -1) @ kernel, batch["labels"]
    nll = cross_entropy(logits, labels)[1]
    return Compared("nll", nll, labels != IGNORE, logits.argmax(-1) == labels, {"logits": logits})


def _triplet(params: Any, vectors: jax.Array, batch: Mapping[str, jax.Array], options: Options) -> Compared:
    nearer = _norm(vectors[:, 0] - vectors[:, 2]) - _norm(vectors[:, 0] - vectors[:, 1])
    return Compared("hinge", jax.nn.relu(options.margin - nearer), _real(batch), nearer > 0, {"nearer": nearer})


def _in_batch(params: Any, vectors: jax.Array, batch: Mapping[str, jax.Array], options: Options) -> Compared:
    real, units = _real(batch), _unit(vectors)
    others = units[:, 1:].swapaxes(0, 1).reshape(-1, units.shape[-1])  # all v, then all w
    scores = jnp.matmul(units[:, 0], others.T, precision="highest")
    logits = jnp.where(jnp.tile(real, units.shape[1] - 1), options.scale * scores, -jnp.inf)
    own = jnp.arange(len(real))
    nll = cross_entropy(jnp.where(real[:, None], logits, 0), own)[1]
    found = (units[:, 0] * units[:, 1]).sum(-1)
    return Compared("nll", nll, real, logits.argmax(-1) == own, {"cosine": found})


def _real(batch: Mapping[str, jax.Array]) -> jax.Array:
    return (batch["segment_ids"] != 0).any((1, 2))


LOSSES: dict[str, Callable[..., Compared]] = {
    "cosine": _cosine,
    "softmax": _softmax,
    "triplet": _triplet,
    "in_batch": _in_batch,
}
