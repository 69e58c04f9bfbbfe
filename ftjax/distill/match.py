"""Matching a teacher's hidden states and attention, layer by layer (Jiao et al. 2019, TinyBERT)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.models.stack import Output
from ftjax.models.transformer import Transformer
from ftjax.nn.config import Config

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Match:
    """Which layers are matched, and by what weight.

    layers: (student's, teacher's) pairs; layer n is what n layers have made, 0 the embedding.
    hidden: weight of the mean squared difference of hidden states, summed over pairs.
    attention: weight of KL(teacher's | student's attention), mean over heads (of the heads' mean attention, where the
      two have different numbers of heads), summed over the pairs above the embedding (Wang et al. 2020, MiniLM). What
      goes to a prefix (method=prefix) is left out.
    """

    layers: Pairs
    hidden: float = 1.0
    attention: float = 0.0

    @property
    def wanted(self) -> dict[str, bool]:
        """What the forward passes must give."""
        return dict(output_hidden_states=self.hidden > 0, output_attentions=self.attention > 0)

    def check(self, student: Config, teacher: Config) -> None:
        """Raises:
        UserError: a layer that one of the two lacks.
        """
        for s, t in self.layers:
            if not (0 <= s <= student.num_layers and 0 <= t <= teacher.num_layers):
                raise UserError(
                    f"distill.layers: no pair {s}:{t} of a student of {student.num_layers} layers and a teacher of"
                    f" {teacher.num_layers}; 0 is the embedding"
                )

    def init(self, student: Config, teacher: Config, key: jax.Array) -> dict[str, jax.Array]:
        """What trains beside the student: `projection [D_student, D_teacher]`, one for all pairs as in TinyBERT, where
        hidden states of different widths are matched."""
        if not self.hidden or student.hidden_size == teacher.hidden_size:
            return {}
        shape = (student.hidden_size, teacher.hidden_size)
        return {"projection": jax.random.normal(key, shape) / student.hidden_size**0.5}

    def __call__(
        self, student: Output, teacher: Output, at: tuple[jax.Array, jax.Array], weights: jax.Array, projection: Any
    ) -> jax.Array:
        """The weighted sum `[]`.

        Args:
          at: the positions in the student's rows, and those in the teacher's, that are compared, `[B, M]` each.
          weights: `[B, M]`.
          projection: as `init` makes it; None where the widths agree.
        """
        value = jnp.zeros(())
        for s, t in self.layers:
            if self.hidden:
                ours = _rows(student.hidden_states[s], at[0])  # type: ignore[index]
                ours = ours if projection is None else ours @ projection.astype(ours.dtype)
                gap = ours.astype(jnp.float32) - _rows(teacher.hidden_states[t], at[1])  # type: ignore[index]
                value += self.hidden * jnp.sum(weights * jnp.square(gap).mean(-1))
            if self.attention and s and t:
                p, q = teacher.attentions[t - 1], student.attentions[s - 1]  # type: ignore[index]
                if p.shape[1] != q.shape[1]:
                    p, q = p.mean(1, keepdims=True), q.mean(1, keepdims=True)
                p, q = (_rows(_among_text(x).swapaxes(1, 2), a) for x, a in ((p, at[1]), (q, at[0])))
                log = lambda x: jnp.log(jnp.maximum(x, 1e-9))  # noqa: E731
                value += self.attention * jnp.sum(weights * jnp.sum(p * (log(p) - log(q)), -1).mean(-1))
        return value


def _rows(x: jax.Array, at: jax.Array) -> jax.Array:
    """`[B, T, ...]` at `[B, M]` -> `[B, M, ...]`."""
    return jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)


def _among_text(attention: jax.Array) -> jax.Array:
    """`[B, H, T, P + T]` -> `[B, H, T, T]`, fp32: given that it is the text's; a prefix's keys come first, and are its
    own model's alone."""
    own = attention[..., -attention.shape[-2] :].astype(jnp.float32)
    return own / jnp.maximum(own.sum(-1, keepdims=True), 1e-9)


def uniform(student_layers: int, teacher_layers: int) -> Pairs:
    """Each layer of the student, and its embedding, with the teacher's layer of the same height (TinyBERT, sec. 3)."""
    return tuple((s, s * teacher_layers // student_layers) for s in range(student_layers + 1))


def student_of(
    model: Transformer, params: Any, layers: Sequence[int], encoder_layers: Sequence[int] | None = None
) -> tuple[Transformer, Any]:
    """A student that begins as some of the teacher's layers, in the given order (Sanh et al. 2019, DistilBERT).

    Embeddings, norms and heads are the teacher's own.

    Args:
      params: the teacher's, with whole `[L, ...]` stacks.
      layers: 0-based; of an encoder-decoder the decoder's. `encoder_layers`: its encoder's, None for all.
    Raises:
      UserError: no layer, one that the teacher lacks, or a teacher whose layers share one row.
    """
    cfg = _kept(model.cfg, layers, "layers")
    if model.cfg.encoder is not None:
        own = range(model.cfg.encoder.num_layers) if encoder_layers is None else encoder_layers
        cfg = replace(cfg, encoder=_kept(model.cfg.encoder, own, "encoder_layers"))
        params = {**params, "encoder": _take(params["encoder"], own)}
    elif encoder_layers is not None:
        raise UserError("encoder_layers: this teacher has no encoder; leave them out")
    return model.clone(cfg=cfg), _take(params, layers)


def _kept(cfg: Config, layers: Sequence[int], name: str) -> Config:
    if cfg.shared_layers:
        raise UserError(
            f"{name}: the teacher's layers share one row of parameters; give the student num_layers instead"
        )
    if not layers or not all(0 <= i < cfg.num_layers for i in layers):
        raise UserError(f"{name}={list(layers)}: give some of the teacher's layers, 0 to {cfg.num_layers - 1}")
    everywhere = tuple(new for new, old in enumerate(layers) if old in cfg.global_layers)
    return replace(cfg, num_layers=len(layers), global_layers=everywhere)


def _take(params: Any, layers: Sequence[int]) -> Any:
    rows = jnp.asarray(list(layers))
    return {**params, "layers": jax.tree.map(lambda x: x[rows], params["layers"])}
