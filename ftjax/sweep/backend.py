"""Where attempts run: what a backend does, its fields, and the backend of this machine."""

import dataclasses
import itertools
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from ftjax.errors import UserError
from ftjax.files import Growing, bucket_errors, cache, in_bucket
from ftjax.sweep.attempt import Attempt, with_process
from ftjax.sweep.trial import Run

_log = logging.getLogger(__name__)

State = Literal["queued", "running", "gone"]
T = TypeVar("T")


class Job(Protocol):
    """One attempt, wherever it runs."""

    def state(self) -> State:
        """Where it stands; what is gone never comes back."""
        ...

    def code(self) -> int | None:
        """Its exit code once it is gone; None where nobody wrote one."""
        ...

    def end(self, hard: bool = False) -> None:
        """Asks it to end, or makes it; nothing where it has."""
        ...


class Backend(Protocol):
    """Runs attempts; a dataclass whose fields are the flags `--launch.field=value`.

    lasting: whether its jobs outlive the sweep that submitted them. pause: seconds between two looks at them.
    """

    name: ClassVar[str]
    lasting: ClassVar[bool]
    pause: ClassVar[float]

    def job(self, run: Run, number: int) -> str:
        """The name that attempt `number` of a run has there; '' where there are no names."""
        ...

    def render(self, run: Run, number: int) -> str:
        """What would be submitted, for people."""
        ...

    def submit(self, run: Run, attempt: Attempt) -> tuple[Attempt, Job]:
        """Starts an attempt; returns it with what tells where it is.

        Raises:
          OSError: it cannot be started.
        """
        ...

    def find(self, run: Run, attempt: Attempt) -> Job:
        """The job of an attempt that another sweep submitted (lasting backends)."""
        ...


def make(kind: type[T], given: Mapping[str, str], on: str) -> T:
    """A backend from the texts of its fields.

    Raises:
      UserError: fields that it lacks or does not have, or a value that is no number.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if wrong := [name for name in given if name not in fields]:
        there = ", ".join(fields) or "none"
        raise UserError(f"--launch.{wrong[0]}: --on={on} has no such field; there are {there}")
    needed = [f.name for f in fields.values() if f.default is dataclasses.MISSING and f.name not in given]
    if needed:
        raise UserError(f"--on={on} needs {' '.join(f'--launch.{name}=...' for name in needed)}")
    values: dict[str, Any] = {}
    for name, text in given.items():
        read = fields[name].type
        if read is bool and text not in ("true", "false"):
            raise UserError(f"--launch.{name}={text}: write true or false")
        try:
            values[name] = text == "true" if read is bool else read(text)  # type: ignore[operator]
        except ValueError:
            raise UserError(f"--launch.{name}={text}: a whole number is needed") from None
    return kind(**values)


def environment(workdir: Path) -> dict[str, str]:
    """Of a process of this machine: what one compiled serves the next, by `compiled-<host>` in the sweep's folder or,
    of a bucket, by this user's cache."""
    compiled = cache("compiled") if in_bucket(workdir) else workdir / f"compiled-{socket.gethostname()}"
    env = {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    return {**env, **os.environ}


def gpus_here() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; without it, all of this machine."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is None:
        return [str(n) for n, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    return [name for name in map(str.strip, told.split(",")) if name not in ("", "-1")]


class Process(Protocol):
    """A child of this process, as subprocess.Popen."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code once it is over."""

    def send_signal(self, sig: int, /) -> None:
        """Nothing where it is over."""


class LocalJob:
    """A process of this machine, whose log grows in a place."""

    def __init__(self, process: Process, place: Growing):
        self._process, self._place = process, place

    def state(self) -> State:
        """Never queued."""
        running = self._process.poll() is None
        try:
            self._place.copy(now=not running)
        except (OSError, UserError, *bucket_errors()) as error:  # the run's end is of more weight than its log
            _log.warning("a log is not whole in the sweep's folder: %s", error)
        return "running" if running else "gone"

    def code(self) -> int | None:
        """Below 0 a signal."""
        return self._process.poll()

    def end(self, hard: bool = False) -> None:
        """By SIGTERM or SIGKILL."""
        self._process.send_signal(signal.SIGKILL if hard else signal.SIGTERM)


@dataclasses.dataclass
class Local:
    """Processes of this machine, each in a session of its own: a Ctrl-C reaches them through the sweep."""

    gpus: int = 0  # of each trial, which then sees no others; 0: each sees all devices
    name: ClassVar = "local"
    lasting: ClassVar = False
    pause: ClassVar = 0.5

    def __post_init__(self) -> None:
        self._groups: dict[int, Process] = {}  # of devices
        self._gpus = gpus_here()

    def check(self, jobs: int) -> None:
        """UserError where there are not GPUs enough for so many trials at a time."""
        if (needed := jobs * self.gpus) > len(self._gpus):
            raise UserError(
                f"--launch.gpus={self.gpus} with --jobs={jobs}: {needed} GPUs are needed, {len(self._gpus)} are here"
                " (CUDA_VISIBLE_DEVICES, or all); lower one of the two"
            )

    def job(self, run: Run, number: int) -> str:
        """Processes have no names."""
        return ""

    def render(self, run: Run, number: int) -> str:
        """Its command."""
        return f"ftjax train {shlex.join(run.flags)}"

    def submit(self, run: Run, attempt: Attempt) -> tuple[Attempt, Job]:
        """Starts `ftjax train`."""
        free = (n for n in itertools.count() if n not in self._groups or self._groups[n].poll() is not None)
        group = next(free) if self.gpus else 0
        place = Growing(run.folder)
        process = self._groups[group] = self.start(run, place.folder / attempt.log(run.folder).name, group)
        return with_process(attempt, process.pid), LocalJob(process, place)

    def find(self, run: Run, attempt: Attempt) -> Job:
        """There is none: processes end with the sweep."""
        raise NotImplementedError

    def start(self, run: Run, log: Path, group: int) -> Process:
        """The process of a trial on a group of devices."""
        command = [sys.executable, "-m", "ftjax", "train", *run.flags]
        env = environment(run.folder.parents[1])
        if self.gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(self._gpus[group * self.gpus : (group + 1) * self.gpus])
        apart: Any = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "start_new_session": True}
        with log.open("w") as file:
            return subprocess.Popen(command, stdout=file, env=env, **apart)
