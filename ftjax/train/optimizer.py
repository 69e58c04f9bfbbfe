"""Optimizers and schedules, grouped by label: `optax.multi_transform` over the trainable leaves alone."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftjax import tree
from ftjax.errors import UserError
from ftjax.kinds import require
from ftjax.nn.layers import layered, span

Tree = Any
NOT_NEGATIVE: Any = (lambda x: 0 <= x < math.inf, "0 or more")
PART: Any = (lambda x: 0 <= x < 1, "0 or more, below 1")
RANGES = {  # field -> what is right, in words; not every optimizer has each
    **dict.fromkeys(("learning_rate", "warmup", "weight_decay", "decay_rate"), NOT_NEGATIVE),
    **dict.fromkeys(("clip", "clipping_threshold"), (NOT_NEGATIVE[0], "0 (none) or more")),
    **dict.fromkeys(("b1", "b2", "momentum"), PART),
    "eps": (lambda x: 0 < x < math.inf, "a number above 0"),
    "layer_decay": (lambda x: 0 < x < math.inf, "a factor above 0; 1 for none"),
}


def schedule(cfg: Any, steps: int, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate by step, from `cfg.schedule`, peak `cfg.learning_rate` and `cfg.warmup`.

    `warmup` below 1 is a share of all steps, else a number of steps. `schedule_by = 'epoch'` holds the rate within an
    epoch: cosine over 2 epochs is then peak, peak / 2.

    Raises:
      UserError: an unknown schedule, a warm-up longer than the run.
    """
    peak, per_epoch = cfg.learning_rate, cfg.schedule_by == "epoch"
    total = max(math.ceil(steps / steps_per_epoch) if per_epoch else steps, 1)
    warmup = round(cfg.warmup * total) if cfg.warmup < 1 else int(cfg.warmup)
    if cfg.schedule_by not in ("step", "epoch"):
        raise UserError(f"optimizer.schedule_by={cfg.schedule_by!r}: give step or epoch")
    if warmup and warmup >= total:
        raise UserError(f"optimizer.warmup={cfg.warmup:g} leaves nothing of {total} {cfg.schedule_by}s; give less")
    rest = total - warmup

    def slanted_triangular(t: jax.Array) -> jax.Array:
        """ULMFiT's schedule (Howard & Ruder 2018, eq. 3), cut_frac 0.1, ratio 32."""
        cut = max(math.floor(total * 0.1), 1)
        share = jnp.where(t < cut, t / cut, 1 - (t - cut) / (cut * (1 / 0.1 - 1)))
        return peak * (1 + jnp.maximum(share, 0) * 31) / 32

    shapes: dict[str, Callable[[], Any]] = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
        "slanted_triangular": lambda: slanted_triangular,
    }
    if cfg.schedule not in shapes:
        raise UserError(f"optimizer.schedule={cfg.schedule!r} is unknown; there are {', '.join(shapes)}")
    if cfg.schedule == "slanted_triangular" and warmup:
        raise UserError("optimizer.warmup: slanted_triangular has its own warm-up; set optimizer.warmup=0")
    shape = shapes[cfg.schedule]()
    if warmup:
        shape = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), shape], [warmup])
    return (lambda step: shape(jnp.asarray(step) // steps_per_epoch)) if per_epoch else shape


def scale_by_adam_uncorrected(b1: float, b2: float, eps: float, mu_dtype: Any) -> optax.GradientTransformation:
    """Adam's direction without bias correction, m / (sqrt(v) + eps): BERT's and Houlsby's optimizer."""

    def init(params: Tree) -> optax.ScaleByAdamState:
        zeros = lambda dtype: jax.tree.map(lambda p: jnp.zeros(p.shape, dtype or p.dtype), params)  # noqa: E731
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros(mu_dtype), zeros(None))

    def update(updates: Tree, state: Any, params: Tree = None) -> tuple[Tree, Any]:
        mu = jax.tree.map(lambda m, g: b1 * m.astype(g.dtype) + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        mu = jax.tree.map(lambda m, old: m.astype(old.dtype), mu, state.mu)
        return direction, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def clip_by_global_norm(limit: float, measured: bool = True) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` as one factor: no division by element, and no second pass over the gradients where
    the train step gives the norm that it has measured (`grad_norm`); not `measured`: the updates' own norm."""

    def update(
        updates: Tree, state: Any, params: Tree = None, *, grad_norm: jax.Array | None = None, **extra: Any
    ) -> tuple[Tree, Any]:
        known = grad_norm if measured else None
        factor = limit / jnp.maximum(optax.tree.norm(updates) if known is None else known, limit)
        return jax.tree.map(lambda g: (g * factor).astype(g.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _decay_mask(pattern: str) -> Callable[[Tree], Tree]:
    try:
        left = re.compile(pattern)
    except re.error as error:
        raise UserError(f"optimizer.no_decay={pattern!r} is no regular expression ({error})") from None
    return lambda params: tree.map_paths(lambda path, _: not (pattern and left.search(path)), params)


def _adam(cfg: Any, rate: optax.Schedule) -> optax.GradientTransformation:
    try:
        dtype = jnp.dtype(cfg.moment_dtype)
    except TypeError:
        raise UserError(f"optimizer.moment_dtype={cfg.moment_dtype!r} is no dtype; give float32 or bfloat16") from None
    direction = (
        optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps, mu_dtype=dtype)
        if cfg.bias_correction
        else scale_by_adam_uncorrected(cfg.b1, cfg.b2, cfg.eps, dtype)
    )
    return optax.chain(direction, *_decay(cfg), optax.scale_by_learning_rate(rate))


def _decay(cfg: Any) -> list[optax.GradientTransformation]:
    mask = _decay_mask(cfg.no_decay)
    some = isinstance(cfg.weight_decay, jax.Array) or cfg.weight_decay  # as data it is not 0
    return [optax.add_decayed_weights(cfg.weight_decay, mask)] if some else []


def _rms(path: str, x: jax.Array) -> jax.Array:
    """Root mean square of a parameter: of each row of a layer stack for itself, as if the layers were not stacked."""
    axes = tuple(range(1, x.ndim)) if layered(path) else None
    return jnp.sqrt(jnp.mean(jnp.square(x), axes, keepdims=True))


def _clip_by_rms(limit: float) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, params: tree.map_paths(lambda p, u: u / jnp.maximum(1.0, _rms(p, u) / limit), updates)
    )


def _scale_by_parameter_rms(least: float = 1e-3) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, params: tree.map_paths(lambda p, u, w: u * jnp.maximum(_rms(p, w), least), updates, params)
    )


def _adafactor(cfg: Any, rate: optax.Schedule) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018); T5 and prompt tuning set the flags (parameter scale, decay rate, factoring)."""
    return optax.chain(
        optax.scale_by_factored_rms(cfg.factored, cfg.decay_rate, 0, cfg.min_dim_size_to_factor),
        *([_clip_by_rms(cfg.clipping_threshold)] if cfg.clipping_threshold else []),
        *([optax.ema(cfg.momentum, debias=False)] if cfg.momentum else []),
        *([_scale_by_parameter_rms()] if cfg.scale_parameter else []),
        *_decay(cfg),
        optax.scale_by_learning_rate(rate),
    )


def _sgd(cfg: Any, rate: optax.Schedule) -> optax.GradientTransformation:
    momentum = [optax.trace(cfg.momentum, nesterov=cfg.nesterov)] if cfg.momentum else []
    return optax.chain(*_decay(cfg), *momentum, optax.scale_by_learning_rate(rate))


OPTIMIZERS = {"adamw": _adam, "adam": _adam, "adafactor": _adafactor, "sgd": _sgd}


def scale_by_depth(decay: float, rows: int) -> optax.GradientTransformation:
    """Updates times decay^depth: layer l of L is L - l below the head, the embeddings and an encoder's layers with
    what sits in them L + 1 (discriminative rates of Howard & Ruder 2018; ELECTRA's layer-wise decay, which has the
    whole body one factor lower still, as `group_rates` can say)."""

    def scale(path: str, update: jax.Array) -> jax.Array:
        if re.match("(params/(embed|relative|conv|encoder)|adapters/encoder/layers)/", path):  # an encoder as a whole
            return update * decay ** (rows + 1)
        if not layered(path):
            return update
        factors = decay ** (rows - span(path, rows)[0] - np.arange(update.shape[0], dtype=np.float32))
        return update * factors.reshape(-1, *[1] * (update.ndim - 1)).astype(update.dtype)

    return optax.stateless(lambda updates, params: tree.map_paths(scale, updates))


def _zero_before(start: int) -> optax.GradientTransformation:
    """No gradient before a step: what does not move yet does not count in the norm."""
    return optax.scale_by_schedule(lambda step: jnp.where(jnp.asarray(step) >= start, 1.0, 0.0))


def _start(group: str, every: float, steps_per_epoch: int) -> int:
    """The step from which a group moves: `depth_k` after k times `every` epochs."""
    depth = re.fullmatch(r"depth_(\d+)", group)
    return math.ceil(int(depth[1]) * every * steps_per_epoch) if depth else 0


def make_optimizer(
    cfg: Any, labels: Tree, steps: int, steps_per_epoch: int, rows: int = 0
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(transformation, schedule of the base rate) for trainable leaves with these labels (None where frozen).

    Each label is a group with the optimizer of its own and, by `cfg.group_rates` ("head:10,lora_b:16"), a factor on
    the rate. Clipping is by the global norm of what trains. `rows` are the model's layers, for `cfg.layer_decay`. The
    learning rate and a weight decay other than 0 may be traced.

    Raises:
      UserError: an unknown optimizer, a number out of its range, a pattern that is none, a rate factor for a group that
        no leaf has, unfreezing without groups by depth.
    """
    if cfg.name not in OPTIMIZERS:
        raise UserError(f"optimizer.name={cfg.name!r} is unknown; there are {', '.join(OPTIMIZERS)}")
    for name, (right, wanted) in RANGES.items():
        value = getattr(cfg, name, None)
        if value is not None and not isinstance(value, jax.Array):  # as data it was looked at before
            require(f"optimizer.{name}", value, right(value), wanted)
    rate = schedule(cfg, steps, steps_per_epoch)
    groups = sorted(set(jax.tree.leaves(labels)))
    factors = _group_rates(cfg.group_rates, groups)

    def scaled(factor: float) -> optax.Schedule:
        return rate if factor == 1 else (lambda step: factor * rate(step))

    every = cfg.unfreeze_every
    if every < 0 or (every and not any(_start(g, 1.0, 1) for g in groups)):
        raise UserError(f"optimizer.unfreeze_every={every:g} is for method=gradual, whose groups go by depth")
    transforms = {g: OPTIMIZERS[cfg.name](cfg, scaled(factors.get(g, 1.0))) for g in groups}
    starts = {g: start for g in groups if (start := _start(g, every, steps_per_epoch))}
    late = max(starts.values(), default=0)
    if late >= steps:
        raise UserError(
            f"optimizer.unfreeze_every={every:g}: the last group would start at step {late} of {steps}; give less"
        )
    for g, start in starts.items():
        waiting = optax.transforms.conditionally_mask(
            OPTIMIZERS[cfg.name](cfg, lambda step: 1.0), lambda step, start=start, **_: step >= start
        )  # the rate goes on outside, by the run's own steps
        transforms[g] = optax.chain(waiting, optax.scale_by_schedule(scaled(factors.get(g, 1.0))))
    tx = optax.multi_transform(transforms, labels)
    if cfg.layer_decay != 1:
        tx = optax.chain(tx, scale_by_depth(cfg.layer_decay, rows))
    if not cfg.clip:
        return tx, rate
    if not starts:
        return optax.chain(clip_by_global_norm(cfg.clip), tx), rate
    still = optax.multi_transform({g: _zero_before(starts.get(g, 0)) for g in groups}, labels)
    return optax.chain(still, clip_by_global_norm(cfg.clip, measured=False), tx), rate


def _group_rates(text: str, groups: list[str]) -> dict[str, float]:
    factors = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition(":")
        try:
            factors[name] = float(value)
        except ValueError:
            raise UserError(f"optimizer.group_rates={text!r}: write group:factor, as in head:10") from None
        require("optimizer.group_rates", text, 0 <= factors[name] < math.inf, "factors of 0 or more")
        if name not in groups:
            raise UserError(f"optimizer.group_rates: no leaf has the label {name!r}; there are {', '.join(groups)}")
    return factors
