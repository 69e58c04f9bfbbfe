"""A run's train step over shapes: what `ftjax.train.loop` compiles, without weights, rows or devices."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ftjax import hub, tree
from ftjax.errors import UserError
from ftjax.kinds import require
from ftjax.parallel.mesh import BATCH, rows_multiple, shardings
from ftjax.plan.rows import full_rows
from ftjax.train.build import Parts, build, features_are_fixed
from ftjax.train.fields import Fields
from ftjax.train.flops import step_flops
from ftjax.train.loop import batch_shape
from ftjax.train.optimizer import make_optimizer
from ftjax.train.step import init_state, make_step

Tree = Any
UNKNOWN_STEPS = 1_000_000  # of a run by epochs: a schedule's length is a number in the program, and no shape


class Program(NamedTuple):
    """A train step and what it is called with, all of it shapes (`jax.ShapeDtypeStruct`).

    steps: of the run; None where they depend on the data (`epochs`).
    """

    parts: Parts
    step: Callable[..., Any]
    state: Tree
    frozen: Tree
    batch: dict[str, jax.ShapeDtypeStruct]
    flops: float
    steps: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, tokens, labelled positions, an encoder's tokens) of the batch."""
        return batch_shape(self.batch)

    def placed(self, mesh: Mesh) -> tuple[Tree, ...]:
        """(state, frozen, batch, key) with where each lives on a mesh, as in a run."""
        at = lambda x, where: x.update(sharding=where)  # noqa: E731
        leaves = [jax.tree.map(at, part, shardings(part, mesh)) for part in (self.state, self.frozen)]
        batch = {name: at(x, NamedSharding(mesh, BATCH)) for name, x in self.batch.items()}
        return *leaves, batch, at(jax.eval_shape(jax.random.key, 0), NamedSharding(mesh, P()))


def make_program(f: Fields, mesh: Mesh | None = None) -> Program:
    """The step of a config, its batch `batch_size` rows at full length (`ftjax.plan.rows`).

    Raises:
      UserError: as `build`; a config whose batches come from a teacher or from the student itself.
    """
    for name in ("batch_size", "micro_batches"):
        require(name, getattr(f, name), getattr(f, name) >= 1, "1 or more")
    if f.distill.name not in ("none", "sequence"):
        raise UserError(f"distill={f.distill.name}: a plan is of a student alone; give distill=none")
    parts = abstract_parts(f)
    if features_are_fixed(parts):
        assert parts.objective.head is not None
        rows = full_rows(f, parts)
        features = jax.ShapeDtypeStruct((f.batch_size, parts.model.cfg.hidden_size), jnp.float32)
        batch = {"features": features, "labels": rows["labels"], "example": rows["example"]}
        parts = parts._replace(objective=parts.objective.head)
    else:
        batch = full_rows(f, parts)
    multiple = f.micro_batches * (1 if mesh is None else rows_multiple(mesh))
    full = lambda x: (_up(x.shape[0], multiple), *x.shape[1:])  # noqa: E731
    batch = {name: jax.ShapeDtypeStruct(full(x), x.dtype) for name, x in batch.items()}
    leaves, frozen = tree.split(parts.variables, parts.labels)
    leaves = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), leaves)
    steps = f.steps or UNKNOWN_STEPS
    per_epoch = max(math.ceil(steps / f.epochs), 1) if f.epochs and not f.steps else steps
    groups = tree.split(parts.labels, parts.labels)[0]
    try:
        tx, _ = make_optimizer(f.optimizer, groups, steps, per_epoch, parts.model.cfg.rows)
    except UserError as error:
        if f.steps or not f.epochs:
            raise
        in_epochs = lambda told: f"epoch {int(told[1]) / per_epoch:.4g} of {f.epochs:g}"  # noqa: E731
        raise UserError(re.sub(rf"step (\d+) of {steps}\b", in_epochs, str(error))) from None
    state = jax.eval_shape(lambda leaves: init_state(leaves, tx), leaves)
    sited = jax.eval_shape(parts.method.expand, parts.variables["adapters"], parts.variables["params"])
    flops = step_flops(parts.model.cfg, parts.labels, parts.variables, sited, *batch_shape(batch))
    return Program(parts, make_step(parts.objective.loss, tx, f.micro_batches), state, frozen, batch, flops, f.steps)


def abstract_parts(f: Fields) -> Parts:
    """The parts of a run whose variables are shapes; of the model config.json and the tokenizer are read.

    Raises:
      UserError: as `build`; classes that only the data say.
    """
    if "classes" in f.task:
        require("task.classes", f.task.classes, bool(f.task.classes), "the classes' names, for a plan reads no data")
    made: list[Parts] = []

    def variables() -> Tree:
        made.append(build(f))
        return made[0].variables

    with hub.without_weights():
        shapes = jax.eval_shape(variables)
    return made[0]._replace(variables=shapes)


def nbytes(values: Tree, mesh: Mesh | None = None) -> int:
    """Bytes of all leaves (arrays or shapes); with a mesh, of the part of them that each of its devices holds."""
    if mesh is not None:
        where = shardings(values, mesh)
        values = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(at.shard_shape(x.shape), x.dtype), values, where)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(values))


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
