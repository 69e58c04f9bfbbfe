"""Which trials of a sweep are trained as one program, by their configs. A process of several trials looks once more, at
the shapes that it finds (`ftjax.train.program.programs`)."""

import json
import re
from collections.abc import Sequence
from typing import Any

from ftjax.sweep.trial import Run
from ftjax.train.alike import DATA, PADDED

AS_DATA = tuple(f"optimizer.{name}" for name in DATA)
OF_LORA = ("method.alpha", "method.dropout", "method.rslora")
RANK = "method.rank"
ALONE = {"wandb_project": "", "profile_steps": 0, "distill.name": "none"}  # only runs with these are grouped


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs by program, each group in the order of its first one."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_program(run), []).append(run)
    return list(found.values())


def differ(runs: Sequence[Run]) -> list[str]:
    """The fields in which runs differ."""
    first = runs[0].config
    return [name for name in sorted(first) if any(run.config.get(name) != first[name] for run in runs)]


def _program(run: Run) -> str:
    config = run.config
    mesh = any(re.search(r"--config\.mesh\.|[:,]mesh=", flag) for flag in run.flags)
    if mesh or any(config.get(name, plain) != plain for name, plain in ALONE.items()):
        return str(run.folder)
    free = {"seed", *AS_DATA}  # in any method
    if config["method.name"] == "lora":
        free |= {*OF_LORA, *((RANK,) if config["optimizer.name"] in PADDED else ())}
    same: dict[str, Any] = {name: value for name, value in config.items() if name not in free}
    on = (*AS_DATA, "method.dropout")  # none and some are two programs
    return json.dumps([same, [bool(config.get(name)) for name in on if name in free]], sort_keys=True)
