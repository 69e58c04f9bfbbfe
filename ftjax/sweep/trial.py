"""An experiment's trials, and where the run of each lives: a folder named by a hash of what it computes."""

import functools
import hashlib
import importlib.util
import json
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

import ftjax
from ftjax.errors import UserError, of_config
from ftjax.files import finite
from ftjax.lean import show_torch
from ftjax.train.fields import leaves

ASSETS = Path(ftjax.__file__).parent / "assets"
SHIPPED = tuple(folder.name for folder in ASSETS.iterdir() if folder.is_dir())
SCALES = ("nano", "small", "paper")
PREPARED = "{prepared}"  # in a trial's field: the folder of what the experiment prepares
PIECE = 1 << 20  # bytes of a file's head and of its tail that its digest reads

Cells = Mapping[tuple[str, str], float]  # (row, column) -> value


class Trial(NamedTuple):
    """One run of a table's cell: the axes of its config, and fields that differ from their defaults.

    A field's text may hold `{prepared}`, the folder of what the experiment's `prepare` makes. `metrics` are the trial's
    own where the experiment's (see there) do not fit it: one notebook of two, say.
    """

    row: str
    column: str
    seed: int
    axes: str  # model=...,task=...,method=...
    fields: Mapping[str, Any] = {}  # 'method.rank' -> 4
    metrics: Mapping[str, str] = {}


class Experiment(NamedTuple):
    """What an experiment's file says of a scale; all but the docstring and `trials` have defaults.

    metrics: {title: name} of the final metrics that make a column each; where empty, the main one at its best
      evaluation. The file has this, or a tuple of names, or a function of the scale that gives one of them.
    percent: values are shown times 100.
    paper: its numbers, or a function of the scale that gives them; as the curves by name, and as they are to be shown.
    prepare: (scale, folder, fields that the sweep sets) makes what trials read under `{prepared}`, once; called again
      after an interruption, it should go on.
    """

    path: str
    doc: str
    trials: Callable[[str], list[Trial]]
    metrics: Mapping[str, str]
    percent: bool
    paper: Mapping[str, Cells]  # what was measured, by whom -> cells
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]  # 'eval/accuracy' -> {name: points}
    render: Callable[..., str]  # records -> Markdown below the table
    prepare: Callable[[str, Path, Mapping[str, Any]], None] | None = None


class Run(NamedTuple):
    """A trial with its command line (the flags of `ftjax train`), resolved config (path -> value; `{prepared}` stays,
    for where the sweep is does not matter) and folder."""

    trial: Trial
    flags: tuple[str, ...]
    config: dict[str, Any]
    folder: Path

    @property
    def label(self) -> str:
        """For people."""
        return ", ".join(filter(None, (self.trial.row, self.trial.column, f"seed {self.trial.seed}")))


def prepared_in(workdir: Path) -> Path:
    """Where a sweep's experiment prepares."""
    return workdir / "prepared"


def load_experiment(path: str, scale: str) -> Experiment:
    """The experiment in a Python file, at a scale.

    Raises:
      UserError: no such file, one that cannot be imported, or without trials(scale).
    """
    if not path.endswith(".py") or not Path(path).is_file():
        raise UserError(f"{path}: no such experiment; give a Python file, as experiments/lora_rank.py")
    module = _import(path)
    get: Callable[[str, Any], Any] = lambda name, default: getattr(module, name, default)  # noqa: E731
    if not callable(get("trials", None)):
        raise UserError(f"{path}: has no function trials(scale) that gives a list of Trial")

    def at_scale(name: str, default: Any) -> Any:
        given = get(name, default)
        return given(scale) if callable(given) else given

    metrics = at_scale("metrics", ())
    return Experiment(
        path, (module.__doc__ or path).strip(), module.trials,
        metrics if isinstance(metrics, Mapping) else {name: name for name in metrics}, get("percent", False),
        at_scale("paper", {}), get("curves", {}), get("render", lambda records: ""), get("prepare", None),
    )  # fmt: skip


def _import(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"ftjax_experiment_{Path(path).stem}", path)
    assert spec and spec.loader  # of a .py file there are
    module = importlib.util.module_from_spec(spec)
    show_torch()
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # whatever somebody's file raises
        raise UserError(f"{path}: {_where(error, path)}") from error
    return module


def _where(error: Exception, path: str) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{f'line {lines[-1]}: ' if lines else ''}{type(error).__name__}: {error}"


def make_runs(
    experiment: Experiment,
    scale: str,
    config_file: str,
    overrides: Sequence[str],
    workdir: Path,
    digests: Mapping[str, str] | None = None,
) -> list[Run]:
    """The runs of an experiment at a scale.

    Args:
      overrides: flags `--config.field=value` for all trials, after their own.
      digests: {path: digest} of local data and models as they were; None looks at the files.

    Raises:
      UserError: a scale that the experiment does not have, a config that cannot be made, two trials of one cell and
        seed, a paper's number for no cell.
    """
    try:
        trials = experiment.trials(scale)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{experiment.path}: trials({scale!r}): {_where(error, experiment.path)}") from error
    if not trials:
        raise UserError(f"{experiment.path}: has no trials at scale {scale}")
    runs, seen, prepared = [], set(), prepared_in(workdir)
    for trial in trials:
        key = (trial.row, trial.column, trial.seed)
        if key in seen:
            raise UserError(f"{experiment.path}: two trials are row {key[0]!r}, column {key[1]!r}, seed {key[2]}")
        seen.add(key)
        fields = {**trial.fields, "seed": trial.seed}
        told = [f"--config={config_file}:{trial.axes}", *(f"--config.{k}={v}" for k, v in fields.items()), *overrides]
        if experiment.prepare is None and any(PREPARED in flag for flag in told):
            raise UserError(f"{experiment.path}: {key[0]}, {key[1]}: {PREPARED}, but the file has no prepare()")
        try:
            config = plain(resolve(told))
        except UserError as error:
            raise UserError(f"{experiment.path}: {key[0]}, {key[1]}: {error}") from None
        told = [flag.replace(PREPARED, str(prepared)) for flag in told]
        folder = workdir / identity(config, digests, prepared) / f"seed{config['seed']}"
        if any(run.folder == folder and run.trial[:2] == key[:2] for run in runs):
            raise UserError(f"{experiment.path}: {key[0]}, {key[1]}: two seeds are one run; give no --config.seed")
        runs.append(Run(trial, (*told, f"--workdir={folder}"), config, folder))
    _check_paper(experiment, {(t.row, name) for t in trials for name in columns(t, experiment.metrics)})
    return runs


def columns(trial: Trial, metrics: Mapping[str, str]) -> list[str]:
    """The columns that a trial has a value for: its own or, where it or the experiment names several metrics, one
    each."""
    metrics = trial.metrics or metrics
    return [f"{trial.column} {title}".strip() for title in metrics] if len(metrics) > 1 else [trial.column]


def _check_paper(experiment: Experiment, cells: set[tuple[str, str]]) -> None:
    for series, numbers in experiment.paper.items():
        if wrong := [key for key in numbers if key not in cells]:
            raise UserError(f"{experiment.path}: paper[{series!r}] has {wrong[0]}, which is no (row, column) here")


def resolve(told: Sequence[str]) -> ConfigDict:
    """The config that `ftjax train` makes of these flags.

    Raises:
      UserError: what the config file or a field finds wrong, on one line.
    """
    values = flags.FlagValues()
    argv = ["ftjax", *told]
    try:
        config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
        values(argv)
        config: Any = values["config"].value
        return config
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(" ".join(of_config(error).split())) from None


def plain(config: ConfigDict) -> dict[str, Any]:
    """{path: value} as it is after a way through JSON, without the mesh: a run may go on on another one."""
    return json.loads(json.dumps(finite({k: v for k, v in leaves(config) if not k.startswith("mesh.")})))


def identity(
    config: Mapping[str, Any], digests: Mapping[str, str] | None = None, prepared: Path = Path(PREPARED)
) -> str:
    """Twelve hex digits of a resolved config, the seed apart, and of the content of the local data and models that
    it names (of a hub id, its name alone), some of which may be under `prepared`."""
    content = {field: found for field, path in local_paths(config).items()
               if (found := digest_of(path, prepared) if digests is None else digests.get(path))}  # fmt: skip
    known = {"config": {k: v for k, v in config.items() if k != "seed"}, "content": content}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]


def local_paths(config: Mapping[str, Any]) -> dict[str, str]:
    """{field: its text} of the fields that may name a file, a directory or a shipped model: all but axis names."""
    texts = {k: v for k, v in config.items() if isinstance(v, str) and v}
    return {field: text for field, text in texts.items() if not field.endswith(".name")}


def digest_of(path: str, prepared: Path) -> str:
    """The `digest` of what a config's text names."""
    return digest(path.replace(PREPARED, str(prepared)))


@functools.cache
def digest(path: str) -> str:
    """A hash of what lies at a local path, '' where nothing does: of each file name, size, first and last MiB, so that
    a copy is the same and a date says nothing. A finished run is known by its result."""
    root = ASSETS / path if path in SHIPPED and not os.path.exists(path) else Path(path)
    if not os.path.exists(root):  # which a text too long for a path does not either
        return ""
    if (root / "result.json").is_file():
        root = root / "result.json"
    found = hashlib.sha256()
    try:
        for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if file.is_file() and not file.name.startswith("."):
                found.update(f"{file.relative_to(root)} {file.stat().st_size}\n".encode())
                with file.open("rb") as stream:
                    found.update(stream.read(PIECE))
                    stream.seek(max(PIECE, file.stat().st_size - PIECE))
                    found.update(stream.read())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}), so its content cannot be told") from None
    return found.hexdigest()[:16]
