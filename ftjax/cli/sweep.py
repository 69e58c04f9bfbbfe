"""ftjax sweep EXPERIMENT.py --scale=nano --workdir=DIR [--config.field=value ...]: runs what is missing of a table.

What the experiment prepares (a teacher, a corpus) is made first, once, here. Trials whose programs have the same shapes
(differing in seed, learning rate, weight decay, LoRA's rank, alpha or dropout) are one process and one program
(--notogether: each its own), each other one is a process; a failed one ends no other. The same command goes on after an
interruption, and two of them on one folder share the work. The folder may be a bucket's, --workdir=gs://BUCKET/..., but
for what prepares. Overrides are for all trials: --config.model.path=DIR --config.task.data=DIR.

--on=slurm|gke|tpu_vm (a file of launch/) submits each missing trial as a job, with --launch.field=value for that
backend's fields, and watches them; its jobs go on without it. --dry_run prints what would be submitted.
"""

import importlib
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from ftjax.errors import RunError, UserError
from ftjax.files import as_path, in_bucket

T = TypeVar("T")
POSITIONAL = 1  # the experiment's file
BUCKET_PAUSE = 3.0  # seconds between two looks at jobs in a bucket, each of which is a few requests a run


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    from ftjax.cli.flags import define_fields
    from ftjax.sweep.trial import SCALES

    values.set_gnu_getopt(True)
    flags.DEFINE_enum("scale", "nano", SCALES, "shipped models, local ones, or the paper's recipe", flag_values=values)
    flags.DEFINE_string("workdir", None, "the sweep's folder", flag_values=values)
    flags.DEFINE_string("config", "configs/default.py", "the config file of all trials", flag_values=values)
    flags.DEFINE_string("on", "local", "where trials run: local, or a file of launch/", flag_values=values)
    flags.DEFINE_integer("jobs", None, "trials at a time; by default 1, of jobs all", 1, flag_values=values)
    flags.DEFINE_bool("together", True, "trials of one program in one process, here (not --on)", flag_values=values)
    flags.DEFINE_integer("retries", 1, "attempts after a failure", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("preemptions", 20, "attempts that SIGTERM may end", lower_bound=0, flag_values=values)
    flags.DEFINE_float(
        "stuck_after", 7200, "seconds without a new row after which a trial is ended; 0: never", 0, flag_values=values
    )
    flags.DEFINE_bool("dry_run", False, "say what would run, and run nothing", flag_values=values)
    flags.DEFINE_bool("strict_code", False, "results by other code are an error", flag_values=values)
    define_fields(values, argv, "config", "launch")


def main(values: flags.FlagValues, *experiment: str) -> None:
    """Runs, a line for each trial that ends, and a summary."""
    from ftjax.cli.flags import given_fields
    from ftjax.sweep.backend import Local
    from ftjax.sweep.prepare import is_prepared, prepare
    from ftjax.sweep.record import read
    from ftjax.sweep.run import Sweeper
    from ftjax.sweep.table import check_code
    from ftjax.sweep.workdir import claim, plan

    get: Any = lambda name: values[name].value  # noqa: E731
    if not experiment or not get("workdir"):
        raise UserError("give an experiment's file and --workdir=DIR, as experiments/lora_rank.py --workdir=runs/x")
    overrides = [f"--config.{name}={text}" for name, text in given_fields(values, "config").items()]
    backend = _backend(get("on"), given_fields(values, "launch"), get("preemptions"))
    planned = partial(plan, experiment[0], get("scale"), get("config"), overrides, as_path(get("workdir")))
    sweep = planned()
    records = [read(run) for run in sweep.runs]
    if get("strict_code"):
        from ftjax.train.report import commit

        check_code(records, commit())
    unprepared = any(record.state != "done" for record in records) and not is_prepared(sweep)
    if get("dry_run"):
        if unprepared:
            print(f"to be prepared first: {sweep.prepared}, of which the folders below will depend")
        for record in records:
            number = record.attempts[-1].number + 1 if record.attempts else 1
            left = record.state in ("waiting", "stale", "failed")
            rest = f": {backend.render(record.run, number)}" if left else ""
            print(f"{record.state:<8} {record.run.label}{rest}")
        return
    if isinstance(backend, Local):
        backend.check(min(get("jobs") or 1, sum(record.state != "done" for record in records)))
    claim(sweep, get("config"))
    if unprepared:
        _ended_with_children(lambda: prepare(sweep))
        sweep = planned()
        claim(sweep, get("config"))
    sweeper = Sweeper(
        backend, jobs=get("jobs") or int(not backend.lasting), together=get("together"), retries=get("retries"),
        preemptions=get("preemptions"), stuck_after=get("stuck_after"),
        pause=max(backend.pause, BUCKET_PAUSE) if in_bucket(sweep.workdir) else None,
    )  # fmt: skip
    records = _ended_with_children(lambda: sweeper(sweep.runs))
    for record in records:
        if record.state == "damaged":
            print(f"damaged      {record.run.label}: {record.problem}; mend or remove it")
    done = sum(record.state == "done" for record in records)
    print(f"{done} of {len(records)} runs are done; ftjax table --workdir={get('workdir')}")
    if done < len(records):
        raise RunError(f"{len(records) - done} of {len(records)} runs are not done: ftjax status --workdir=...")


def _ended_with_children(work: Callable[[], T]) -> T:
    """What `work` gives; a SIGTERM ends what it started, as a Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return work()
    except KeyboardInterrupt:
        raise RunError("interrupted; the same command goes on") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _backend(on: str, given: dict[str, str], preemptions: int) -> Any:
    from ftjax.sweep.backend import Local, make

    if on == "local":
        return make(Local, given, on)
    try:
        module = importlib.import_module(f"launch.{on}")  # as configs, of the folder that one runs from
        kind = module.BACKEND
    except (ModuleNotFoundError, AttributeError):
        there = sorted(path.stem for path in Path("launch").glob("*.py") if "BACKEND = " in path.read_text())
        raise UserError(f"--on={on}: no backend of ./launch; there are {', '.join(['local', *there])}") from None
    return make(kind, {"preemptions": str(preemptions)} | given, on)
