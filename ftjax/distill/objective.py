"""The loss of a student that has a teacher: in memory, or stored as its likeliest tokens."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ftjax.distill.forward import PER_ROW, VOCABULARY, Batch, read, scores, without_virtual
from ftjax.distill.losses import Divergence, TopK, total
from ftjax.distill.match import Match
from ftjax.errors import UserError
from ftjax.models.stack import Output
from ftjax.models.transformer import Transformer
from ftjax.objectives.base import IGNORE, Objective, Sums
from ftjax.objectives.body import forward
from ftjax.objectives.cross_entropy import chunked, cross_entropy

FIELDS = ("teacher_ids", "teacher_log_probs", "teacher_log_tail")  # of a batch: a `TopK` for each label
OTHERS = ("teacher", "distill")  # variables that are not the student's


def distillation(
    model: Transformer,
    divergence: Divergence,
    teacher: Transformer | None = None,
    *,
    alpha: float = 0.5,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Literal["token", "sentence"] = "token",
    chunk: int = 2048,
    mask: Callable[..., tuple[jax.Array, jax.Array, jax.Array]] | None = None,
    match: Match | None = None,
    virtual: bool = False,
) -> Objective:
    """alpha * divergence from the teacher + (1 - alpha) * cross-entropy with the labels, both summed over the labelled
    tokens (or rows) and divided by their number, plus what `match` adds.

    Batches are those of the student's own objective: `labels [B, M]` at `label_positions` (lm, mlm, tagging) or `[B]`
    (classification). Variables are the student's, with the teacher's (`params`, `adapters`) under `teacher`, which get
    no gradient. Without a teacher, batches hold its entries in `teacher_ids`, `teacher_log_probs` `[B, M, K]` and
    `teacher_log_tail` `[B, M]` (of classification without M). Vocabulary logits exist a chunk at a time on both sides.
    Metrics: `kd` and `nll`, and `match` where it is given.

    Args:
      label_smoothing, z_loss, reduction, chunk: as in `causal_lm`.
      mask: `ftjax.objectives.mlm.masking` of the student, which makes the labels of masked words.
      match: layers to match as well; `variables["distill"]` holds what its `init` makes.
      virtual: the student's method puts virtual ids into the text: the teacher reads it without them.
    Raises:
      UserError: alpha outside [0, 1], heads that do not agree, `match` without a teacher or of layers there are not.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"distill.alpha={alpha}: give 0 (the labels alone) to 1 (the teacher alone)")
    if teacher is None and match is not None:
        raise UserError("distill.layers: a cache has no hidden states or attention; give the teacher itself")
    if teacher is not None:
        check_heads(model, teacher)
        if match is not None:
            match.check(model.cfg, teacher.cfg)
        if virtual:  # its rows have holes
            teacher = teacher.clone(cfg=teacher.cfg.replace(max_segments=None))
    wanted: dict[str, Any] = match.wanted if match else {}
    per_row = model.cfg.head in PER_ROW

    def loss(variables: Any, batch: Batch, key: jax.Array | None) -> Sums:
        student = {name: value for name, value in variables.items() if name not in OTHERS}
        if mask is not None:
            draw, drop = jax.random.split(jax.random.key(0) if key is None else key)
            key = None if key is None else drop
            ids, positions, labels = mask(draw, batch["input_ids"], batch["segment_ids"])
            batch = {**batch, "input_ids": ids, "label_positions": positions, "labels": labels}
        labels = batch["labels"][:, None] if per_row else batch["labels"]
        ours = forward(model, student, batch, key, **wanted)
        both = {"student": student}
        if teacher is None:
            given: Any = TopK(*(batch[name][:, None] if per_row else batch[name] for name in FIELDS))
            shown, theirs = batch, None
        else:
            both["teacher"] = jax.lax.stop_gradient(variables["teacher"])
            shown = without_virtual(batch, model.cfg.vocab_size) if virtual else batch
            theirs = forward(teacher, both["teacher"], shown, **wanted)
            given = read(teacher, both["teacher"], theirs.last_hidden, shown)

        def one(both: Any, h: jax.Array, y: jax.Array, first: jax.Array, given: Any) -> tuple[jax.Array, Any]:
            logits = scores(model, both["student"], h, key, first)
            apart = divergence(logits, given if teacher is None else scores(teacher, both["teacher"], given))
            hard, nll = cross_entropy(logits, y, label_smoothing, z_loss)
            kd, _ = total(apart, (y != IGNORE).astype(jnp.float32))
            return alpha * kd + (1 - alpha) * hard.sum(), {"kd": kd, "nll": nll.sum()}

        states = read(model, student, ours.last_hidden, batch)
        if model.cfg.head in VOCABULARY:
            value, sums = chunked(one, both, states, labels, chunk, given)
        else:
            value, sums = one(both, states, labels, jnp.asarray(0), given)
        if match is not None:
            assert teacher is not None and theirs is not None
            projection = variables.get("distill", {}).get("projection")
            sums["match"] = _matched(match, ours, theirs, batch, shown, projection, per_row)
            value += sums["match"]
        tokens = jnp.sum(labels != IGNORE).astype(jnp.float32)
        weight = tokens if reduction == "token" else jnp.max(batch["segment_ids"], 1).sum().astype(jnp.float32)
        return Sums(value, weight, {name: (x, tokens) for name, x in sums.items()})

    return Objective(loss)


def _matched(
    match: Match, ours: Output, theirs: Output, batch: Batch, shown: Batch, projection: Any, per_row: bool
) -> jax.Array:
    """Over labelled positions; of a row with one label over its real tokens, as their mean."""
    if not per_row:
        weights = (batch["labels"] != IGNORE).astype(jnp.float32)
        return match(ours, theirs, (batch["label_positions"], shown["label_positions"]), weights, projection)
    real = (shown["segment_ids"] != 0) & (batch["labels"] != IGNORE)[:, None]
    everywhere = jnp.broadcast_to(jnp.arange(real.shape[1]), real.shape)
    return match(ours, theirs, (everywhere, everywhere), real / jnp.maximum(real.sum(1, keepdims=True), 1), projection)


def check_heads(student: Transformer, teacher: Transformer) -> None:
    """UserError where two models' heads do not predict the same things."""
    ours, theirs = student.cfg, teacher.cfg
    if ours.head != theirs.head or (ours.head not in VOCABULARY and student.outputs != teacher.outputs):
        sizes = [f"{cfg.head} of {m.outputs}" for cfg, m in ((ours, student), (theirs, teacher))]
        raise UserError(f"distill.teacher: its head ({sizes[1]}) predicts other things than the student's ({sizes[0]})")


def check_vocabularies(student: Any, teacher: Any, name: str) -> None:
    """Whether two tokenizers give every token the same id, which comparing probabilities needs.

    Raises:
      UserError: they do not; `name` is the teacher's, for the message.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        apart = sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token))
        raise UserError(
            f"distill.teacher={name}: its vocabulary is not the student's ({len(apart)} tokens differ, such as"
            f" {apart[0]!r}), and distill=token compares probabilities token by token; take distill=sequence, which"
            " needs the teacher's text only"
        )
