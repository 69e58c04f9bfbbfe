"""Attempts at a run, which are also its leases.

Attempt n is the file `attempt-<n>.json` of the run's folder, created whole and only if absent, and never removed. The
newest one, while it has no end and its processes or its job live, is the lease. Who goes on after it must create number
n + 1, which one alone can: nobody takes over by deleting, and no two sweeps run one trial.

Beside it lie `attempt-<n>.log`; and of a job, of each of its processes, `attempt-<n>.<process>.log` and, at its end,
`.<process>.code`, and a line in `attempt-<n>.starts` for each time that the job started.
"""

import json
import os
import platform
import re
import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from ftjax.files import as_json, create, make_folder, modified, read_bytes, read_text, write_json

BAD_INPUT, OUT_OF_MEMORY, PREEMPTED, INTERRUPTED = "bad input", "out of memory", "preempted", "interrupted"
FREE = (PREEMPTED, INTERRUPTED)  # ended from outside: no failure
LOST = "lost"  # its processes are gone and nobody wrote its end
STUCK = "stuck"  # made no progress, and was ended
SUBMITTING = 300.0  # seconds that a submission on another host may take


class Attempt(NamedTuple):
    """One attempt; times in seconds since 1970, processes as (pid, when it was created).

    on: the backend; job: the name of its job there, if it has names; id: what the scheduler calls it, once submitted.
    printed: its log in the sweep's folder, where its process is another run's too and prints there.
    """

    number: int
    host: str
    machine: str
    processes: list[tuple[int, float]]
    started: float
    ended: float | None = None
    code: int | None = None
    cause: str | None = None  # done, or why not
    on: str = "local"
    job: str = ""
    id: str = ""
    printed: str = ""

    def file(self, folder: Path) -> Path:
        """Where it is kept."""
        return folder / f"attempt-{self.number}.json"

    def log(self, folder: Path) -> Path:
        """What its first process printed."""
        if self.printed:
            return folder.parents[1] / self.printed
        return folder / f"attempt-{self.number}.{'0.' if self.job else ''}log"

    def logs(self, folder: Path) -> list[Path]:
        """What its processes, and a job's script, printed; the first process's first."""
        first = self.log(folder)
        rest = sorted(folder.glob(f"attempt-{self.number}.*log"))
        return [first, *(path for path in rest if path != first)]

    def starts(self, folder: Path) -> Path:
        """A line for each start of its job."""
        return folder / f"attempt-{self.number}.starts"

    @property
    def where(self) -> str:
        """For people."""
        return f"{self.on} {self.id or self.job}" if self.job else f"{self.host}:{self.processes[-1][0]}"

    @property
    def alive(self) -> bool:
        """Whether it may still run: on another host only its end tells, of a job its backend."""
        here = self.host == socket.gethostname()
        return self.ended is None and (bool(self.job) or not here or any(_lives(*p) for p in self.processes))

    @property
    def submitting(self) -> bool:
        """Whether its job may still be on its way to the scheduler."""
        if self.id:
            return False
        if self.host == socket.gethostname():
            return any(_lives(*process) for process in self.processes)
        return time.time() - self.started < SUBMITTING


def _lives(pid: int, created: float) -> bool:
    try:
        process = psutil.Process(pid)  # a number may have been given anew
        return abs(process.create_time() - created) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def claim(folder: Path, number: int, on: str = "local", job: str = "") -> Attempt | None:
    """Attempt `number` of a run, held by this process or, by name, a job; None where somebody else has it.

    Raises:
      UserError: a folder that cannot be written to.
    """
    attempt = Attempt(number, socket.gethostname(), machine(), [_me(os.getpid())], time.time(), on=on, job=job)
    make_folder(folder)
    return attempt if create(attempt.file(folder), as_json(attempt._asdict())) else None


def with_process(attempt: Attempt, pid: int) -> Attempt:
    """The attempt, held by process `pid` as well."""
    return attempt._replace(processes=[*attempt.processes, _me(pid)])


def finish(folder: Path, attempt: Attempt, code: int | None, cause: str) -> Attempt:
    """The attempt with its end, the first one that somebody writes."""
    now = _read(attempt.file(folder))
    return now if now.ended else keep(folder, attempt._replace(ended=time.time(), code=code, cause=cause))


def keep(folder: Path, attempt: Attempt) -> Attempt:
    """Writes an attempt that this process holds.

    Raises:
      UserError: a folder that cannot be written to.
    """
    write_json(attempt.file(folder), attempt._asdict())
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
    return sorted(_read(file) for file in folder.glob("attempt-*.json"))


def _read(file: Path) -> Attempt:
    try:
        attempt = Attempt(**json.loads(read_text(file)))
        return attempt._replace(processes=[(int(pid), created) for pid, created in attempt.processes])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from None


def exit_code(folder: Path, attempt: Attempt) -> int | None:
    """Of a job's processes that of the one to blame: the first that failed by itself, before one that was ended."""
    paths = sorted(folder.glob(f"attempt-{attempt.number}.*.code"), key=modified)
    codes = [int(text) for path in paths if (text := read_text(path).strip())]
    blamed = [code for code in codes if code not in (0, 143)]
    return blamed[0] if blamed else max(codes, default=None)


def causes(folder: Path, attempts: Sequence[Attempt]) -> Counter[str]:
    """How often attempts ended why; each further start of a job follows a preemption."""
    going = "done" if (folder / "result.json").exists() else "running"
    found = Counter(a.cause or (going if a.alive else LOST) for a in attempts)
    starts = [a.starts(folder) for a in attempts]
    again = sum(max(len(read_text(path).splitlines()) - 1, 0) for path in starts if path.exists())
    return found + Counter({PREEMPTED: again})


def cause_of(code: int | None, log: Sequence[str]) -> str:
    """Why an attempt ended without a result; `log` is the end of what it printed."""
    if code == 2:
        return BAD_INPUT
    if code in (143, -15):
        return PREEMPTED
    if any("RESOURCE_EXHAUSTED" in line or "oom_kill" in line for line in log):  # XLA's words, Slurm's
        return OUT_OF_MEMORY
    if code is None:
        return LOST
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def tail(log: Path, count: int = 50) -> list[str]:
    """The last lines that are not empty."""
    lines = read_bytes(log).decode("utf-8", "replace").splitlines() if log.exists() else []
    return [line for line in lines if line.strip()][-count:]


def last_words(lines: Sequence[str]) -> str:
    """The line that says why: ftjax's own error, else the last one."""
    return next((line for line in reversed(lines) if line.startswith("ftjax: ")), lines[-1] if lines else "no output")


def machine() -> str:
    """Cores and processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.exists() else None
    return f"{os.cpu_count()} x {found[1] if found else platform.processor()}"
