"""One run, from its config to its result: what is asked for, where it stands, and what it writes.

`ftjax.train.loop` drives it, alone or beside others of the same program.
"""

import functools
import hashlib
import importlib.util
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ftjax import tree
from ftjax.errors import UserError
from ftjax.files import Growing, read_text, write_json
from ftjax.kinds import require
from ftjax.metrics import METRICS
from ftjax.parallel.mesh import place, rows_here, rows_multiple
from ftjax.parallel.processes import is_first
from ftjax.train.build import Data, features_are_fixed, load_data
from ftjax.train.checkpoint import Checkpoints, claim
from ftjax.train.clock import Clock
from ftjax.train.compiled import Compiled
from ftjax.train.evaluate import Evaluator
from ftjax.train.features import with_features
from ftjax.train.fields import Fields
from ftjax.train.flops import peak_flops, step_flops
from ftjax.train.log import Log
from ftjax.train.optimizer import make_optimizer
from ftjax.train.profile import SKIPPED
from ftjax.train.report import commit, peak_memory_bytes, start_report, trainable
from ftjax.train.restore import build
from ftjax.train.step import init_state
from ftjax.train.teacher import taught

Tree = Any
SAMPLES = 4  # generated answers that an evaluation keeps


class Course:
    """A run. Made, it is found right and nothing is written; opened, it stands where it stood.

    state: {train, opt, step} once opened, until a program takes it; frozen: what does not train.
    batches: where its data stand, its own or those of a run of the same order; a program's to set.
    failed: why it cannot go on. result: what its `result.json` holds, once it is there.
    """

    batches: grain.DatasetIterator

    def __init__(
        self, config: ConfigDict, default: ConfigDict, workdir: Path, mesh: Mesh, beside: Sequence["Course"] = ()
    ):
        """Args:
          beside: courses of the same model and data; what is the same of theirs is shared with them.
        Raises:
          UserError: anything wrong with the input; a field that differs from `default` and that nothing here uses.
        """
        self.began, self.code = time.perf_counter(), beside[0].code if beside else commit()
        self.config, self.workdir, self.failed = config, workdir, ""
        self.result: dict[str, Any] | None = None
        same = next((course for course in beside if course.f.seed == config.seed), None)
        f = self.f = Fields(config) if same is None else same.f.of(config)
        parts = build(f, f.warm_start, mesh)
        if beside:
            parts = parts._replace(variables=_shared(parts.variables, beside[0].parts.variables, parts.labels))
        self.loaded = same.loaded if same else (
            load_data(f, parts, "train", training=True), load_data(f, parts, f.task.eval_split, training=False)
        )  # fmt: skip
        data, held = self.loaded
        per_epoch = data.loader.steps_per_epoch
        self.steps: int = math.ceil(f.epochs * per_epoch) if f.steps is None else f.steps
        self.eval_every: int = per_epoch if f.eval_every is None else f.eval_every
        for name, value in dict(
            steps=self.steps, eval_every=self.eval_every, micro_batches=f.micro_batches, log_every=f.log_every
        ).items():
            require(name, value, value >= 1, "1 or more")
        for name, value in dict(early_stopping=f.early_stopping, profile_steps=f.profile_steps).items():
            require(name, value, value >= 0, "0 or more")
        most = max(self.steps - SKIPPED, 0)
        require("profile_steps", f.profile_steps, f.profile_steps <= most, f"at most {most} of {self.steps} steps")
        self.evaluator = Evaluator(parts, held, mesh, f)
        self.lesson = taught(f, parts, data, mesh)  # evaluation is without a teacher
        self.parts, self.data, self.held = self.lesson.parts, self.lesson.data, held
        self.metric = parts.metrics[0]
        labels = tree.split(self.parts.labels, self.parts.labels)[0]
        self.optimizer = functools.partial(
            make_optimizer, labels=labels, steps=self.steps, steps_per_epoch=per_epoch, rows=parts.model.cfg.rows
        )
        self.tx, self.rate = self.optimizer(f.optimizer)
        self._patience, self._wandb = f.early_stopping, f.wandb_project
        if self._wandb and importlib.util.find_spec("wandb") is None:
            raise UserError("wandb_project is set but wandb is not installed: pip install 'ftjax[wandb]'")
        f.check_all_read(default)

    def claim(self) -> None:
        """Takes the folder; where the run is done already, reads its result.

        Raises:
          UserError: the folder is of another config, or cannot be written to.
        """
        claim(self.workdir, self.config)
        if (self.workdir / "result.json").exists():
            self.result = json.loads(read_text(self.workdir / "result.json"))

    def open(self, mesh: Mesh, beside: Sequence["Course"] = (), name: str = "") -> None:
        """State and data, where they are computed and where they stood; says what there is, under a name."""
        f, parts, data, held = self.f, self.parts, self.data, self.held
        leaves, frozen = tree.split(parts.variables, parts.labels)
        leaves = jax.tree.map(lambda x: x.astype(jnp.float32), leaves)  # moments and small updates are lost in bf16
        leaves, self.frozen = place(leaves, mesh), place(frozen, mesh)
        if beside:
            theirs, placed = tree.flatten(beside[0].parts.variables), tree.flatten(beside[0].frozen)
            self.frozen = tree.map_paths(
                lambda path, x, mine: placed[path] if x is theirs.get(path) else mine, frozen, self.frozen
            )
        shapes = data.loader.shapes
        if features_are_fixed(parts):
            self.features = self._features(tree.join(leaves, self.frozen), mesh, beside)
            self.data, self.held = self.features
            assert parts.objective.head is not None
            self.parts = parts._replace(objective=parts.objective.head)
            self.evaluator = Evaluator(self.parts, self.held, mesh, f)
            shapes = ((f.batch_size, 0),)  # no token passes the body
        if beside:
            self.evaluator.compiled_with(beside[0].evaluator)
        self.state = place(init_state(leaves, self.tx), mesh)
        self.checkpoints = Checkpoints(self.workdir)
        progress: dict[str, Any] = dict(step=0, best=None, best_step=0, since_best=0, wall=0.0, clock=(0, 0, 0.0, 0.0))
        if restored := self.checkpoints.restore(self.state):
            self.state, progress = restored
        self.start: int = progress["step"]
        self.window: list[dict[str, Any]] = progress.pop("window", [])
        self.progress, self.final = progress, progress.get("metrics", {})
        self.place = Growing(self.workdir)
        self.log = Log(self.place, self.start, self.steps, self._wandb, self.config.to_dict(), name)
        sited = jax.eval_shape(parts.method.expand, parts.variables["adapters"], parts.variables["params"])
        self.work = functools.cache(
            functools.partial(
                step_flops, parts.model.cfg, parts.labels, parts.variables, sited, teacher=self.lesson.teacher
            )
        )
        work = max(self.work(*shape) for shape in shapes)
        if not beside:
            self.log.say(start_report(parts, data, held, mesh, f.model.path, self.steps, work))
        if self.lesson.about:
            self.log.say(self.lesson.about)
        if self.start:
            self.log.say(f"resumed  at step {self.start}")
        self.counts = trainable(parts), tree.count(parts.variables["params"])
        rows = rows_multiple(mesh)
        self.clock = Clock(progress["clock"], share=len(range(rows)[rows_here(mesh, rows)]) / rows)
        self.mean_length = float(data.encoded.lengths.mean())

    def _features(self, variables: Tree, mesh: Mesh, beside: Sequence["Course"]) -> tuple[Data, Data]:
        """The splits as the frozen body sees them, or a run's beside of the same data and body."""
        seen = lambda course: [id(x) for x in (course.loaded, *jax.tree.leaves(course.frozen))]  # noqa: E731
        for other in beside:
            if other.features and seen(other) == seen(self):
                return other.features
        train, held = (with_features(self.parts, split, variables, mesh) for split in (self.data, self.held))
        return train, held

    def iterate(self) -> grain.DatasetIterator:
        """The batches from where the run stands."""
        batches = iter(self.data.batches)
        if self.start:
            batches.set_state(self.progress["data"])
        return batches

    def is_over(self, n: int) -> bool:
        """Whether nothing is left to do after step n."""
        patience = self._patience
        return n >= self.steps or bool(self.failed) or bool(patience and self.progress["since_best"] >= patience)

    def count(self, host: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> None:
        """One step more, over a host batch of a global shape."""
        self.clock.count(host, self.mean_length, self.work(*shape))

    def row(self, n: int, means: dict[str, float], compile_seconds: float) -> dict[str, float]:
        """What the log gets of the steps since the last row."""
        return means | {
            "learning_rate": float(jnp.asarray(self.rate(n - 1))), **self.clock.stop(compile_seconds)
        }  # fmt: skip

    def write(self, n: int, row: Mapping[str, float]) -> None:
        """A row of training."""
        self.log.write(n, {f"train/{name}": value for name, value in row.items()})
        self.log.progress(n, {"loss": row["loss"], "tok/s": row["tokens_per_second"]})

    def stop(self, n: int, state: Tree, **kept: Any) -> None:
        """Saves and closes before the end; `n` is the step of `state`."""
        kept = {"step": n, "data": self.batches.get_state()} | kept
        self.log.flush()
        self.checkpoints.save(n, state, self.progress | kept, best=False)
        self.close()

    def preempted(self, n: int, state: Tree, window: list[dict[str, float]], compile_seconds: float) -> None:
        """Saves what the same command goes on from."""
        self.clock.stop(compile_seconds)
        wall = self.progress["wall"] + time.perf_counter() - self.began
        self.stop(n, state, window=window, wall=wall, clock=self.clock.totals)

    def not_finite(self, n: int, state: Tree) -> None:
        """Saves the last good state: the step itself left it as it was."""
        self.stop(int(state["step"]), state)
        self.failed = (
            f"the loss or its gradient was not finite in a step up to {n}; the last good state is in"
            f" {self.workdir}/checkpoints; lower optimizer.learning_rate"
        )

    def evaluate(self, n: int, state: Tree, train: Tree, frozen: Tree) -> None:
        """Evaluates `train`, keeps what came of it and saves `state`."""
        scored, samples = self.evaluator(train, frozen, SAMPLES)
        self.final = {name: found.value for name, found in scored.items()}
        self.log.write(n, {f"eval/{name}": value for name, value in self.final.items()})
        self.log.say(f"step {n}: " + ", ".join(f"{name} {value:.4g}" for name, value in self.final.items()))
        self.log.sample(n, samples[:SAMPLES])
        progress, value = self.progress, self.final[self.metric]
        better = improves(value, progress["best"], self.metric)
        progress |= {"step": n, "data": self.batches.get_state(), "clock": self.clock.totals, "metrics": self.final}
        progress |= {"since_best": 0 if better else progress["since_best"] + 1}
        progress |= {"best": value, "best_step": n} if better else {}
        progress |= {"wall": progress["wall"] + time.perf_counter() - self.began}
        self.began = time.perf_counter()
        self.log.flush()  # no state may come before the rows that led to it
        self.checkpoints.save(n, state, progress, best=better)

    def finish(self, n: int, step: Compiled, mesh: Mesh, together: int) -> None:
        """Writes the result of a run that is over at step n of a program of so many runs."""
        self.close()
        progress, clock, peak = self.progress, self.clock, peak_flops(mesh.size)
        self.result = {
            "metrics": self.final,
            "best": {"metric": self.metric, "value": progress["best"], "step": progress["best_step"]},
            "steps": n,
            "trainable_parameters": self.counts[0],
            "total_parameters": self.counts[1],
            "examples_per_second": clock.examples / clock.seconds,
            "tokens_per_second": clock.tokens / clock.seconds,
            "model_flops_utilisation": peak and clock.flops / clock.seconds / peak,
            "peak_memory_bytes": peak_memory_bytes(),
            "step_memory_bytes": step.memory_bytes,
            "compiles": step.count,
            "compile_seconds": step.seconds,
            "together": together,
            "config_hash": config_hash(self.config),
            "commit": self.code,
            "seed": self.f.seed,
            "wall_seconds": progress["wall"],
        }
        if is_first():
            write_json(self.workdir / "result.json", self.result)

    def close(self) -> None:
        """Waits for what is still being written."""
        try:
            self.checkpoints.close()
        finally:
            self.log.close()


def _shared(variables: Tree, theirs: Tree, labels: Tree) -> Tree:
    """Variables whose frozen leaves are another run's own where they are equal."""
    other = tree.flatten(theirs)

    def share(path: str, x: jax.Array, label: str) -> jax.Array:
        y = other.get(path)
        same = label == tree.FREEZE and y is not None and x.shape == y.shape and x.dtype == y.dtype
        return y if same and np.array_equal(x, y) else x  # type: ignore[return-value]

    return tree.map_paths(share, variables, labels)


def improves(value: float, best: float | None, metric: str) -> bool:
    """Whether a metric beats the best one so far; a NaN never does."""
    if math.isnan(value):
        return False
    return best is None or (value < best if METRICS[metric].better == "lower" else value > best)


def config_hash(config: ConfigDict) -> str:
    """Sixteen hex digits of a run's config."""
    return hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
