"""ftjax train --config=configs/default.py:model=...,task=...,method=... --workdir=DIR [--config.field=value ...]"""

import json
from pathlib import Path

from absl import flags

from ftjax.cli.flags import define_config, read_config, run_config
from ftjax.errors import UserError
from ftjax.files import as_path, read_text


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    define_config(values, argv)
    flags.DEFINE_string("workdir", None, "the run's folder; an interrupted run goes on", flag_values=values)
    flags.DEFINE_string(
        "together", None, "a JSON file of several runs' lists of flags, in their place", flag_values=values
    )
    flags.DEFINE_string(
        "distributed", None, "one of several processes: auto (Slurm, GKE, TPU VM), or HOST:PORT,I,N", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    """Trains, and prints the result."""
    if values["together"].value:
        return _together(as_path(values["together"].value))
    config, default = read_config(values)
    if not values["workdir"].value:
        raise UserError("give --workdir=DIR for the run's files")
    from ftjax.parallel.processes import join  # heavy imports only once the flags are right

    if values["distributed"].value:
        join(values["distributed"].value)
    from ftjax.train.loop import train

    result = train(config, default, as_path(values["workdir"].value))
    print(json.dumps(result, indent=2))


def _together(path: Path) -> None:
    """Trains the runs of a file, as a sweep writes it."""
    from ftjax.sweep.trial import resolve
    from ftjax.train.loop import train_together

    try:
        runs = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"--together={path}: cannot be read ({error})") from None
    asked = []
    for told in runs:
        *flags_, workdir = told
        file, _, axes = flags_[0].removeprefix("--config=").partition(":")
        asked.append((resolve(flags_), run_config(file)(axes), as_path(workdir.removeprefix("--workdir="))))
    print(json.dumps(train_together(asked), indent=2))
