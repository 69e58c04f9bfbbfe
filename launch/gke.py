"""GKE: a JobSet a trial on a TPU slice, admitted by Kueue; its files are in a bucket that pods see as a folder.

The launcher reaches the same bucket, as `gs://BUCKET/...` or as a folder of the same path (Cloud Storage FUSE), and so
its leases and results. A preempted slice, SIGTERM or a lost node, starts again by itself; any other failure ends the
JobSet, and the sweep decides.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

from ftjax.errors import UserError
from ftjax.sweep.attempt import Attempt
from ftjax.sweep.backend import State
from ftjax.sweep.trial import Run
from launch.cluster import PROCESS, Cluster, call, mounted

MANAGED = "app.kubernetes.io/managed-by"
KEEP = 86400  # seconds that a finished JobSet can be looked at


class Dumper(yaml.SafeDumper):
    """Scripts as blocks."""


def _text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Dumper.add_representer(str, _text)


@dataclass
class Gke(Cluster):
    """Fields without a default are needed."""

    image: str  # with this repository and ftjax installed in its working directory
    queue: str  # Kueue's LocalQueue
    accelerator: str  # as tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice, tpu7x
    topology: str  # of the slice, as 4x4 or 2x2x4
    bucket: str  # that holds the sweep's folder
    mount: str = "/bucket"  # where pods and the launcher see it
    chips: int = 4  # of a host
    directory: str = "/ftjax"  # of the repository in the image
    namespace: str = "default"
    account: str = "default"  # the Kubernetes service account, which may use the bucket
    priority: str = ""  # Kueue's workload priority class
    preemptions: int = 20
    name: ClassVar = "gke"
    pause: ClassVar = 20.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d+(x\d+){1,2}", self.topology):
            raise UserError(f"--launch.topology={self.topology}: write it as 4x4 or 2x2x4")
        self.hosts, rest = divmod(math.prod(map(int, self.topology.split("x"))), self.chips)
        if rest or not self.hosts:
            raise UserError(f"--launch.topology={self.topology}: no whole number of hosts of {self.chips} chips")

    def render(self, run: Run, number: int) -> str:
        """The JobSet as YAML."""
        return yaml.dump(self.manifest(run, number), Dumper=Dumper, sort_keys=False, width=1000)

    def manifest(self, run: Run, number: int) -> dict[str, Any]:
        """The JobSet.

        Raises:
          UserError: a folder that the pods would not see.
        """
        job, run = self.job(run, number), mounted(run, self.bucket, self.mount)
        several = ["--distributed=auto"] if self.hosts > 1 else []
        command = ["python", "-m", "ftjax", "train", *run.flags, *several]
        compiled = f"{run.folder.parents[1]}/compiled-{self.accelerator}-{self.topology}"
        labels = {MANAGED: "ftjax", "kueue.x-k8s.io/queue-name": self.queue}
        labels |= {"kueue.x-k8s.io/priority-class": self.priority} if self.priority else {}
        tpu = {"google.com/tpu": str(self.chips)}
        container = {
            "name": "train",
            "image": self.image,
            "workingDir": self.directory,
            "command": ["bash", "-c", PROCESS, "process", self.at(run, number), *command],
            "env": [{"name": "JAX_COMPILATION_CACHE_DIR", "value": compiled}],
            "resources": {"requests": tpu, "limits": dict(tpu)},
            "volumeMounts": [{"name": "bucket", "mountPath": self.mount}],
        }
        pod = {
            "restartPolicy": "Never",
            "serviceAccountName": self.account,
            "terminationGracePeriodSeconds": 120,
            "nodeSelector": {
                "cloud.google.com/gke-tpu-accelerator": self.accelerator,
                "cloud.google.com/gke-tpu-topology": self.topology,
            },
            "containers": [container],
            "volumes": [{
                "name": "bucket",
                "csi": {
                    "driver": "gcsfuse.csi.storage.gke.io",
                    "volumeAttributes": {"bucketName": self.bucket, "mountOptions": "implicit-dirs"},
                },
            }],
        }  # fmt: skip
        pods = {
            "parallelism": self.hosts,
            "completions": self.hosts,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "podFailurePolicy": {"rules": [
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": [143]}},
            ]},
            "template": {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, "spec": pod},
        }  # fmt: skip
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {
                "name": job, "namespace": self.namespace, "labels": labels,
                "annotations": {
                    "ftjax/trial": run.label,
                    "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool",
                },
            },
            "spec": {
                "ttlSecondsAfterFinished": KEEP,
                "failurePolicy": {
                    "maxRestarts": self.preemptions,
                    "rules": [  # the first that matches; a failure of a pod's policy is a preemption
                        {"name": "preempted", "action": "RestartJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                        {"name": "failed", "action": "FailJobSet"},
                    ],
                },
                "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": pods}}],
            },
        }  # fmt: skip

    def send(self, run: Run, number: int) -> str:
        """By kubectl create, which refuses a name that is there."""
        call(["kubectl", "create", "--filename=-"], self.render(run, number))
        return self.job(run, number)

    def jobs(self) -> dict[str, State]:
        """Those that are not finished; queued while Kueue holds them or no pod is ready."""
        listed = call(["kubectl", "get", "jobsets", f"--namespace={self.namespace}", f"--selector={MANAGED}=ftjax",
                       "--output=json"])  # fmt: skip
        found: dict[str, State] = {}
        for item in json.loads(listed)["items"]:
            status = item.get("status", {})
            if status.get("terminalState") or item["metadata"].get("deletionTimestamp"):
                continue
            ready = any(job.get("ready") for job in status.get("replicatedJobsStatus", []))
            found[item["metadata"]["name"]] = "queued" if item["spec"].get("suspend") or not ready else "running"
        return found

    def cancel(self, attempt: Attempt) -> None:
        """Its pods get SIGTERM, and two minutes."""
        command = ["kubectl", "delete", "jobset", attempt.job, f"--namespace={self.namespace}"]
        call([*command, "--wait=false", "--ignore-not-found"])


BACKEND = Gke
