"""How far a student's distribution over tokens or classes is from a teacher's, position by position."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from ftjax.errors import UserError

Kind = Literal["forward_kl", "cross_entropy", "reverse_kl", "jsd", "tv"]
Estimator = Literal["truncated", "renormalised", "tail_bucket"]
FLOOR = -1e30  # the logarithm of nothing: its exponential is 0, and no product with it is NaN


class TopK(NamedTuple):
    """A teacher's k likeliest tokens at one temperature."""

    ids: jax.Array  # int [..., K]
    log_probs: jax.Array  # [..., K], of the distribution over the whole vocabulary
    log_tail: jax.Array  # [...], the logarithm of the mass of all others


def top_k(logits: jax.Array, k: int, temperature: float = 1.0) -> TopK:
    """The entry of a teacher's logits `[..., V]`."""
    values, ids = jax.lax.top_k(logits, k)
    log_z = jax.nn.logsumexp(logits / temperature, -1)
    tail = tail_logsumexp(logits / temperature, ids)
    return TopK(ids, values / temperature - log_z[..., None], jnp.maximum(tail - log_z, FLOOR))


def tail_logsumexp(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """Log-sum-exp over what `ids [..., K]` leave of `[..., V]`: `[...]`; 1 - sum would be noise where it is small."""
    return jax.nn.logsumexp(jnp.put_along_axis(logits, ids, FLOOR, -1, inplace=False), -1)


@dataclass(frozen=True)
class Divergence:
    """`divergence(student logits [..., V], teacher) -> [...]`, fp32; the teacher's are logits `[..., V]` or a `TopK`.

    With p the teacher's and q the student's probabilities at `temperature`:
      forward_kl: sum p log(p / q); cross_entropy: -sum p log q, whose gradient is the same (Hinton et al. 2015; Kim &
        Rush 2016, word level); reverse_kl: sum q log(q / p); tv: sum |p - q| / 2;
      jsd: beta KL(p | m) + (1 - beta) KL(q | m), m = beta p + (1 - beta) q (Agarwal et al. 2023, GKD, eq. 1). At
        beta 0 and 1, where that is 0, it is its limit over beta (1 - beta): forward_kl and reverse_kl.
    t_squared: times temperature^2, so that the gradient keeps its size as the temperature grows (Hinton, sec. 2).

    Of a `TopK` (made at the same temperature; K its tokens), each estimator is the full divergence at K = V:
      truncated: the sum over K alone; biased (it is not least at q = p, and a KL may be negative);
      renormalised: between p and q given K; it never sees what the student puts elsewhere;
      tail_bucket: all other tokens count as one; never above the full divergence (data processing).

    A probability that underflows, or that a teacher's logit of -inf forbids, counts as 0 and gives no NaN. Of two
    vocabularies padded to different sizes, the common part counts.

    Raises:
      UserError: an unknown name, a temperature that is not above 0, beta outside [0, 1].
    """

    kind: Kind = "forward_kl"
    temperature: float = 1.0
    t_squared: bool = True
    beta: float = 0.5
    estimator: Estimator = "tail_bucket"

    def __post_init__(self):
        for field, value, names in (("kind", self.kind, Kind), ("estimator", self.estimator, Estimator)):
            if value not in get_args(names):
                raise UserError(f"distill.{field}={value!r} is unknown; there are {', '.join(get_args(names))}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UserError(f"distill.temperature={self.temperature}: give a number above 0")
        if not 0 <= self.beta <= 1:
            raise UserError(f"distill.beta={self.beta}: give 0 (forward KL) to 1 (reverse KL)")

    def __call__(self, student: jax.Array, teacher: Any) -> jax.Array:
        log_p, log_q = self._common(student.astype(jnp.float32) / self.temperature, teacher)
        value = self._value(jnp.maximum(log_p, FLOOR), log_q)
        return value * self.temperature**2 if self.t_squared else value

    def _common(self, z: jax.Array, teacher: Any) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities of the teacher's and the student's, over the same outcomes."""
        if not isinstance(teacher, TopK):
            size = min(z.shape[-1], teacher.shape[-1])
            t = teacher[..., :size].astype(jnp.float32) / self.temperature
            return jax.nn.log_softmax(t), jax.nn.log_softmax(z[..., :size])
        ids = teacher.ids.astype(jnp.int32)
        log_p = jnp.where(ids < z.shape[-1], teacher.log_probs.astype(jnp.float32), FLOOR)
        picked = jnp.take_along_axis(z, ids, -1, mode="fill", fill_value=FLOOR)
        match self.estimator:
            case "truncated":
                return log_p, picked - jax.nn.logsumexp(z, -1, keepdims=True)
            case "renormalised":
                return jax.nn.log_softmax(log_p), jax.nn.log_softmax(picked)
        tail = jnp.maximum(teacher.log_tail.astype(jnp.float32), FLOOR)
        return (  # normed anew: what is stored is rounded
            jax.nn.log_softmax(jnp.concatenate([log_p, tail[..., None]], -1)),
            jax.nn.log_softmax(jnp.concatenate([picked, tail_logsumexp(z, ids)[..., None]], -1)),
        )

    def _value(self, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
        p, q = jnp.exp(log_p), jnp.exp(log_q)
        ends = {0.0: "forward_kl", 1.0: "reverse_kl"}
        kind = ends.get(self.beta, "jsd") if self.kind == "jsd" else self.kind
        match kind:
            case "forward_kl":
                return jnp.sum(p * (log_p - log_q), -1)
            case "cross_entropy":
                return -jnp.sum(p * log_q, -1)
            case "reverse_kl":
                return jnp.sum(q * (log_q - log_p), -1)
            case "tv":
                return jnp.sum(jnp.abs(p - q), -1) / 2
        log_m = jnp.logaddexp(math.log(self.beta) + log_p, math.log(1 - self.beta) + log_q)
        value = jnp.sum(self.beta * p * (log_p - log_m) + (1 - self.beta) * q * (log_q - log_m), -1)
        return value - jax.lax.stop_gradient(jnp.minimum(value, 0))  # each term is 0 or more, but for rounding


def total(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum of weighted values, sum of weights) of `[...]` each: losses stay sums to the end. Weight 0 masks."""
    return jnp.sum(jnp.where(weights != 0, values, 0) * weights), jnp.sum(weights)
