"""What backends with a scheduler share: names, processes that leave log and exit code, one look at all jobs."""

import contextlib
import hashlib
import logging
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from ftjax.errors import UserError
from ftjax.files import BUCKETS, absolute
from ftjax.sweep.attempt import Attempt, exit_code
from ftjax.sweep.backend import Job, State
from ftjax.sweep.trial import Run

log = logging.getLogger(__name__)
FRESH = 2.0  # seconds that a look at all jobs serves

# One process of a trial: `bash -c PROCESS process AT COMMAND...`, where AT is .../attempt-<n>. Its output goes to
# AT.<rank>.log, its exit code to AT.<rank>.code; SIGTERM goes on to the command. It does nothing where somebody went on
# with the trial without this job, as when a submission came so late that it was taken for lost.
PROCESS = """\
at=$1; shift
rank=${SLURM_PROCID:-${JOB_COMPLETION_INDEX:-${RANK:-0}}}
number=${at##*-}
if [ -e "${at%-*}-$((number + 1)).json" ]; then exit 0; fi
exec >>"$at.$rank.log" 2>&1
rm -f "$at.$rank.code"
if [ "$rank" = 0 ]; then echo "$(date -u +%FT%TZ) $(hostname) ${SLURM_JOB_ID:-}" >>"$at.starts"; fi
echo "start of $(date -u +%FT%TZ) on $(hostname)"
trap 'kill -TERM $child 2>/dev/null' TERM
"$@" & child=$!
while wait $child; code=$?; [ $code -gt 128 ] && kill -0 $child 2>/dev/null; do :; done
echo $code >"$at.$rank.code"
exit $code
"""


class ClusterJob:
    """An attempt as its scheduler sees it."""

    def __init__(self, cluster: "Cluster", run: Run, attempt: Attempt):
        self._cluster, self._run, self._attempt, self._since = cluster, run, attempt, time.time()

    def state(self) -> State:
        """Queued also while the scheduler does not answer."""
        found = self._cluster.look(self._since)
        return "queued" if found is None else found.get(self._attempt.job, "gone")

    def code(self) -> int | None:
        """By what its processes left."""
        return self._cluster.code(self._run, self._attempt)

    def end(self, hard: bool = False) -> None:
        """By the scheduler, which sends SIGTERM and, in its own time, SIGKILL."""
        with contextlib.suppress(subprocess.CalledProcessError):  # it is asked again while the job is there
            self._cluster.cancel(self._attempt)


class Cluster:
    """A backend whose scheduler knows jobs by name; what is left to do is `render`, `send`, `jobs`, `cancel`."""

    name: ClassVar[str]
    lasting: ClassVar = True
    pause: ClassVar = 5.0
    _seen: tuple[float, dict[str, State] | None] = (0.0, None)

    def job(self, run: Run, number: int) -> str:
        """`ft-<trial>-s<seed>-<the sweep's folder>-<attempt>`: the same from every launcher of a sweep."""
        sweep = hashlib.sha256(str(absolute(run.folder.parents[1])).encode()).hexdigest()[:6]
        return f"ft-{run.folder.parent.name}-s{run.trial.seed}-{sweep}-{number}"

    def at(self, run: Run, number: int) -> str:
        """What the names of an attempt's files begin with."""
        return f"{run.folder}/attempt-{number}"

    def submit(self, run: Run, attempt: Attempt) -> tuple[Attempt, Job]:
        """Submits it."""
        attempt = attempt._replace(id=self.send(run, attempt.number))
        return attempt, self.find(run, attempt)

    def find(self, run: Run, attempt: Attempt) -> Job:
        """By its name."""
        return ClusterJob(self, run, attempt)

    def look(self, since: float) -> Mapping[str, State] | None:
        """All jobs by name as they were after `since`, or a moment ago; None where the scheduler did not answer."""
        if self._seen[0] < max(since, time.time() - FRESH):
            now = time.time()
            try:
                self._seen = now, self.jobs()
            except subprocess.CalledProcessError as error:
                log.warning("%s does not answer: %s", error.cmd[0], (error.stderr or "").strip())
                self._seen = now, None
        return self._seen[1]

    def code(self, run: Run, attempt: Attempt) -> int | None:
        """The exit code of a job that is gone."""
        return exit_code(run.folder, attempt)

    def render(self, run: Run, number: int) -> str:
        """What would be submitted."""
        raise NotImplementedError

    def send(self, run: Run, number: int) -> str:
        """Submits attempt `number`; returns what the scheduler calls it."""
        raise NotImplementedError

    def jobs(self) -> dict[str, State]:
        """This user's jobs that are queued or run, by name."""
        raise NotImplementedError

    def cancel(self, attempt: Attempt) -> None:
        """Ends an attempt's job."""
        raise NotImplementedError


def mounted(run: Run, bucket: str, mount: str) -> Run:
    """A run as it is where a bucket is seen as the folder `mount`, be it of `gs://BUCKET/...` or of that folder here.

    Raises:
      UserError: a folder that is not seen there.
    """
    inside = lambda text: text.replace(f"{BUCKETS}{bucket}/", f"{mount}/")  # noqa: E731
    folder = Path(inside(str(run.folder)))
    if not absolute(folder).is_relative_to(mount):
        raise UserError(f"--workdir must lie in {BUCKETS}{bucket}, or in --launch.mount={mount}, where that is seen")
    flags = (inside(flag) if flag.startswith("--workdir=") else flag for flag in run.flags)
    return run._replace(flags=tuple(flags), folder=folder)


def call(command: Sequence[str], told: str | None = None) -> str:
    """What a scheduler's command prints.

    Raises:
      UserError: it is not installed here. CalledProcessError: it failed.
    """
    try:
        return subprocess.run(command, input=told, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not found: run this where the scheduler's commands are") from None
