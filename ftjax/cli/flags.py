"""The config flags that commands share."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from ftjax.errors import UserError


def define_config(values: flags.FlagValues, argv: list[str]) -> None:
    """`--config=FILE:axis=value,...` with overrides `--config.field=value`."""
    config_flags.DEFINE_config_file(
        "config",
        "configs/default.py",
        "config file, then axes: FILE:model=...,task=...,method=...",
        flag_values=values,
        sys_argv=["ftjax", *argv],  # it looks for overrides there before the flags are parsed
    )


def define_fields(values: flags.FlagValues, argv: list[str], *roots: str) -> None:
    """A flag for each `--config.field=value` of the command line, where it is for all trials; so of other roots."""
    of = "|".join(roots)
    for name in dict.fromkeys(found[1] for arg in argv if (found := re.match(rf"--((?:{of})\.[\w.]+)=", arg))):
        flags.DEFINE_string(name, None, "a field of all trials, or of the backend", flag_values=values)


def given_fields(values: flags.FlagValues, root: str) -> dict[str, Any]:
    """{field: text} of what was given of a root."""
    return {name.removeprefix(f"{root}."): values[name].value for name in values if name.startswith(f"{root}.")}


def read_config(values: flags.FlagValues) -> tuple[ConfigDict, ConfigDict]:
    """(config with overrides, the same without)."""
    config: Any = values["config"].value
    path, axes = config_file(values)
    return config, run_config(path)(axes)


def overrides(values: flags.FlagValues) -> dict[str, Any]:
    """{field: value} of each `--config.field=value`."""
    return values["config"].override_values  # type: ignore[attr-defined]


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
