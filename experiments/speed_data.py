"""What `experiments.speed data` measures, each part in a process of its own."""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from experiments.speed_train import Run

SIDES = ("feeding", "training")


def config(args: argparse.Namespace) -> Any:
    """The config of a run on E2E as it comes: packed rows, full fine-tuning."""
    from configs import default

    made = default.get_config(f"model={args.model},task=e2e,method=full")
    made.task.data, made.batch_size, made.seed = str(args.data), args.batch_size, args.seed
    return made


def feeding(folder: Path, name: str, args: argparse.Namespace) -> dict[str, float]:
    """Examples per second of what happens before the step, on one core, each the best of `rounds`; and the fill."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # threads that start from here on inherit it
    from ftjax.train.build import build, load_data
    from ftjax.train.fields import Fields

    f = Fields(config(args))
    parts = build(f)
    read, data = _timed(lambda: load_data(f, parts, "train", training=True), args.rounds)
    loader, encoded = data.loader, data.encoded
    texts = parts.tokenizer.batch_decode([encoded[i].tokens for i in range(len(encoded))])

    def tokenize() -> None:
        for start in range(0, len(texts), 1000):  # as many at once as the encoder takes
            parts.tokenizer(texts[start : start + 1000], add_special_tokens=False, return_offsets_mapping=True)

    def epoch() -> None:
        batches = iter(loader)
        for _ in range(loader.steps_per_epoch):
            next(batches)

    seconds = {
        "reading and encoding": read,
        "the tokenizer alone": _timed(tokenize, args.rounds)[0],
        "planning an epoch": _timed(lambda: loader.plan(0), args.rounds)[0],
        "batches, planning included": _timed(epoch, args.rounds)[0],
    }
    return {"examples": len(encoded), "fill": loader.fill} | {k: len(encoded) / s for k, s in seconds.items()}


def _timed(act: Any, rounds: int) -> tuple[float, Any]:
    """The fewest seconds of `rounds`, and the last result."""
    seconds, result = [], None
    for _ in range(rounds):
        started = time.perf_counter()
        result = act()
        seconds.append(time.perf_counter() - started)
    return min(seconds), result


def training(folder: Path, name: str, args: argparse.Namespace) -> dict[str, float]:
    """Examples per second of the step, on all cores."""
    made = config(args)
    made.task.max_train_rows = 2 * args.batch_size * (args.warmup + args.steps)
    run = Run(made)
    run.steps(run.plan[: args.warmup])
    seconds, examples, _ = run.steps(run.plan[args.warmup : args.warmup + args.steps])
    return {"training": examples / seconds}


PARTS = {"feeding": feeding, "training": training}
