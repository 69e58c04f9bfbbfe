"""ftjax plan --config=FILE:axis=value,... [--topology=v5e:4x4]: what a run costs, and whether a machine can hold it.
ftjax plan EXPERIMENT.py --scale=paper [--topology=...] [--config.field=value ...]: the same of all trials of a table.

Nothing is trained and no weights or rows are read, only config.json and the tokenizer: batches are taken to be
batch_size rows at the full task.max_length. With --topology the sharded step is compiled ahead of time for a machine
that is not here: v4, v5e, v5p, v6e, tpu7x:CHIPS as in v5e:4x4 (pip install 'ftjax[tpu]') or h200:8 (pip install
'ftjax[cuda]'); --config.mesh.fsdp=0 spreads it over all devices. Exits 1 where something does not fit.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from absl import flags

from ftjax.errors import RunError, UserError

POSITIONAL = 1  # an experiment's file


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    from ftjax.cli.flags import define_config
    from ftjax.sweep.trial import SCALES

    values.set_gnu_getopt(True)
    flags.DEFINE_string("topology", None, "the machine to compile for, as v5e:4x4 or h200:8", flag_values=values)
    if not _experiment(argv):
        define_config(values, argv)
        return
    flags.DEFINE_enum("scale", "paper", SCALES, "of the experiment's trials", flag_values=values)
    flags.DEFINE_string("config", "configs/default.py", "the config file of all trials", flag_values=values)
    for name in dict.fromkeys(found[1] for arg in argv if (found := re.match(r"--(config\.[\w.]+)=", arg))):
        flags.DEFINE_string(name, None, "a field of all trials", flag_values=values)


def main(values: flags.FlagValues, *experiment: str) -> None:
    """Prints a plan, or a line for each trial."""
    from ftjax.cli.flags import read_config
    from ftjax.plan import describe, get_machine, plan_of, table
    from ftjax.train.fields import Fields

    get: Any = lambda name: values[name].value  # noqa: E731
    machine = get_machine(get("topology")) if get("topology") else None
    if not experiment:
        plan = plan_of(Fields(read_config(values)[0]), machine)
        print(describe(plan))
        if not plan.fits:
            raise RunError(f"it does not fit into {get('topology')}")
        return
    from ftjax.sweep.trial import load_experiment, make_runs, resolve

    overrides = [f"--{name}={get(name)}" for name in values if name.startswith("config.")]
    runs = make_runs(load_experiment(experiment[0], get("scale")), get("scale"), get("config"), overrides, Path())
    cells = Counter(run.trial[:2] for run in runs)  # seeds are of one program
    plans = {}
    for run in runs:
        if (cell := run.trial[:2]) not in plans:
            try:
                plans[cell] = plan_of(Fields(resolve(run.flags[:-1])), machine)
            except UserError as error:
                raise UserError(f"{', '.join(cell)}: {error}") from None
    label = lambda cell: ", ".join(cell) + (f" x {cells[cell]}" if cells[cell] > 1 else "")  # noqa: E731
    print(table([(label(cell), plan) for cell, plan in plans.items()]))
    print(f"\n{len(runs)} runs; a batch is batch_size rows at the full task.max_length, for a plan reads no data.")
    if wrong := [", ".join(cell) for cell, plan in plans.items() if not plan.fits]:
        raise RunError(f"{len(wrong)} of {len(plans)} do not fit into {get('topology')}: {'; '.join(wrong)}")


def _experiment(argv: list[str]) -> bool:
    return any(arg.endswith(".py") and not arg.startswith("-") for arg in argv)
