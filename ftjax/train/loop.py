"""The training loop: it reads top to bottom, and is the only one there is."""

import functools
import hashlib
import importlib.util
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ftjax import tree
from ftjax.errors import Preempted, RunError, UserError
from ftjax.files import write_json
from ftjax.kinds import require
from ftjax.metrics import METRICS
from ftjax.parallel.mesh import make_mesh, place, place_batch, rows_here, rows_multiple, shardings
from ftjax.parallel.processes import Terminated, check_all_used, is_first
from ftjax.train.build import features_are_fixed, load_data
from ftjax.train.checkpoint import Checkpoints, claim
from ftjax.train.clock import Clock
from ftjax.train.compiled import Compiled
from ftjax.train.evaluate import Evaluator, device_batches
from ftjax.train.features import trained_from_features
from ftjax.train.fields import Fields
from ftjax.train.flops import peak_flops, step_flops
from ftjax.train.log import Log, keep_rows
from ftjax.train.optimizer import make_optimizer
from ftjax.train.report import commit, gradient_report, numbers, peak_memory_bytes, start_report, trainable
from ftjax.train.restore import build
from ftjax.train.step import init_state, make_step
from ftjax.train.teacher import taught

Tree = Any
SAMPLES = 4  # generated answers that an evaluation keeps


def train(config: ConfigDict, default: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains, or resumes, the run that `config` describes; returns what its `result.json` holds.

    Raises:
      UserError: anything wrong with the input, before the workdir is touched; a field that differs from `default` and
        that nothing in this run uses.
      RunError: a loss that is not finite; the last good state is saved.
      Preempted: SIGTERM came once steps were being done; the state is saved.
    """
    f = Fields(config)
    mesh = make_mesh(f.mesh)
    check_all_used(mesh)
    with Terminated() as terminated, jax.set_mesh(mesh):  # fused attention is spread over the mesh by hand
        return _train(f, mesh, config, default, workdir, terminated)


def _train(
    f: Fields, mesh: Mesh, config: ConfigDict, default: ConfigDict, workdir: Path, terminated: Terminated
) -> dict[str, Any]:
    began, code = time.perf_counter(), commit()

    # What is asked for. Nothing is written until all of it is found right.
    parts = build(f, f.warm_start, mesh)
    data = load_data(f, parts, "train", training=True)
    held = load_data(f, parts, f.task.eval_split, training=False)
    per_epoch = data.loader.steps_per_epoch
    steps = math.ceil(f.epochs * per_epoch) if f.steps is None else f.steps
    eval_every = per_epoch if f.eval_every is None else f.eval_every
    for name, value in dict(
        steps=steps, eval_every=eval_every, micro_batches=f.micro_batches, log_every=f.log_every
    ).items():
        require(name, value, value >= 1, "1 or more")
    for name, value in dict(early_stopping=f.early_stopping, profile_steps=f.profile_steps).items():
        require(name, value, value >= 0, "0 or more")
    evaluator = Evaluator(parts, held, mesh, f)
    lesson = taught(f, parts, data, mesh)  # evaluation is without a teacher
    parts, data = lesson.parts, lesson.data
    leaves, frozen = tree.split(parts.variables, parts.labels)
    leaves = jax.tree.map(lambda x: x.astype(jnp.float32), leaves)  # moments and small updates are lost in bf16
    tx, rate = make_optimizer(
        f.optimizer, tree.split(parts.labels, parts.labels)[0], steps, per_epoch, parts.model.cfg.rows
    )
    log_every, patience, profile_steps, wandb = f.log_every, f.early_stopping, f.profile_steps, f.wandb_project
    if wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("wandb_project is set but wandb is not installed: pip install 'ftjax[wandb]'")
    f.check_all_read(default)
    claim(workdir, config)
    if (workdir / "result.json").exists():
        return json.loads((workdir / "result.json").read_text())

    # State and data, where they are computed and where they stood.
    report_of = parts
    leaves, frozen = place(leaves, mesh), place(frozen, mesh)
    if features_are_fixed(parts):
        parts, (data, held) = trained_from_features(parts, [data, held], tree.join(leaves, frozen), mesh)
        evaluator = Evaluator(parts, held, mesh, f)
    state = place(init_state(leaves, tx), mesh)
    step = Compiled(
        make_step(parts.objective.loss, tx, f.micro_batches),
        donate_argnums=0,
        out_shardings=(shardings(state, mesh), None),
    )
    checkpoints, batches = Checkpoints(workdir), iter(data.batches)
    progress: dict[str, Any] = dict(step=0, best=None, best_step=0, since_best=0, wall=0.0, clock=(0, 0, 0.0, 0.0))
    if restored := checkpoints.restore(state):
        state, progress = restored
        batches.set_state(progress["data"])
    start = n = progress["step"]
    if is_first():
        keep_rows(workdir / "samples.jsonl", start)
    log = Log(workdir, start, steps, wandb, config_hash(config), config.to_dict())
    sited = jax.eval_shape(parts.method.expand, parts.variables["adapters"], parts.variables["params"])
    work = functools.cache(
        functools.partial(step_flops, parts.model.cfg, parts.labels, parts.variables, sited, teacher=lesson.teacher)
    )
    shapes = data.loader.shapes if parts is report_of else ((f.batch_size, 0),)  # of features: no token passes the body
    log.say(start_report(report_of, data, held, mesh, f.model.path, steps, max(work(*shape) for shape in shapes)))
    if lesson.about:
        log.say(lesson.about)
    if start:
        log.say(f"resumed  at step {start}")

    # Steps.
    key, window = jax.random.key(f.seed), progress.pop("window", [])
    rows = rows_multiple(mesh)
    clock = Clock(progress["clock"], share=len(range(rows)[rows_here(mesh, rows)]) / rows)
    mean_length = float(data.encoded.lengths.mean())
    metric = parts.metrics[0]
    stream = device_batches(batches, mesh)
    final = progress.get("metrics", {})
    terminated.listen()
    clock.start(step.seconds)
    while n < steps and not (patience and progress["since_best"] >= patience):
        if terminated(n):
            kept = {"window": [numbers(one) for one in window], "wall": progress["wall"] + time.perf_counter() - began}
            clock.stop(step.seconds)
            kept |= {"step": n, "data": batches.get_state(), "clock": clock.totals}
            checkpoints.save(n, state, progress | kept, best=False)
            checkpoints.close()
            log.close()
            raise Preempted(f"SIGTERM: the state is saved at step {n}; the same command goes on")
        if profile_steps and n == start + 2:
            jax.profiler.start_trace(str(workdir / "profile"))
        host, batch = next(stream)
        if lesson.rollout:
            host = lesson.rollout(n, state["train"], frozen, host)
            batch = place_batch(host, mesh)
        state, metrics = step(state, frozen, batch, key)
        n += 1
        has_gradient = metrics.pop("has_gradient")
        if n == 1:
            log.say(gradient_report(state["train"], np.asarray(has_gradient)))
        clock.count(host, mean_length, work(*batch_shape(batch)))
        window.append(metrics)
        if profile_steps and n == start + 2 + profile_steps:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
        evaluates = n % eval_every == 0 or n == steps
        if n % log_every and not evaluates:
            continue

        row = mean_of(window)
        row |= {"learning_rate": float(jnp.asarray(rate(n - 1))), **clock.stop(step.seconds)}
        log.write(n, {f"train/{name}": value for name, value in row.items()})
        log.progress(n, {"loss": row["loss"], "tok/s": row["tokens_per_second"]})
        window = []
        if row["finite"] < 1:  # the step itself left the state as it was: what is saved is good
            good = int(state["step"])
            checkpoints.save(good, state, progress | {"step": good, "data": batches.get_state()}, best=False)
            checkpoints.close()
            log.close()
            raise RunError(
                f"the loss or its gradient was not finite in a step up to {n}; the last good state is in"
                f" {workdir}/checkpoints; lower optimizer.learning_rate"
            )
        if evaluates:
            scored, samples = evaluator(state["train"], frozen, SAMPLES)
            final = {name: found.value for name, found in scored.items()}
            log.write(n, {f"eval/{name}": value for name, value in final.items()})
            log.say(f"step {n}: " + ", ".join(f"{name} {value:.4g}" for name, value in final.items()))
            if is_first():
                with (workdir / "samples.jsonl").open("a") as file:
                    file.writelines(json.dumps({"step": n, **sample}) + "\n" for sample in samples[:SAMPLES])
            better = improves(final[metric], progress["best"], metric)
            progress |= {"step": n, "data": batches.get_state(), "clock": clock.totals, "metrics": final}
            progress |= {"since_best": 0 if better else progress["since_best"] + 1}
            progress |= {"best": final[metric], "best_step": n} if better else {}
            progress |= {"wall": progress["wall"] + time.perf_counter() - began}
            began = time.perf_counter()
            checkpoints.save(n, state, progress, best=better)
        clock.start(step.seconds)
    checkpoints.close()
    log.close()

    result = {
        "metrics": final,
        "best": {"metric": metric, "value": progress["best"], "step": progress["best_step"]},
        "steps": n,
        "trainable_parameters": trainable(report_of),
        "total_parameters": tree.count(parts.variables["params"]),
        "examples_per_second": clock.examples / clock.seconds,
        "tokens_per_second": clock.tokens / clock.seconds,
        "model_flops_utilisation": clock.flops / clock.seconds / peak_flops(mesh.size),
        "peak_memory_bytes": peak_memory_bytes(),
        "step_memory_bytes": step.memory_bytes,
        "compiles": step.count,
        "compile_seconds": step.seconds,
        "config_hash": config_hash(config),
        "commit": code,
        "seed": f.seed,
        "wall_seconds": progress["wall"],
    }
    if is_first():
        write_json(workdir / "result.json", result)
    return result


def mean_of(window: Sequence[dict[str, jax.Array]]) -> dict[str, float]:
    """Means of the step metrics since the last row."""
    return numbers(jax.tree.map(lambda *xs: jnp.mean(jnp.stack(xs).astype(jnp.float32)), *window))


def batch_shape(batch: Mapping[str, jax.Array]) -> tuple[int, ...]:
    """(rows, tokens, labelled positions, an encoder's tokens) of a batch; no tokens where it holds features."""
    if "input_ids" not in batch:
        return len(batch["labels"]), 0
    ids = batch["input_ids"]
    scored = batch["label_positions"].shape[1] if "label_positions" in batch else 0
    source = batch["encoder_input_ids"].shape[1] if "encoder_input_ids" in batch else 0
    return math.prod(ids.shape[:-1]), ids.shape[-1], scored, source


def improves(value: float, best: float | None, metric: str) -> bool:
    """Whether a metric beats the best one so far; a NaN never does."""
    if math.isnan(value):
        return False
    return best is None or (value < best if METRICS[metric].better == "lower" else value > best)


def config_hash(config: ConfigDict) -> str:
    """Sixteen hex digits of a run's config."""
    return hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
