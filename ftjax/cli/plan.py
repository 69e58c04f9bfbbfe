"""ftjax plan --config=FILE:axis=value,... [--topology=v5e:4x4]: what a run costs, and whether a machine can hold it.
ftjax plan EXPERIMENT.py --scale=nano [--topology=...] [--config.field=value ...]: the same of all trials of a table.

Nothing is trained and no weights or rows are read, only config.json and the tokenizer: batches are taken to be
batch_size rows at the full task.max_length. With --topology the sharded step is compiled ahead of time for a machine
that is not here: v4, v5e, v5p, v6e, tpu7x:CHIPS as in v5e:4x4 (pip install 'ftjax[tpu]') or h200:8 (pip install
'ftjax[cuda]'); --config.mesh.fsdp=0 spreads it over all devices. Exits 1 where something does not fit, 2 where
something cannot be planned.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from absl import flags

from ftjax.errors import RunError, UserError

POSITIONAL = 1  # an experiment's file


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags: a run's, or a table's where a file is named that is no flag's value."""
    from ftjax.cli.flags import define_config

    table = flags.FlagValues()
    _define_table(table, argv)
    if any(arg.endswith(".py") for arg in table(["ftjax plan", *argv], known_only=True)[1:]):
        _define_table(values, argv)
        return
    _define_machine(values)
    define_config(values, argv)


def _define_table(values: flags.FlagValues, argv: list[str]) -> None:
    from ftjax.cli.flags import define_fields
    from ftjax.sweep.trial import SCALES

    _define_machine(values)
    flags.DEFINE_enum("scale", "nano", SCALES, "of the experiment's trials", flag_values=values)
    flags.DEFINE_string("config", "configs/default.py", "the config file of all trials", flag_values=values)
    define_fields(values, argv, "config")


def _define_machine(values: flags.FlagValues) -> None:
    values.set_gnu_getopt(True)
    flags.DEFINE_string("topology", None, "the machine to compile for, as v5e:4x4 or h200:8", flag_values=values)


def main(values: flags.FlagValues, *experiment: str) -> None:
    """Prints a plan, or a line for each trial."""
    from ftjax.cli.flags import given_fields, read_config
    from ftjax.plan import Plan, describe, get_machine, plan_of, table
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

    overrides = [f"--config.{name}={text}" for name, text in given_fields(values, "config").items()]
    runs = make_runs(load_experiment(experiment[0], get("scale")), get("scale"), get("config"), overrides, Path())
    cells = Counter(run.trial[:2] for run in runs)  # seeds are of one program
    plans: dict[tuple[str, ...], Plan | str] = {}
    for run in runs:
        if (cell := run.trial[:2]) not in plans:
            try:
                plans[cell] = plan_of(Fields(resolve(run.flags[:-1])), machine)
            except (UserError, RunError) as error:
                plans[cell] = f"not planned: {error}"
    name = lambda cell: ", ".join(filter(None, cell))  # noqa: E731
    label = lambda cell: name(cell) + (f" x {cells[cell]}" if cells[cell] > 1 else "")  # noqa: E731
    print(table([(label(cell), plan) for cell, plan in plans.items()]))
    print(f"\n{len(runs)} runs; a batch is batch_size rows at the full task.max_length, for a plan reads no data.")
    large = [name(cell) for cell, plan in plans.items() if isinstance(plan, Plan) and not plan.fits]
    told = [f"{len(large)} of {len(plans)} do not fit into {get('topology')}: {'; '.join(large)}"] if large else []
    if wrong := [name(cell) for cell, plan in plans.items() if isinstance(plan, str)]:
        raise UserError(". ".join([f"{len(wrong)} of {len(plans)} cannot be planned: {'; '.join(wrong)}", *told]))
    if told:
        raise RunError(told[0])
