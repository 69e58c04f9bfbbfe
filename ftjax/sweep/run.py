"""Runs what is missing of a sweep under leases: a process for each trial, or one for those of the same program; what
fails there is tried again apart from the others."""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ftjax.errors import UserError
from ftjax.files import write_json
from ftjax.sweep.attempt import (
    BAD_INPUT,
    FREE,
    INTERRUPTED,
    OUT_OF_MEMORY,
    PREEMPTED,
    STUCK,
    Attempt,
    cause_of,
    causes,
    claim,
    finish,
    keep,
    last_words,
    tail,
)
from ftjax.sweep.backend import Backend, Job
from ftjax.sweep.group import differ, grouped
from ftjax.sweep.record import Record, idle, read
from ftjax.sweep.trial import Run

GRACE = 30.0  # seconds from the first signal to the last
TOGETHER = " (together)"  # of the cause of a failure beside others: it does not count


class Sweeper:
    """Runs trials until all are done or given up.

    Args:
      jobs: processes or jobs at a time; 0: all of them.
      together: whether trials of the same program share a process (a backend whose jobs end with the sweep).
      retries: further attempts after a failure of any kind but bad input and lack of memory, which are final.
      preemptions: attempts that may end by SIGTERM (exit code 143) for nothing.
      stuck_after: seconds without a step after which a running attempt is ended, a failure; 0: never.
      say: gets a line for each attempt that ends, and for each run that somebody else holds.
      pause: seconds between two looks at the jobs; None: the backend's.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        jobs: int = 1,
        together: bool = False,
        retries: int = 1,
        preemptions: int = 20,
        stuck_after: float = 0,
        say: Callable[[str], None] = print,
        pause: float | None = None,
    ):
        self.backend, self.jobs, self.retries, self.preemptions = backend, jobs, retries, preemptions
        self.stuck_after, self.say, self.pause = stuck_after, say, backend.pause if pause is None else pause
        self._together = together and not backend.lasting
        self._working: dict[Path, tuple[Run, Attempt, Job]] = {}
        self._group: dict[Path, list[Run]] = {}  # whom a run may share a process with
        self._shared: set[Path] = set()  # of those at work, whose process is another's too
        self._stuck: dict[Path, float] = {}  # when it was asked to end
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
        self._group = {run.folder: group for group in self._groups(runs) for run in group}
        try:
            while len(over) < len(runs):
                for run, attempt, job in list(self._working.values()):
                    if (state := job.state()) == "gone":
                        self._end(run, attempt, job)
                    elif state == "running" and self.stuck_after:
                        self._watch(run, attempt, job)
                for run in runs:
                    if run.folder in over or run.folder in self._working:
                        continue
                    if self._is_over(record := read(run)):
                        over[run.folder] = record
                    elif record.state in ("running", "queued"):
                        self._follow(record)
                    elif not self.jobs or len({id(job) for *_, job in self._working.values()}) < self.jobs:
                        self._try([record, *self._others(run)])
                if len(over) < len(runs):
                    time.sleep(self.pause)
        finally:
            self._stop()
        return [over[run.folder] for run in runs]

    def _is_over(self, record: Record) -> bool:
        if record.state in ("done", "damaged"):
            return True
        if record.state in ("running", "queued"):
            return False
        # a new command is a new try: what ended before it does not count
        mine = [a for a in record.attempts if (a.ended or a.started) >= self._began]
        count = causes(record.run.folder, mine)
        failures = sum(n for cause, n in count.items() if cause not in FREE and not cause.endswith(TOGETHER))
        final = count[BAD_INPUT] or count[OUT_OF_MEMORY]
        return bool(final) or failures > self.retries or count[PREEMPTED] > self.preemptions

    def _groups(self, runs: list[Run]) -> list[list[Run]]:
        """The runs by process, and a line for each group."""
        if not self._together:
            return [[run] for run in runs]
        left = [run for run in runs if self._is_free(read(run))]
        groups = grouped(left)
        for group in groups:
            if len(group) > 1:
                by = ", ".join(differ(group))
                self.say(f"{'together':<12} {len(group)} runs as one program, by {by}: {group[0].label}, ...")
        there = {run.folder for run in left}
        return [*groups, *([run] for run in runs if run.folder not in there)]

    def _others(self, run: Run) -> list[Record]:
        """Those of its group that are to be started too, and have not failed together."""
        others = [other for other in self._group[run.folder] if other is not run and len(self._group[other.folder]) > 1]
        records = [read(other) for other in others if other.folder not in self._working]
        return [record for record in records if self._is_free(record)]

    def _is_free(self, record: Record) -> bool:
        return record.state not in ("running", "queued") and not self._is_over(record)

    def _try(self, records: Sequence[Record]) -> None:
        """One attempt at some runs, by one process."""
        held: list[tuple[Run, Attempt]] = []
        for record in records:
            run, number = record.run, record.attempts[-1].number + 1 if record.attempts else 1
            attempt = claim(run.folder, number, self.backend.name, self.backend.job(run, number))
            if attempt is not None:  # else another sweep was first
                held.append((run, attempt))
        if not held:
            return
        run, attempt = held[0]
        asked = run
        if len(held) > 1:
            path = run.folder / f"together-{attempt.number}.json"
            write_json(path, [list(one.flags) for one, _ in held])
            asked = run._replace(flags=(f"--together={path}",))
        try:
            started, job = self.backend.submit(asked, attempt)
        except (OSError, subprocess.CalledProcessError, UserError) as error:
            for one, mine in held:
                finish(one.folder, mine, None, "could not start")
            if isinstance(error, UserError):
                raise
            why = error.strerror if isinstance(error, OSError) else f"{error.cmd[0]}: {(error.stderr or '').strip()}"
            raise UserError(f"cannot start {run.label} in {run.folder}: {why}") from None
        self._working[run.folder] = run, started, job
        keep(run.folder, started)
        self._shared |= {one.folder for one, _ in held} if len(held) > 1 else set()
        for one, mine in held[1:]:
            log = "/".join(started.log(run.folder).parts[-3:])
            mine = mine._replace(processes=started.processes, printed=log)
            self._working[one.folder] = one, mine, job
            keep(one.folder, mine)

    def _beside(self, job: Job) -> list[tuple[Run, Attempt]]:
        return [(run, attempt) for run, attempt, its in self._working.values() if its is job]

    def _watch(self, run: Run, attempt: Attempt, job: Job) -> None:
        asked = self._stuck.get(run.folder)
        if asked is None and min(idle(one.folder, its) for one, its in self._beside(job)) > self.stuck_after:
            self._stuck[run.folder] = time.time()
            job.end()
        elif asked is not None and time.time() - asked > GRACE:
            job.end(hard=True)

    def _end(self, run: Run, attempt: Attempt, job: Job, stopped: bool = False) -> None:
        code = job.code()
        del self._working[run.folder]
        log = attempt.log(run.folder)
        lines = [line for each in reversed(attempt.logs(run.folder)) for line in tail(each)]
        record = read(run)
        cause = "done" if record.state == "done" else INTERRUPTED if stopped else cause_of(code, lines)
        if self._stuck.pop(run.folder, None) and cause != "done":
            cause = STUCK
        if run.folder in self._shared and cause not in (*FREE, "done"):
            cause += TOGETHER
            self._group[run.folder] = [run]
        self._shared.discard(run.folder)
        ended = finish(run.folder, attempt, code, cause)
        cause = ended.cause or cause  # another sweep that watched the job may have been first
        if cause == "done":
            best = record.result["best"]
            value = "none" if best["value"] is None else f"{best['value']:.4g}"
            said = f"{best['metric']} {value}, {time.time() - ended.started:.0f} s"
        else:
            said = f"attempt {attempt.number}{'' if cause in FREE else f': {last_words(lines)}'} ({log})"
        self.say(f"{cause:<12} {run.label}: {said}")

    def _follow(self, record: Record) -> None:
        """A job of this backend is watched, whoever submitted it; what another one has is waited for."""
        run, last = record.run, record.attempts[-1]
        if not last.job or last.on != self.backend.name:
            self._wait(record)
            return
        job = self.backend.find(run, last)
        if last.submitting and job.state() == "gone":
            return  # not there yet
        self._working[run.folder] = run, last, job

    def _wait(self, record: Record) -> None:
        if record.run.folder not in self._elsewhere:
            self._elsewhere.add(record.run.folder)
            last = record.attempts[-1]
            self.say(
                f"{'elsewhere':<12} {record.run.label}: held by {last.where}; if that is gone, remove"
                f" {last.file(record.run.folder)}"
            )

    def _stop(self) -> None:
        left = list(self._working.values())
        if self.backend.lasting:
            for run, attempt, _ in left:
                self.say(f"{'goes on':<12} {run.label}: {attempt.where}")
            return
        for _, _, job in left:
            job.end()
        deadline = time.time() + GRACE
        while any(job.state() != "gone" for *_, job in left):
            time.sleep(0.05)
            for *_, job in left if time.time() > deadline else ():
                job.end(hard=True)
        for run, attempt, job in left:  # only now: a full disk may keep it from being written
            self._end(run, attempt, job, stopped=True)
