"""TPU VMs: a queued resource a trial, whose hosts all run the same start script; its files are in a bucket.

The launcher reaches the same bucket, as `gs://BUCKET/...` or as a folder of the same path (Cloud Storage FUSE), and so
its leases and results. The first host hands the resource back when the trial is over, and the launcher those that died:
they would hold quota.
"""

import contextlib
import json
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from typing import ClassVar

from ftjax.sweep.attempt import Attempt
from ftjax.sweep.backend import State
from ftjax.sweep.trial import Run
from launch.cluster import PROCESS, Cluster, call, mounted

QUEUED = ("CREATING", "ACCEPTED", "PROVISIONING", "WAITING_FOR_RESOURCES")
DEAD = ("FAILED", "SUSPENDED")
SCRIPT = """\
#!/bin/bash
# On every host at each of its starts: after maintenance, which ends it by SIGTERM, the trial goes on.
{setup}rank=$(curl -s -H Metadata-Flavor:Google {metadata}/agent-worker-number)
mkdir -p {mount}
gcsfuse --implicit-dirs {bucket} {mount}
docker run --rm --privileged --network=host --stop-timeout=120 --volume={mount}:{mount} --workdir={directory} \\
    --env=RANK=$rank --env=JAX_COMPILATION_CACHE_DIR={compiled} {image} \\
    bash -c {process} process {at} \\
    {command}
if [ "$rank" = 0 ] && [ "$(cat {at}.0.code)" != 143 ]; then
    gcloud {delete}
fi
"""
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes"


@dataclass
class TpuVm(Cluster):
    """Fields without a default are needed."""

    project: str
    zone: str
    accelerator: str  # as v5litepod-16, v5p-8, v6e-4
    version: str  # of the TPU software, as v2-alpha-tpuv6e
    image: str  # with this repository and ftjax installed in its working directory
    bucket: str  # that holds the sweep's folder
    mount: str = "/bucket"  # where hosts and the launcher see it
    directory: str = "/ftjax"  # of the repository in the image
    account: str = ""  # the service account, which may use the bucket and delete the resource
    hosts: int = 1  # of a slice of this accelerator
    spot: bool = False
    setup: str = ""  # a line before all, as what installs gcsfuse
    preemptions: int = 20  # counted by the sweep: a lost spot slice is a new attempt
    name: ClassVar = "tpu_vm"
    pause: ClassVar = 30.0

    def __post_init__(self) -> None:
        self._lost: set[str] = set()  # spot slices that were taken away

    def code(self, run: Run, attempt: Attempt) -> int | None:
        """As after SIGTERM where the slice was taken away, which may come without one."""
        return 143 if attempt.job in self._lost else super().code(run, attempt)

    def script(self, run: Run, number: int) -> str:
        """What each host runs.

        Raises:
          UserError: a folder that the hosts would not see.
        """
        job, run = self.job(run, number), mounted(run, self.bucket, self.mount)
        several = ["--distributed=auto"] if self.hosts > 1 else []
        return SCRIPT.format(
            setup=f"{self.setup}\n" if self.setup else "", mount=shlex.quote(self.mount), bucket=self.bucket,
            directory=self.directory, image=self.image, metadata=METADATA, process=shlex.quote(PROCESS),
            compiled=shlex.quote(f"{run.folder.parents[1]}/compiled-{self.accelerator}"),
            at=shlex.quote(self.at(run, number)), delete=shlex.join(self._delete(job)),
            command=shlex.join(["python", "-m", "ftjax", "train", *run.flags, *several]),
        )  # fmt: skip

    def render(self, run: Run, number: int) -> str:
        """The command, and the script that it hands over."""
        return f"gcloud {shlex.join(self._create(run, number, 'start.sh'))}\n\nstart.sh:\n{self.script(run, number)}"

    def send(self, run: Run, number: int) -> str:
        """By gcloud, which refuses a name that is there."""
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
            file.write(self.script(run, number))
            file.flush()
            call(["gcloud", *self._create(run, number, file.name)])
        return self.job(run, number)

    def jobs(self) -> dict[str, State]:
        """Those that wait or run; the dead are handed back."""
        found: dict[str, State] = {}
        for item in json.loads(call(["gcloud", *self._command("list"), "--format=json"])):
            name, state = item["name"].rpartition("/")[2], item["state"]["state"]
            if not name.startswith("ft-"):
                continue
            if state in DEAD:
                self._lost |= {name} if state == "SUSPENDED" else set()
                with contextlib.suppress(subprocess.CalledProcessError):
                    call(["gcloud", *self._delete(name)])
            elif state in QUEUED or state == "ACTIVE":
                found[name] = "queued" if state in QUEUED else "running"
        return found

    def cancel(self, attempt: Attempt) -> None:
        """Its hosts are shut down, by SIGTERM first."""
        call(["gcloud", *self._delete(attempt.job)])

    def _command(self, *what: str) -> list[str]:
        return ["compute", "tpus", "queued-resources", *what, f"--project={self.project}", f"--zone={self.zone}"]

    def _delete(self, name: str) -> list[str]:
        return [*self._command("delete", name), "--force", "--async", "--quiet"]

    def _create(self, run: Run, number: int, script: str) -> list[str]:
        name = self.job(run, number)
        return [
            *self._command("create", name), f"--node-id={name}", f"--accelerator-type={self.accelerator}",
            f"--runtime-version={self.version}", f"--metadata-from-file=startup-script={script}",
            *([f"--service-account={self.account}"] if self.account else []), *(["--spot"] if self.spot else []),
        ]  # fmt: skip


BACKEND = TpuVm
