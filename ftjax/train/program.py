"""What a step runs: one trial, or several of the same shapes side by side on a leading axis `N`.

Of several, what is frozen and the same in all of them has no such axis. Leaves that differ in size (LoRA's of another
rank) are filled with zeros at the ends of their axes, where the method says that this changes nothing, and cut back
when they are saved. Learning rates and weight decays are data. The runs are those alone, to rounding.
"""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.sharding import Mesh

from ftjax import tree
from ftjax.parallel.mesh import place, place_batch, shardings
from ftjax.train.compiled import Compiled
from ftjax.train.course import Course
from ftjax.train.evaluate import device_batches
from ftjax.train.report import numbers
from ftjax.train.step import make_step

Tree = Any
Means = list[dict[str, float]]
DATA = ("learning_rate", "weight_decay")  # fields of the optimizer that may differ, if they are not 0
PADDED = ("adamw", "adam", "sgd")  # optimizers that treat every number for itself
SHARE = 0.8  # of the free memory that a program may take


class Alone:
    """The program of one run: `state`, `frozen` and the step."""

    def __init__(self, courses: Sequence[Course], mesh: Mesh):
        [course] = self.courses = list(courses)
        self.state, self.frozen, self._mesh = course.state, course.frozen, mesh
        del course.state  # it is donated
        self._key, course.batches = jax.random.key(course.f.seed), course.iterate()
        self.step = Compiled(
            make_step(course.parts.objective.loss, course.tx, course.f.micro_batches),
            donate_argnums=0,
            out_shardings=(shardings(self.state, mesh), None),
        )
        self.window: list[dict[str, Any]] = list(course.window)

    def stream(self) -> Iterator[tuple[list[dict], dict]]:
        """(host batch of each run, device batch)."""
        for host, batch in device_batches(self.courses[0].batches, self._mesh):
            yield [host], batch

    def __call__(self, batch: dict) -> jax.Array:
        """A step; whether each leaf had a gradient, `[leaves]`, or of several runs `[N, leaves]`."""
        self.state, metrics = self.step(self.state, self.frozen, batch, self._key)
        has_gradient = metrics.pop("has_gradient")
        self.window.append(metrics)
        return has_gradient

    def means(self) -> Means:
        """Of each run, the means of the metrics since the last call."""
        means, self.window = mean_of(self.window), []
        return [numbers(means)]

    def windows(self) -> list[Means]:
        """Of each run, the metrics that no mean was taken of."""
        return [[numbers(one) for one in self.window]]

    def own(self, i: int) -> tuple[Tree, Tree, Tree]:
        """(state as it is saved, trainable leaves, frozen leaves) of run i."""
        return self.state, self.state["train"], self.frozen


class Together:
    """The program of several runs, as `Alone`."""

    def __init__(self, courses: Sequence[Course], mesh: Mesh):
        self.courses, self._mesh, first = list(courses), mesh, courses[0]
        self._like = [jax.eval_shape(lambda x: x, course.state) for course in courses]
        self.state = place(_stacked([course.state for course in courses]), mesh)
        for course in courses:
            del course.state
        self._seeds: list[Course] = []  # a course of each order of the data
        for course in courses:
            same = [other for other in self._seeds if other.data is course.data]
            course.batches = same[0].batches if same else course.iterate()
            self._seeds += [] if same else [course]
        leaves = [jax.tree.leaves(course.frozen) for course in courses]
        self._frozen = jax.tree.structure(first.frozen)
        self._shared, own = [], []
        for each in zip(*leaves):
            same = all(x is each[0] for x in each)
            self._shared.append(each[0] if same else None)
            own.append(None if same else _stack(each))
        given = {name: jnp.asarray([getattr(c.f.optimizer, name) for c in courses], jnp.float32) for name in DATA}
        given = {name: values for name, values in given.items() if values.all()}
        self.frozen = self._shared, (own, given)
        self._keys = jnp.stack([jax.random.key(course.f.seed) for course in courses])
        cfg = first.f.optimizer.to_dict()

        def one(state: Tree, own: Any, batch: dict, key: jax.Array, shared: Any) -> tuple[Tree, dict]:
            own, given = own
            tx, _ = first.optimizer(SimpleNamespace(**cfg | given))
            step = make_step(first.parts.objective.loss, tx, first.f.micro_batches)
            return step(state, self._joined(shared, own), batch, key)

        axes = (0, 0, 0 if len(self._seeds) > 1 else None, 0, None)
        together = jax.vmap(one, axes)
        self.step = Compiled(
            lambda state, frozen, batch, key: together(state, frozen[1], batch, key, frozen[0]), donate_argnums=0
        )
        self._take = jax.jit(lambda values, i: jax.tree.map(lambda x: x[i], values))
        entries = zip(*(course.window for course in courses))
        self.window = [{k: np.asarray([one[k] for one in each], np.float32) for k in each[0]} for each in entries]

    def _joined(self, shared: Any, own: Any) -> Tree:
        return jax.tree.unflatten(self._frozen, [y if x is None else x for x, y in zip(shared, own)])

    def stream(self) -> Iterator[tuple[list[dict], dict]]:
        orders = [next(n for n, c in enumerate(self._seeds) if c.data is course.data) for course in self.courses]
        if len(self._seeds) == 1:
            for host, batch in device_batches(self.courses[0].batches, self._mesh):
                yield [host] * len(orders), batch
        for each in zip(*(course.batches for course in self._seeds)):
            hosts = [each[n] for n in orders]
            yield hosts, place_batch({name: np.stack([host[name] for host in hosts]) for name in each[0]}, self._mesh)

    def __call__(self, batch: dict) -> jax.Array:
        self.state, metrics = self.step(self.state, self.frozen, batch, self._keys)
        has_gradient = metrics.pop("has_gradient")
        self.window.append(metrics)
        return has_gradient

    def means(self) -> Means:
        means, self.window = jax.device_get(mean_of(self.window)), []
        return [{name: float(x[i]) for name, x in means.items()} for i in range(len(self.courses))]

    def windows(self) -> list[Means]:
        window = jax.device_get(self.window)
        return [[{k: float(x[i]) for k, x in one.items()} for one in window] for i in range(len(self.courses))]

    def own(self, i: int) -> tuple[Tree, Tree, Tree]:
        state, own = self._take((self.state, self.frozen[1][0]), i)
        cut = jax.tree.map(lambda x, like: np.asarray(x)[tuple(map(slice, like.shape))], state, self._like[i])
        return place(cut, self._mesh), state["train"], self._joined(self._shared, own)


def make_program(courses: Sequence[Course], mesh: Mesh) -> Alone | Together:
    """The program of one run or of several."""
    return (Alone if len(courses) == 1 else Together)(courses, mesh)


def programs(courses: Sequence[Course], mesh: Mesh) -> list[list[Course]]:
    """Opened courses, by what can be one program: those at the same step, with leaves of the same structure, and of the
    same sizes where the method or the optimizer needs them, and batches of the same shapes (in buckets: of the same
    order)."""
    found: dict[Any, list[Course]] = {}
    for number, course in enumerate(courses):
        optimizer, shapes = course.f.optimizer, course.data.loader.shapes
        trained = (course.state, course.frozen)
        key = (
            course.start, course.steps, course.eval_every, shapes, course.f.seed if len(shapes) > 1 else None,
            jax.tree.structure(trained), None if pads(course) else tuple(x.shape for x in jax.tree.leaves(trained)),
            tuple(getattr(optimizer, name) == 0 for name in DATA),
            number if mesh.size > 1 or course.lesson.rollout else None,
        )  # fmt: skip
        found.setdefault(key, []).append(course)
    return list(found.values())


def pads(course: Course) -> bool:
    """Whether leaves of other sizes may be filled up with zeros; what divides by means of squares would see them."""
    return course.parts.method.pads and course.f.optimizer.name in PADDED


def room(courses: Sequence[Course]) -> int:
    """How many runs fit into the free memory, by a bound of what one takes: its trainable leaves, their moments,
    gradients and copies, and what the backward pass keeps of the largest batch."""
    stats = jax.local_devices()[0].memory_stats() or {}
    free = stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else psutil.virtual_memory().available
    return max(int(SHARE * free / max(map(_bytes, courses))), 1)


def _bytes(course: Course) -> int:
    cfg, leaves = course.parts.model.cfg, tree.split(course.parts.variables, course.parts.labels)[0]
    most = 0
    for rows, length, labels, source in course.data.loader.shapes:
        scores = min(rows * max(labels, 1), course.f.loss.chunk) * max(cfg.vocab_size, 1) if labels else 0
        each = 18 * cfg.hidden_size + 4 * cfg.ffn_size + 3 * cfg.num_heads * max(length, source)
        most = max(most, rows * (length + source) * cfg.num_layers * each + 3 * scores)
    return 4 * (6 * tree.count(leaves) + most // course.f.micro_batches)


def _stack(leaves: Sequence[jax.Array]) -> jax.Array:
    """`[N, ...]`, of the largest size along each axis, zeros at the ends."""
    out = np.zeros((len(leaves), *map(max, *(x.shape for x in leaves))), leaves[0].dtype)
    for i, x in enumerate(leaves):
        out[i, *map(slice, x.shape)] = x
    return jnp.asarray(out)


def _stacked(trees: Sequence[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: _stack(leaves), *trees)


def mean_of(window: Sequence[dict[str, Any]]) -> dict[str, jax.Array]:
    """Means of the step metrics since the last row, of each run."""
    return jax.tree.map(lambda *xs: jnp.mean(jnp.stack(xs).astype(jnp.float32), 0), *window)
