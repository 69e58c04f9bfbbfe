"""Slurm: a batch job a trial, whose processes find each other by jax.distributed, and which SIGTERM requeues.

The sweep's folder, the code and its environment are on a file system that the nodes share.
"""

import getpass
import os
import shlex
import sys
from dataclasses import dataclass
from typing import ClassVar

from ftjax.errors import UserError
from ftjax.files import in_bucket
from ftjax.sweep.attempt import Attempt
from ftjax.sweep.backend import State
from ftjax.sweep.trial import Run
from launch.cluster import PROCESS, Cluster, call

QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "SUSPENDED", "STOPPED", "RESIZING")

# An exit by SIGTERM is a preemption, or the time limit's warning, and goes back into the queue. So would a job that was
# cancelled: it is COMPLETING by then.
SCRIPT = """\
#!/bin/bash
{options}
{setup}export JAX_COORDINATOR_ADDRESS=$(hostname):$((10000 + SLURM_JOB_ID % 20000))
export JAX_COMPILATION_CACHE_DIR={compiled}-$SLURM_JOB_PARTITION
trap : TERM
srun --kill-on-bad-exit=1 {srun}bash -c {process} process {at} \\
    {command}
code=$?
ended() {{ cat {at}.*.code | sort -u | grep -vx 0; }}
running() {{ scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING; }}
if [ ! -e {folder}/result.json ] && [ "$(ended)" = 143 ] && [ "$(wc -l <{at}.starts)" -le {preemptions} ] && running; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""  # noqa: E501


@dataclass
class Slurm(Cluster):
    """The fields are sbatch's options of these names but for those with a comment."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""
    constraint: str = ""
    nodes: int = 1
    processes: int = 1  # of a trial, over its nodes; the trial's mesh holds the devices of all
    cpus: int = 0  # of each process
    gpus: int = 0  # of each node, of which each of several processes uses one
    memory: str = ""  # of each node
    setup: str = ""  # a line of the script before the processes start, as 'module load cuda'
    preemptions: int = 20
    name: ClassVar = "slurm"

    def __post_init__(self) -> None:
        total = self.nodes * self.gpus
        if self.gpus and self.processes != total and (self.processes > 1 or self.nodes > 1):
            raise UserError(
                f"--launch.processes={self.processes}: JAX gives each of a Slurm job's processes one GPU, and the"
                f" nodes have {total} (nodes={self.nodes}, gpus={self.gpus}); set it to {total}"
            )

    def render(self, run: Run, number: int) -> str:
        """The batch script.

        Raises:
          UserError: a bucket, which its shell cannot write to.
        """
        if in_bucket(run.folder):
            raise UserError(f"--on=slurm: {run.folder.parents[1]}: give a folder that the nodes share")
        at, several = self.at(run, number), self.processes > 1
        options = {
            "job-name": self.job(run, number), "comment": run.label, "chdir": os.getcwd(), "output": f"{at}.log",
            "open-mode": "append", "signal": "TERM@120", "partition": self.partition, "account": self.account,
            "qos": self.qos, "time": self.time, "constraint": self.constraint, "nodes": self.nodes,
            "ntasks": self.processes, "cpus-per-task": self.cpus, "gres": f"gpu:{self.gpus}" if self.gpus else "",
            "mem": self.memory,
        }  # fmt: skip
        lines = [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in options.items() if value]
        command = [sys.executable, "-m", "ftjax", "train", *run.flags, *(["--distributed=auto"] if several else [])]
        return SCRIPT.format(
            options="\n".join([*lines, "#SBATCH --requeue"]), setup=f"{self.setup}\n" if self.setup else "",
            srun=f"--cpus-per-task={self.cpus} " if self.cpus else "",  # which srun does not take from sbatch
            compiled=shlex.quote(f"{run.folder.parents[1]}/compiled"), process=shlex.quote(PROCESS),
            at=shlex.quote(at), folder=shlex.quote(str(run.folder)), command=shlex.join(command),
            preemptions=self.preemptions,
        )  # fmt: skip

    def send(self, run: Run, number: int) -> str:
        """By sbatch; the job's number."""
        return call(["sbatch", "--parsable"], self.render(run, number)).strip().partition(";")[0]

    def jobs(self) -> dict[str, State]:
        """By squeue, which needs no accounting."""
        found: dict[str, State] = {}
        for line in call(["squeue", "--noheader", "--states=all", "--me", "--format=%j|%T"]).splitlines():
            name, _, state = line.rpartition("|")
            if state in QUEUED or state in RUNNING:
                found[name] = "queued" if state in QUEUED else "running"
        return found

    def cancel(self, attempt: Attempt) -> None:
        """By its name."""
        call(["scancel", f"--user={getpass.getuser()}", f"--name={attempt.job}"])


BACKEND = Slurm
