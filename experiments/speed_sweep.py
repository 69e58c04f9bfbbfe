"""What `experiments.speed sweep` measures: a table as one program, and as a process a trial; and the steps alone."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RANKS, RATES = (1, 2, 4, 8), (3e-4, 1e-3, 3e-3, 1e-2)
EXPERIMENT = '''"""LoRA rank x learning rate on the shipped nano-gpt: {steps} steps, {trials} trials."""

from ftjax.sweep import Trial

FIELDS = {fields!r}


def trials(scale):
    """Rows are the ranks, columns the rates."""
    cells = [(rank, rate) for rank in {ranks} for rate in {rates}][:{trials}]
    return [
        Trial(f"r={{rank}}", f"{{rate:g}}", {seed}, "model=nano-gpt,task={task},method=lora",
              {{**FIELDS, "method.rank": rank, "optimizer.learning_rate": rate}})
        for rank, rate in cells
    ]
'''


def fields(args: argparse.Namespace) -> dict[str, Any]:
    """Of every trial."""
    sizes = {"task.train_size": 5000, "task.validation_size": 500}
    return {"steps": args.steps, "eval_every": args.steps // 2, "batch_size": args.batch_size, **sizes}


def table(folder: Path, name: str, args: argparse.Namespace) -> dict[str, float]:
    """Wall and processor seconds of `ftjax sweep` on an empty folder, start-up and compilation included.

    `name` is 'together', or 'apart' with the number of processes at a time.
    """
    experiment = folder / "table.py"
    experiment.write_text(
        EXPERIMENT.format(fields=fields(args), ranks=RANKS, rates=RATES, **{k: getattr(args, k) for k in (
            "steps", "trials", "seed", "task")})
    )  # fmt: skip
    kind, _, jobs = name.partition(" ")
    how = ["--together=true"] if kind == "together" else ["--together=false", f"--jobs={jobs}"]
    workdir = folder / name.replace(" ", "-")
    command = [sys.executable, "-m", "ftjax", "sweep", str(experiment), f"--workdir={workdir}", *how]
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - began, os.times()
    results = [json.loads(path.read_text()) for path in sorted(workdir.glob("*/seed*/result.json"))]
    best = max(result["best"]["value"] for result in results)
    spent = sum(getattr(after, name) - getattr(before, name) for name in ("children_user", "children_system"))
    return {"seconds": seconds, "processor seconds": spent, "runs": len(results), "best": best}


def steps(folder: Path, name: str, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of a step of all trials, one by one and as one program, in turn: each the best of `rounds`."""
    import jax

    from configs.default import get_config
    from ftjax.parallel.mesh import make_mesh
    from ftjax.train.course import Course
    from ftjax.train.program import make_program

    def course(rank: int, rate: float, sub: str, beside: list[Course]) -> Course:
        default = get_config(f"model=nano-gpt,task={args.task},method=lora")
        config = default.copy_and_resolve_references()
        own = {"method.rank": rank, "optimizer.learning_rate": rate, "seed": args.seed}
        config.update_from_flattened_dict(fields(args) | own)
        made = Course(config, default, folder / sub / f"{rank}-{rate:g}", mesh, beside)
        made.open(mesh, beside, str(made.workdir))
        return made

    mesh, beside = make_mesh(get_config().mesh), []
    cells = [(rank, rate) for rank in RANKS for rate in RATES][: args.trials]
    with jax.set_mesh(mesh):
        for rank, rate in cells:
            beside.append(course(rank, rate, "together", beside))
        programs: dict[str, Any] = {"apart": make_program([course(*cells[-1], "apart", [])], mesh)}
        programs["together"] = make_program(beside, mesh)
        batches = {kind: next(program.stream())[1] for kind, program in programs.items()}
        times: dict[str, list[float]] = {kind: [] for kind in programs}
        for _ in range(args.rounds + 1):  # the first compiles
            for kind, program in programs.items():
                began, done = time.perf_counter(), []
                for _ in range(len(cells) if kind == "apart" else 1):
                    done = program(batches[kind], range(len(program.courses)))
                jax.block_until_ready(done)
                times[kind].append(1e3 * (time.perf_counter() - began))
    return {kind: min(each[1:]) for kind, each in times.items()}


PARTS = {"table": table, "steps": steps}
SIDES = (("steps", "all"), ("table", "together"), ("table", "apart 1"), ("table", "apart 2"))
