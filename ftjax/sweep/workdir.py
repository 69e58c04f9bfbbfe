"""A sweep's folder: `sweep.json` says of which experiment it is, so that `table` and `status` need its path alone."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ftjax.errors import UserError
from ftjax.files import make_folder, read_text, write_json
from ftjax.sweep.trial import Experiment, Run, digest_of, load_experiment, local_paths, make_runs, prepared_in

ASKED = ("experiment", "scale", "config", "overrides")


class Sweep(NamedTuple):
    """An experiment at a scale in a folder."""

    experiment: Experiment
    scale: str
    overrides: tuple[str, ...]
    workdir: Path
    runs: list[Run]

    @property
    def prepared(self) -> Path:
        """The folder of what the experiment prepares."""
        return prepared_in(self.workdir)

    @property
    def command(self) -> str:
        """What runs it; of absolute paths the last part."""
        short = [f"{name}={Path(value).name if Path(value).is_absolute() else value}" for name, _, value in
                 (flag.partition("=") for flag in (*self.overrides, f"--workdir={self.workdir}"))]  # fmt: skip
        return f"ftjax sweep {self.experiment.path} --scale={self.scale} {' '.join(short)}"

    def strays(self) -> list[Path]:
        """Folders of runs that are no trial of the experiment as it is now."""
        there = {file.parent for file in self.workdir.glob("*/seed*/config.json") if self.prepared not in file.parents}
        return sorted(there - {run.folder for run in self.runs})


def plan(experiment: str, scale: str, config: str, overrides: Sequence[str], workdir: Path) -> Sweep:
    """A sweep as it would be; nothing is written.

    Raises:
      UserError: as `make_runs`; a folder of another sweep.
    """
    asked = dict(zip(ASKED, (experiment, scale, config, list(overrides))))
    if (workdir / "sweep.json").exists():
        theirs = _read(workdir)
        if wrong := [f"{k}={theirs[k]} there, {v} now" for k, v in asked.items() if not _same(k, theirs[k], v)]:
            raise UserError(f"{workdir} is another sweep's: {'; '.join(wrong)}; take another --workdir")
    found = load_experiment(experiment, scale)
    return Sweep(found, scale, tuple(overrides), workdir, make_runs(found, scale, config, overrides, workdir))


def claim(sweep: Sweep, config: str) -> None:
    """Writes `sweep.json`, with what local data and models were like.

    Raises:
      UserError: a folder that cannot be written to.
    """
    paths = {path for run in sweep.runs for path in local_paths(run.config).values()}
    digests = {path: found for path in sorted(paths) if (found := digest_of(path, sweep.prepared))}
    asked = (sweep.experiment.path, sweep.scale, config, list(sweep.overrides))
    make_folder(sweep.workdir)
    write_json(sweep.workdir / "sweep.json", {**dict(zip(ASKED, asked)), "digests": digests})


def open_sweep(workdir: Path) -> Sweep:
    """The sweep in a folder, its local data known as they were.

    Raises:
      UserError: no sweep there, or as `make_runs`.
    """
    asked = _read(workdir)
    experiment, scale, config, overrides = (asked[name] for name in ASKED)
    found = load_experiment(experiment, scale)
    runs = make_runs(found, scale, config, overrides, workdir, asked["digests"])
    return Sweep(found, scale, tuple(overrides), workdir, runs)


def _same(name: str, a: Any, b: Any) -> bool:
    """Whether two spellings of what is asked mean the same: the order of overrides says nothing, nor how a path is
    written."""
    if name == "overrides":
        return sorted(a) == sorted(b)
    return a == b if name == "scale" else os.path.abspath(a) == os.path.abspath(b)


def _read(workdir: Path) -> dict[str, Any]:
    path = workdir / "sweep.json"
    try:
        found = json.loads(read_text(path))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{workdir} has no sweep.json; give the --workdir of a sweep") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); remove it and give the sweep's command again") from None
    if not isinstance(found, dict) or {*ASKED, "digests"} - found.keys():
        raise UserError(f"{path}: lacks some of {', '.join((*ASKED, 'digests'))}; remove it and sweep again")
    return found
