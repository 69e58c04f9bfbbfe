"""Attempts at a run, which are also its leases.

Attempt n is the file `attempt-<n>.json` of the run's folder, created whole and only if absent, and never removed. The
newest one, while it has no end and its processes live, is the lease. Who goes on after it must create number n + 1,
which one alone can: nobody takes over by deleting, and no two sweeps run one trial.
"""

import json
import os
import platform
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from ftjax.errors import UserError
from ftjax.files import write_json

BAD_INPUT, OUT_OF_MEMORY, PREEMPTED, INTERRUPTED = "bad input", "out of memory", "preempted", "interrupted"
FREE = (PREEMPTED, INTERRUPTED)  # ended from outside: no failure
LOST = "lost"  # its processes are gone and nobody wrote its end


class Attempt(NamedTuple):
    """One attempt; times in seconds since 1970, processes as (pid, when it was created)."""

    number: int
    host: str
    machine: str
    processes: list[tuple[int, float]]
    started: float
    ended: float | None = None
    code: int | None = None
    cause: str | None = None  # done, or why not

    def file(self, folder: Path) -> Path:
        """Where it is kept."""
        return folder / f"attempt-{self.number}.json"

    def log(self, folder: Path) -> Path:
        """What its process printed."""
        return folder / f"attempt-{self.number}.log"

    @property
    def alive(self) -> bool:
        """Whether it may still run: on another host only its end tells."""
        return self.ended is None and (self.host != socket.gethostname() or any(_lives(*p) for p in self.processes))


def _lives(pid: int, created: float) -> bool:
    try:
        process = psutil.Process(pid)  # a number may have been given anew
        return abs(process.create_time() - created) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def claim(folder: Path, number: int) -> Attempt | None:
    """Attempt `number` of a run, held by this process; None where somebody else has it.

    Raises:
      UserError: a folder that cannot be written to.
    """
    attempt = Attempt(number, socket.gethostname(), machine(), [_me(os.getpid())], time.time())
    aside = folder / f".attempt-{number}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(aside, attempt._asdict())
        try:
            os.link(aside, attempt.file(folder))  # fails where it exists
        except FileExistsError:
            return None
        finally:
            aside.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    return attempt


def held(folder: Path, attempt: Attempt, pid: int) -> Attempt:
    """The attempt, held by process `pid` as well."""
    return _keep(folder, attempt._replace(processes=[*attempt.processes, _me(pid)]))


def finish(folder: Path, attempt: Attempt, code: int | None, cause: str) -> Attempt:
    """The attempt with its end."""
    return _keep(folder, attempt._replace(ended=time.time(), code=code, cause=cause))


def _keep(folder: Path, attempt: Attempt) -> Attempt:
    try:
        write_json(attempt.file(folder), attempt._asdict())
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    return attempt


def _me(pid: int) -> tuple[int, float]:
    try:
        return pid, psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:  # it is over already
        return pid, 0.0


def read_attempts(folder: Path) -> list[Attempt]:
    """All attempts at a run, in order.

    Raises:
      ValueError: a damaged file; names it.
    """
    found = []
    for file in folder.glob("attempt-*.json"):
        try:
            attempt = Attempt(**json.loads(file.read_text("utf-8")))
            found.append(attempt._replace(processes=[(int(pid), created) for pid, created in attempt.processes]))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}: cannot be read ({error})") from None
    return sorted(found)


def cause_of(code: int, log: Sequence[str]) -> str:
    """Why a process ended without a result; `log` is the end of what it printed."""
    if code == 2:
        return BAD_INPUT
    if code in (143, -15):
        return PREEMPTED
    if any("RESOURCE_EXHAUSTED" in line for line in log):
        return OUT_OF_MEMORY
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def tail(log: Path, count: int = 50) -> list[str]:
    """The last lines that are not empty."""
    lines = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
    return [line for line in lines if line.strip()][-count:]


def last_words(log: Path) -> str:
    """The line that says why: ftjax's own error, else the last one."""
    lines = tail(log)
    return next((line for line in reversed(lines) if line.startswith("ftjax: ")), lines[-1] if lines else "no output")


def machine() -> str:
    """Cores and processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.exists() else None
    return f"{os.cpu_count()} x {found[1] if found else platform.processor()}"
