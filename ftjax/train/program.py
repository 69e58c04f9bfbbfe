"""What a step runs: one trial, or several of the same shapes side by side on a leading axis `N`.

Of several, what is frozen and the same in all of them has no such axis; the axis is cut along the devices of this
process, each of which computes its runs without a word to the others. Leaves that differ in size (LoRA's of another
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
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ftjax import tree
from ftjax.parallel.mesh import TRIAL, place, shardings, trial_mesh
from ftjax.train.alike import DATA, PADDED
from ftjax.train.compiled import Compiled
from ftjax.train.course import Course
from ftjax.train.evaluate import device_batches
from ftjax.train.report import numbers
from ftjax.train.step import make_step

Tree = Any
Means = list[dict[str, float]]
TOKENS = 256  # of a program's batches on a CPU, at most, if it is of several runs
STEP = 16  # what sizes are filled up to at most: more would cost more than a compilation
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
        for host, batch in device_batches(self._hosts(), self._mesh):
            yield [host], batch

    def _hosts(self) -> Iterator[Any]:
        """The data's batches, or what the student writes in their place."""
        [course] = self.courses
        for step, host in enumerate(course.batches, course.start):
            rollout = course.lesson.rollout
            yield rollout(step, self.state["train"], self.frozen, host) if rollout else host

    def __call__(self, batch: dict, going: Sequence[int]) -> list[jax.Array]:
        """A step, at least of the runs that are going on; whether each leaf had a gradient, `[leaves]` or, of a part of
        several runs, `[width, leaves]`."""
        self.state, metrics = self.step(self.state, self.frozen, batch, self._key)
        has_gradient = metrics.pop("has_gradient")
        self.window.append(metrics)
        return [has_gradient]

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
    """The program of several runs, as `Alone`; one executable takes `width` of them at a time."""

    def __init__(self, courses: Sequence[Course], mesh: Mesh):
        self.courses, self._mesh, first = list(courses), mesh, courses[0]
        self._trials = trial_mesh(len(courses))
        self.width = _width(courses) * self._trials.size
        self._like = [jax.eval_shape(lambda x: x, course.state) for course in courses]
        most = jax.tree.map(lambda *xs: jax.ShapeDtypeStruct(_most(xs), xs[0].dtype), *self._like)
        parts = self._parts([course.state for course in courses])
        self.states = [
            self._put(jax.tree.map(lambda size, *xs: self._lay(xs, size.shape), most, *part), True) for part in parts
        ]
        for course in courses:
            del course.state
        self._orders: list[Course] = []  # a course of each order of the data
        self._order: list[int] = []  # of each run
        for course in courses:
            same = [n for n, other in enumerate(self._orders) if other.data is course.data]
            self._order.append(same[0] if same else len(self._orders))
            self._orders += [] if same else [course]
            course.batches = self._orders[same[0]].batches if same else course.iterate()
        leaves = [jax.tree.leaves(course.frozen) for course in courses]
        self._frozen = jax.tree.structure(first.frozen)
        self._shared = [each[0] if all(x is each[0] for x in each) else None for each in zip(*leaves)]
        given = {name: [float(getattr(c.f.optimizer, name)) for c in courses] for name in DATA}
        given = {name: values for name, values in given.items() if all(values)}
        self._everywhere = self._put(self._shared, False)
        size = [_most(each) for each in zip(*leaves)]
        self._own = []
        for part in self._parts(range(len(courses))):
            own = [None if x is not None else self._lay([leaves[i][n] for i in part], size[n])
                   for n, x in enumerate(self._shared)]  # fmt: skip
            data = {name: self._lay([np.float32(values[i]) for i in part], ()) for name, values in given.items()}
            keys = jnp.stack([jax.random.key(courses[i].f.seed) for i in part])
            self._own.append(self._put((own, data, keys if self.width > 1 else keys[0]), True))
        cfg = first.f.optimizer.to_dict()

        def one(state: Tree, own: Any, batch: dict, shared: Any) -> tuple[Tree, dict]:
            leaves, data, key = own
            tx, _ = first.optimizer(SimpleNamespace(**cfg | data))
            step = make_step(first.parts.objective.loss, tx, first.f.micro_batches)
            return step(state, self._joined(shared, leaves), batch, key)

        self._several = len(self._orders) > 1
        act = jax.vmap(one, (0, 0, 0 if self._several else None, None)) if self.width > 1 else one
        if self._trials.size > 1:
            each, batch = P(TRIAL), P(TRIAL) if self._several else P()
            act = jax.shard_map(
                act, mesh=self._trials, in_specs=(each, each, batch, P()), out_specs=each, check_vma=False
            )
        self.step = Compiled(lambda state, shared, batch, own: act(state, own, batch, shared), donate_argnums=0)
        self._take = jax.jit(lambda values, i: jax.tree.map(lambda x: x[i], values))
        windows = [list(zip(*(course.window for course in part))) for part in self._parts(courses)]
        self._window: list[list[dict[str, Any]]] = [
            [{k: self._lay([np.float32(one[k]) for one in each], ()) for k in each[0]} for each in entries]
            for entries in windows
        ]

    def _parts(self, items: Sequence[Any]) -> list[Sequence[Any]]:
        return [items[at : at + self.width] for at in range(0, len(items), self.width)]

    def _lay(self, leaves: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
        """`[width, *shape]` on the host, zeros at the ends; one run's has no leading axis."""
        out = np.zeros((len(leaves), *shape), leaves[0].dtype)
        for i, x in enumerate(leaves):
            out[i, *map(slice, x.shape)] = x
        return out if self.width > 1 else out[0]

    def _put(self, values: Tree, each: bool) -> Tree:
        """On the devices: with a leading axis of trials (`each`), or the same for all of them."""
        return jax.device_put(values, NamedSharding(self._trials, P(TRIAL) if each and self.width > 1 else P()))

    def _joined(self, shared: Any, own: Any) -> Tree:
        return jax.tree.unflatten(self._frozen, [y if x is None else x for x, y in zip(shared, own)])

    def stream(self) -> Iterator[tuple[list[dict], list[dict]]]:
        """(host batch of each run, device batch of each part)."""
        for each in zip(*(course.batches for course in self._orders)):
            hosts = [each[n] for n in self._order]
            if len(each) == 1 or self.width == 1:
                placed = [self._put(batch, False) for batch in each]
                yield hosts, [placed[part[0]] for part in self._parts(self._order)]
            else:
                stacked = [{k: np.stack([host[k] for host in part]) for k in each[0]} for part in self._parts(hosts)]
                yield hosts, [self._put(batch, True) for batch in stacked]

    def __call__(self, batches: list[dict], going: Sequence[int]) -> list[jax.Array]:
        has_gradient = []
        for i in sorted({run // self.width for run in going}):
            batch = batches[i]
            with jax.set_mesh(self._trials):
                self.states[i], metrics = self.step(self.states[i], self._everywhere, batch, self._own[i])
            has_gradient.append(metrics.pop("has_gradient"))
            self._window[i].append(metrics)
        return has_gradient

    def means(self) -> Means:
        with jax.set_mesh(self._trials):
            means = jax.device_get([mean_of(window) if window else {} for window in self._window])
        self._window = [[] for _ in means]
        return [one for each in means for one in self._each(each)]

    def _each(self, metrics: dict[str, np.ndarray]) -> Means:
        """Of each run of a part."""
        return [{name: float(np.atleast_1d(x)[i]) for name, x in metrics.items()} for i in range(self.width)]

    def windows(self) -> list[Means]:
        parts = [[self._each(one) for one in window] for window in jax.device_get(self._window)]
        return [[one[i] for one in part] for part in parts for i in range(self.width)]

    def own(self, i: int) -> tuple[Tree, Tree, Tree]:
        part, at = divmod(i, self.width)
        values = self.states[part], self._own[part][0]
        with jax.set_mesh(self._trials):
            state, own = self._take(values, at) if self.width > 1 else values
        state, own = jax.device_get((state, own))
        cut = jax.tree.map(lambda x, like: x[tuple(map(slice, like.shape))], state, self._like[i])
        train, own = jax.device_put((state["train"], own), NamedSharding(self._mesh, P()))
        return place(cut, self._mesh), train, self._joined(self._shared, own)


def _most(leaves: Sequence[Any]) -> tuple[int, ...]:
    """The largest size along each axis."""
    return tuple(map(max, *(x.shape for x in leaves)))


def _width(courses: Sequence[Course]) -> int:
    """How many runs a device takes at a time. On a CPU one as soon as its batch fills the matrix products: side by
    side their activations leave the caches (16 of 512 tokens take 1.7 times the time of one by one)."""
    count = wanted = len(courses) // trial_mesh(len(courses)).size
    if jax.default_backend() == "cpu":
        tokens = max(rows * max(length + source, 1) for rows, length, _, source in courses[0].data.loader.shapes)
        wanted = min(max(TOKENS // tokens, 1), wanted)
    return max(n for n in range(1, wanted + 1) if count % n == 0)


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
            jax.tree.structure(trained), _sizes(jax.tree.leaves(trained), STEP if pads(course) else 1),
            tuple(getattr(optimizer, name) == 0 for name in DATA),
            number if mesh.size > 1 or course.lesson.rollout else None,
        )  # fmt: skip
        found.setdefault(key, []).append(course)
    return list(found.values())


def _sizes(leaves: Sequence[jax.Array], step: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(-(-n // step) for n in x.shape) for x in leaves)


def pads(course: Course) -> bool:
    """Whether leaves of other sizes may be filled up with zeros; what divides by means of squares would see them."""
    return course.parts.method.pads and course.f.optimizer.name in PADDED


def room(courses: Sequence[Course]) -> int:
    """How many runs fit into the free memory, by a bound of what one takes: its trainable leaves, their moments,
    gradients and copies, and what the backward pass keeps of the largest batch. Of devices with a memory of their own,
    each holds so many."""
    stats = jax.local_devices()[0].memory_stats() or {}
    devices = trial_mesh(len(courses)).size if "bytes_limit" in stats else 1
    free = stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else psutil.virtual_memory().available
    own, kept = map(max, zip(*map(_bytes, courses)))
    most = (SHARE * free - kept) / own if _width(courses) == 1 else SHARE * free / (own + kept)
    return max(int(most), 1) * devices


def _bytes(course: Course) -> tuple[int, int]:
    """Of a run's own leaves, of the activations."""
    cfg, leaves = course.parts.model.cfg, tree.split(course.parts.variables, course.parts.labels)[0]
    most = 0
    for rows, length, labels, source in course.data.loader.shapes:
        scores = min(rows * labels, course.f.loss.chunk) * cfg.vocab_size
        each = 18 * cfg.hidden_size + 4 * cfg.ffn_size + 3 * cfg.num_heads * max(length, source)
        most = max(most, rows * (length + source) * cfg.num_layers * each + 3 * scores)
    return 4 * 6 * tree.count(leaves), 4 * most // course.f.micro_batches


def mean_of(window: Sequence[dict[str, Any]]) -> dict[str, jax.Array]:
    """Means of the step metrics since the last row, of each run."""
    return jax.tree.map(lambda *xs: jnp.mean(jnp.stack(xs).astype(jnp.float32), 0), *window)
