"""What an experiment makes once, before its trials: teachers, corpora, starts, under `prepared` of the sweep's folder.

It runs as a process of its own and as an attempt (see `attempt`), which is its lock: of two sweeps one prepares and the
other waits. `done.json`, which that process writes last, says of what experiment, scale and fields it is.
"""

import ast
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ftjax.errors import RunError, UserError
from ftjax.files import in_bucket, read_text, write_json
from ftjax.sweep.attempt import (
    BAD_INPUT,
    INTERRUPTED,
    Attempt,
    cause_of,
    claim,
    finish,
    keep,
    last_words,
    read_attempts,
    tail,
    with_process,
)
from ftjax.sweep.backend import environment
from ftjax.sweep.trial import PREPARED, digest, load_experiment, plain, resolve
from ftjax.sweep.workdir import Sweep

DONE, CONFIG = "done.json", "configs/default.py"
GRACE = 30.0  # seconds from the first signal to the last


def told(sweep: Sweep) -> dict[str, Any]:
    """{field: its value} of the fields that the sweep sets for all trials."""
    names = [flag.removeprefix("--config.").partition("=")[0] for flag in sweep.overrides]
    config = plain(resolve(sweep.runs[0].flags[:-1]))
    return {name: config[name] for name in names if name in config}  # the mesh is none


def what(path: str, scale: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a preparation is, as `done.json` says it."""
    return {"experiment": _code(path), "scale": scale, "fields": dict(fields)}


def _code(path: str) -> str:
    """A hash of the code that prepares: of the experiment's statements those of `prepare`, and what it reaches by name.
    Trials may be added later, and its docstring say what was found."""
    module = ast.parse(Path(path).read_bytes())
    statements = [(_changed(statement), statement) for statement in module.body]
    reached: set[str] = set()
    todo = {"prepare"}
    while todo:
        reached |= todo
        read = [statement for names, statement in statements if names & todo]
        todo = {x.id for statement in read for x in ast.walk(statement) if isinstance(x, ast.Name)} - reached
    dumped = [ast.dump(statement) for names, statement in statements if names & reached]
    return hashlib.sha256("\n".join(dumped).encode()).hexdigest()


def _changed(statement: ast.stmt) -> set[str]:
    """The names whose meaning a module's statement may change: of one that is no definition all that it names."""
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {(alias.asname or alias.name).partition(".")[0] for alias in names}
        case ast.Assign(targets=targets):
            parts: list[ast.AST] = [*targets]
        case ast.AnnAssign(target=target) | ast.AugAssign(target=target):
            parts = [target]
        case _:
            parts = [statement]
    return {x.id for part in parts for x in ast.walk(part) if isinstance(x, ast.Name)}


def is_prepared(sweep: Sweep) -> bool:
    """Whether nothing is left to prepare, as where no trial reads what is prepared.

    Raises:
      UserError: what is there is of another experiment, scale or fields, or cannot be read; a bucket.
    """
    if not any(PREPARED in str(x) for run in sweep.runs for x in run.config.values()):
        return True
    if in_bucket(sweep.workdir):
        raise UserError(f"{sweep.experiment.path} prepares files, which {sweep.workdir} cannot hold; take a folder")
    if other := [run for run in sweep.runs if not run.flags[0].startswith(f"--config={CONFIG}:")]:
        raise UserError(f"{other[0].flags[0]}: what {sweep.experiment.path} prepares is by {CONFIG}; give no other")
    path, theirs = sweep.prepared / DONE, _read_done(sweep)
    if theirs is None:
        return False
    ours = what(sweep.experiment.path, sweep.scale, told(sweep))
    if wrong := [name for name in ours if theirs.get(name) != ours[name]]:
        shown = [f"{name} {theirs.get(name)}" if name != "experiment" else f"{name}'s code" for name in wrong]
        raise UserError(
            f"{sweep.prepared} was prepared with another {', '.join(shown)}; take another --workdir, or remove {path}"
            " to prepare again"
        )
    return True


def prepared_by(sweep: Sweep) -> str | None:
    """The commit of what is prepared; None where nothing is."""
    done = _read_done(sweep)
    return None if done is None else str(done.get("commit"))


def _read_done(sweep: Sweep) -> dict[str, Any] | None:
    """What a finished preparation said of itself; None where there is none."""
    path = sweep.prepared / DONE
    try:
        found = json.loads(read_text(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it to prepare again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: cannot be read (no JSON object); remove it to prepare again")
    return found


def prepare(sweep: Sweep, say: Callable[[str], None] = print, pause: float = 0.5) -> None:
    """Prepares what is not prepared, or waits until another sweep has.

    Raises:
      UserError: as `is_prepared`, or the experiment's; a folder that cannot be written to.
      RunError: the preparation failed.
    """
    waits = False
    while not is_prepared(sweep):
        try:
            attempts = read_attempts(sweep.prepared)
        except ValueError as error:
            raise UserError(str(error)) from None
        if attempts and attempts[-1].alive:
            if not waits:
                say(f"{'elsewhere':<12} preparation: held by {attempts[-1].where}; if that is gone, remove"
                    f" {attempts[-1].file(sweep.prepared)}")  # fmt: skip
            waits = True
            time.sleep(pause)
        elif attempt := claim(sweep.prepared, attempts[-1].number + 1 if attempts else 1):
            if is_prepared(sweep):  # by whom it was waited for, in between
                finish(sweep.prepared, attempt, 0, "done")
            else:
                _attempt(sweep, attempt, say)
    digest.cache_clear()  # what was not there now is


def _attempt(sweep: Sweep, attempt: Attempt, say: Callable[[str], None]) -> None:
    folder, log, code, ended = sweep.prepared, attempt.log(sweep.prepared), None, INTERRUPTED
    say(f"{'preparing':<12} {folder} ({log})")
    given = [sweep.experiment.path, sweep.scale, str(folder), json.dumps(told(sweep))]
    apart: Any = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "start_new_session": True}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "ftjax.sweep.prepare", *given],
            stdout=file,
            env=environment(sweep.workdir),
            **apart,
        )
    try:
        keep(folder, with_process(attempt, process.pid))
        code = process.wait()
        ended = "done" if (folder / DONE).exists() else cause_of(code, tail(log))
    finally:
        _stop(process)
        finish(folder, attempt, code, ended)
    if ended != "done":
        words = f"{sweep.experiment.path}: prepare: {last_words(tail(log)).removeprefix('ftjax: ')} ({log})"
        raise (UserError if ended == BAD_INPUT else RunError)(words)
    say(f"{'prepared':<12} {folder}: {time.time() - attempt.started:.0f} s")


def _stop(process: subprocess.Popen[Any]) -> None:
    """Ends it and what it started, if it has not ended."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sent)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                continue


def main(path: str, scale: str, folder: str, fields: str) -> int:
    """The preparing process; its exit code is as that of `ftjax`."""
    from ftjax.train.report import commit

    experiment, given = load_experiment(path, scale), json.loads(fields)
    known = what(path, scale, given)  # before a long time, in which the file may change
    assert experiment.prepare
    try:
        experiment.prepare(scale, Path(folder), given)
        write_json(Path(folder) / DONE, {**known, "commit": commit()})
    except (UserError, RunError) as error:
        print(f"ftjax: {error}", flush=True)
        return error.code if isinstance(error, RunError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
