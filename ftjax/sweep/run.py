"""Runs what is missing of a sweep: each trial a process, so that none ends another, under its lease."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ftjax.errors import UserError
from ftjax.sweep.attempt import (
    BAD_INPUT,
    FREE,
    INTERRUPTED,
    LOST,
    OUT_OF_MEMORY,
    PREEMPTED,
    Attempt,
    cause_of,
    claim,
    finish,
    held,
    last_words,
    tail,
)
from ftjax.sweep.record import Record, read
from ftjax.sweep.trial import Run

GRACE = 30.0  # seconds from the first signal to the last


class Job(Protocol):
    """A process that a backend started."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code once it is over."""

    def send_signal(self, sig: int, /) -> None:
        """Asks it to end; nothing where it has."""


Start = Callable[[Run, Path], Job]  # (run, log file)


def local(run: Run, log: Path) -> Job:
    """`ftjax train` as a process of this machine, in a session of its own: a Ctrl-C reaches it through the sweep.

    What one trial compiled serves the next of the same shapes (`compiled-<host>` in the sweep's folder).
    """
    command = [sys.executable, "-m", "ftjax", "train", *run.flags]
    compiled = run.folder.parents[1] / f"compiled-{socket.gethostname()}"
    cache = {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    with log.open("w") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**cache, **os.environ},
        )  # fmt: skip


class Sweeper:
    """Runs trials until all are done or given up.

    Args:
      start: the backend.
      jobs: processes at a time.
      retries: further attempts after a failure of any kind but bad input and lack of memory, which are final.
      preemptions: attempts that may end by SIGTERM (exit code 143) for nothing.
      say: gets a line for each attempt that ends, and for each run that somebody else holds.
    """

    def __init__(
        self,
        start: Start = local,
        *,
        jobs: int = 1,
        retries: int = 1,
        preemptions: int = 20,
        say: Callable[[str], None] = print,
        pause: float = 0.5,
    ):
        self.start, self.jobs, self.retries, self.preemptions = start, jobs, retries, preemptions
        self.say, self.pause = say, pause
        self._working: dict[Path, tuple[Run, Attempt, Job]] = {}
        self._elsewhere: set[Path] = set()
        self._began = 0.0

    def __call__(self, runs: Sequence[Run]) -> list[Record]:
        """The records of all runs once nothing is left to do; those held by another sweep are waited for.

        Raises:
          UserError: a folder that cannot be written to.
        """
        self._began = time.time()
        runs = list({run.folder: run for run in runs}.values())  # one run may be of several cells
        over: dict[Path, Record] = {}
        try:
            while len(over) < len(runs):
                for run, attempt, job in list(self._working.values()):
                    if (code := job.poll()) is not None:
                        self._end(run, attempt, code)
                for run in runs:
                    if run.folder in over or run.folder in self._working:
                        continue
                    if self._is_over(record := read(run)):
                        over[run.folder] = record
                    elif record.state == "running":
                        self._wait(record)
                    elif len(self._working) < self.jobs:
                        self._try(record)
                if len(over) < len(runs):
                    time.sleep(self.pause)
        finally:
            self._stop()
        return [over[run.folder] for run in runs]

    def _is_over(self, record: Record) -> bool:
        if record.state in ("done", "damaged"):
            return True
        if record.state == "running":
            return False
        # a new command is a new try: what ended before it does not count
        causes = Counter(a.cause or LOST for a in record.attempts if a.started >= self._began)
        failures = sum(count for cause, count in causes.items() if cause not in FREE)
        final = causes[BAD_INPUT] or causes[OUT_OF_MEMORY]
        return bool(final) or failures > self.retries or causes[PREEMPTED] > self.preemptions

    def _try(self, record: Record) -> None:
        run = record.run
        number = record.attempts[-1].number + 1 if record.attempts else 1
        if (attempt := claim(run.folder, number)) is None:
            return  # another sweep was first
        try:
            job = self.start(run, attempt.log(run.folder))
        except OSError as error:
            finish(run.folder, attempt, None, "could not start")
            raise UserError(f"cannot start {run.label} in {run.folder}: {error.strerror}") from None
        self._working[run.folder] = run, attempt, job
        self._working[run.folder] = run, held(run.folder, attempt, job.pid), job

    def _end(self, run: Run, attempt: Attempt, code: int, stopped: bool = False) -> None:
        del self._working[run.folder]
        log = attempt.log(run.folder)
        record = read(run)
        cause = "done" if record.state == "done" else INTERRUPTED if stopped else cause_of(code, tail(log))
        ended = finish(run.folder, attempt, code, cause)
        if cause == "done":
            best = record.result["best"]
            value = "none" if best["value"] is None else f"{best['value']:.4g}"
            said = f"{best['metric']} {value}, {time.time() - ended.started:.0f} s"
        else:
            said = f"attempt {attempt.number}{'' if cause in FREE else f': {last_words(log)}'} ({log})"
        self.say(f"{cause:<12} {run.label}: {said}")

    def _wait(self, record: Record) -> None:
        if record.run.folder not in self._elsewhere:
            self._elsewhere.add(record.run.folder)
            last = record.attempts[-1]
            self.say(
                f"{'elsewhere':<12} {record.run.label}: held by {last.host}, process {last.processes[-1][0]};"
                f" if that machine is gone, remove {last.file(record.run.folder)}"
            )

    def _stop(self) -> None:
        left = list(self._working.values())
        for _, _, job in left:
            job.send_signal(signal.SIGTERM)
        codes, deadline = [job.poll() for *_, job in left], time.time() + GRACE
        while None in codes:
            time.sleep(0.05)
            codes = [job.poll() for *_, job in left]
            for *_, job in left if time.time() > deadline else ():
                job.send_signal(signal.SIGKILL)
        for (run, attempt, _), code in zip(left, codes):  # only now: a full disk may keep it from being written
            self._end(run, attempt, code or 0, stopped=True)
