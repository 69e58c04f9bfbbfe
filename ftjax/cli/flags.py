"""The config flag that commands share."""

import runpy
from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from ftjax.errors import UserError


def define_config(values: flags.FlagValues, argv: list[str], default: str | None = "configs/default.py") -> None:
    """`--config=FILE:axis=value,...` with overrides `--config.field=value`."""
    config_flags.DEFINE_config_file(
        "config",
        default,
        "config file, then axes: FILE:model=...,task=...,method=...",
        flag_values=values,
        sys_argv=["ftjax", *argv],  # it looks for overrides there before the flags are parsed
    )


def read_config(values: flags.FlagValues) -> tuple[ConfigDict, ConfigDict]:
    """(config with overrides, the same without)."""
    config = values["config"].value
    if config is None:
        raise UserError("give --config=configs/default.py:model=...,task=...,method=...")
    path, axes = config_file(values)
    return config, run_config(path)(axes)


def config_file(values: flags.FlagValues) -> tuple[str, str]:
    """(file, axes) of the config flag."""
    path, _, axes = values["config"].config_filename.partition(":")  # type: ignore[attr-defined]
    return path, axes


def run_config(path: str) -> Callable[[str], ConfigDict]:
    """The `get_config` of a config file; UserError where there is no such file."""
    if not Path(path).is_file():
        raise UserError(
            f"--config={path}: no such file; run from the repository's root, or give its configs/default.py"
        )
    return runpy.run_path(path)["get_config"]
