"""ftjax eval --workdir=RUN [--split=test]: a run's best checkpoint on a split, with 95% bootstrap intervals.

Of a run, --config.task.files.test=FILE, --config.task.files.validation=FILE, --config.generate.FIELD=VALUE and the mesh
may be others than it was trained with.
ftjax eval --config=configs/default.py:model=...,task=... evaluates a model as it is, before any training; where its
head is new, a line on stderr says that nothing trained it.
Per-example outputs go to the run's folder as eval-<split>.jsonl, or to --output.

A run is evaluated on the mesh that it was trained on; with fewer devices on all of them, or as --config.mesh.fsdp=4
says.
"""

import json
import logging
import math
from functools import partial
from types import SimpleNamespace
from typing import Any

from absl import flags

from ftjax.cli.flags import define_config, overrides, read_config
from ftjax.errors import UserError
from ftjax.files import as_path, check_other, write_rows

log = logging.getLogger(__name__)
# no part of an evaluation reads the first, and only some the others; what is of training alone may stand there
CHECKED = ("warm_start", "task.shots", "task.demonstrations", "generate.num_beams", "generate.samples")
MAY_CHANGE = ("task.files.validation", "task.files.test", "generate.", "mesh.")  # of a run: what these begin


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    define_config(values, argv)
    flags.DEFINE_string("workdir", None, "a run's folder", flag_values=values)
    flags.DEFINE_string("split", None, "train, validation or test; the config's eval_split", flag_values=values)
    flags.DEFINE_string("output", None, "file for the per-example rows (JSON lines)", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Evaluates, and prints metrics and intervals as JSON."""
    from ftjax.parallel.mesh import make_mesh
    from ftjax.train.build import build
    from ftjax.train.checkpoint import read_config as read_run
    from ftjax.train.evaluate import evaluate_split
    from ftjax.train.fields import Fields
    from ftjax.train.restore import load_run

    workdir, split = values["workdir"].value, values["split"].value
    if bool(workdir) == bool(values["config"].present):
        raise UserError("give either --workdir=RUN or --config=configs/default.py:model=...,task=...")
    if split not in (None, "train", "validation", "test"):
        raise UserError(f"--split={split}: give train, validation or test")
    if values["output"].value:
        check_other(None, as_path(values["output"].value), "--output")
    changes = overrides(values) if workdir else {}
    if workdir:
        if fixed := [path for path in changes if not path.startswith(MAY_CHANGE)]:
            raise UserError(
                f"--config.{fixed[0]}: it is as in the run of --workdir; only {', '.join(MAY_CHANGE)}* may be others"
            )
        saved = read_run(as_path(workdir))
        f, parts = load_run(as_path(workdir), _mesh(saved, changes), changes)
        check = partial(f.check_all_read, saved, among=changes)
    else:
        config, default = read_config(values)
        f = Fields(config)
        parts, check = build(f, mesh=make_mesh(f.mesh)), partial(f.check_all_read, default, among=CHECKED)
    split = split or f.task.eval_split
    if other := [path for path in changes if path.startswith("task.files.") and not path.endswith(split)]:
        raise UserError(f"--config.{other[0]}: the {split} split is evaluated; give --split={other[0].split('.')[-1]}")
    if parts.fresh:
        log.warning(
            "not in the checkpoint, newly initialised: %s; it was never trained, so this is what a random head does",
            ", ".join(parts.fresh),
        )
    result, rows = evaluate_split(f, parts, split, check)
    output = values["output"].value or (f"{workdir}/eval-{split}.jsonl" if workdir else "")
    if output and rows:
        write_rows(as_path(output), rows)
    print(json.dumps(result, indent=2))


def _mesh(saved: Any, changes: dict[str, Any]) -> Any:
    """Of the sizes that are given, else the run's own; where its devices are not here, all that are."""
    import jax

    from ftjax.parallel.mesh import AXES, make_mesh

    if sizes := {axis: changes[f"mesh.{axis}"] for axis in AXES if f"mesh.{axis}" in changes}:
        return make_mesh(SimpleNamespace(**dict.fromkeys(AXES, 1) | sizes))
    needed, here = math.prod(max(saved.mesh[axis], 1) for axis in AXES), len(jax.devices())
    if needed <= here:
        return make_mesh(saved.mesh)
    log.warning("trained on %d devices, evaluated on all that are here, %d", needed, here)
    return make_mesh(SimpleNamespace(data=1, fsdp=0, tensor=1))
