"""What is sent to each scheduler, as files (`GOLDEN=write pytest` writes them anew), and what its answers mean."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ftjax.errors import UserError
from ftjax.files import as_path
from ftjax.sweep.attempt import Attempt
from ftjax.sweep.backend import make
from ftjax.sweep.trial import Run, Trial
from launch import gke, slurm, tpu_vm

GOLDEN = Path(__file__).parent / "golden"
FOLDER = Path("/bucket/runs/0123456789ab/seed1")
FLAGS = ("--config=configs/default.py:task=vowels", "--config.method.targets=('attn/q',)", f"--workdir={FOLDER}")
RUN = Run(Trial("row", "a b", 1, "task=vowels"), FLAGS, {}, FOLDER)
SLURM = {
    "partition": "gpu", "account": "us", "time": "12:00:00", "nodes": "2", "processes": "8", "gpus": "4", "cpus": "6",
    "setup": "module load cuda",
}  # fmt: skip
GKE = {
    "image": "images/ftjax:1", "queue": "team", "accelerator": "tpu-v5-lite-podslice", "topology": "4x4",
    "bucket": "ours", "priority": "low",
}  # fmt: skip
TPU = {
    "project": "p", "zone": "us-east5-a", "accelerator": "v6e-8", "version": "v2-alpha-tpuv6e", "bucket": "ours",
    "image": "images/ftjax:1", "hosts": "2", "spot": "true", "account": "runner@p",
}  # fmt: skip
KINDS = {
    "slurm.sh": (slurm.Slurm, SLURM), "slurm-plain.sh": (slurm.Slurm, {}), "gke.yaml": (gke.Gke, GKE),
    "gke-one-host.yaml": (gke.Gke, GKE | {"topology": "2x2", "priority": "default"}), "tpu_vm.txt": (tpu_vm.TpuVm, TPU),
    "tpu_vm-one-host.txt": (tpu_vm.TpuVm, TPU | {"hosts": "1", "spot": "false", "account": "", "setup": "echo hello"}),
}  # fmt: skip


def backend(name, **more):
    kind, given = KINDS[name]
    return make(kind, given | {"preemptions": "7"} | more, name)


@pytest.mark.parametrize("name", KINDS)
def test_rendered_as_it_was(name, monkeypatch):
    monkeypatch.setattr(os, "getcwd", lambda: "/home/us/ftjax")
    monkeypatch.setattr(sys, "executable", "/home/us/venv/bin/python")
    text = backend(name).render(RUN, 2)
    if os.environ.get("GOLDEN") == "write":
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text()


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("gke")])
def test_scripts_are_shell(name):
    text = backend(name).render(RUN, 1)
    script = text.partition("start.sh:\n")[2] or text
    assert script.startswith("#!/bin/bash\n")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


JOBSET = {  # of jobset.x-k8s.io/v1alpha2; a JobTemplateSpec is Kubernetes' own
    "apiVersion": str, "kind": str,
    "metadata": {"name": str, "namespace": str, "labels": dict, "annotations": dict},
    "spec": {
        "ttlSecondsAfterFinished": int,
        "failurePolicy": {"maxRestarts": int, "rules": list},
        "replicatedJobs": list,
    },
}  # fmt: skip


def check(value, schema, where=""):
    assert value.keys() == schema.keys(), where
    for name, kind in schema.items():
        if isinstance(kind, dict):
            check(value[name], kind, f"{where}.{name}")
        else:
            assert isinstance(value[name], kind), f"{where}.{name}"


@pytest.mark.parametrize("name", ["gke.yaml", "gke-one-host.yaml"])
def test_the_jobset_is_one(name):
    """The outside by hand; the job within by the Kubernetes client's models, which give back exactly what they read."""
    client = pytest.importorskip("kubernetes.client")
    manifest = yaml.safe_load(backend(name).render(RUN, 1))
    check(manifest, JOBSET)
    [job] = manifest["spec"]["replicatedJobs"]
    assert job.keys() == {"name", "replicas", "template"}
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        assert rule["action"] in ("FailJobSet", "RestartJobSet") and rule.keys() <= {
            "name",
            "action",
            "onJobFailureReasons",
        }
    api = client.ApiClient()
    read = api._ApiClient__deserialize(job["template"], client.V1JobTemplateSpec)
    assert api.sanitize_for_serialization(read) == job["template"]
    spec = read.spec
    hosts = {"gke.yaml": 4, "gke-one-host.yaml": 1}[name]
    assert spec.parallelism == spec.completions == hosts and spec.backoff_limit == 0
    [container] = spec.template.spec.containers
    assert ("--distributed=auto" in container.command) == (hosts > 1)
    assert container.resources.limits == container.resources.requests == {"google.com/tpu": "4"}
    names = [manifest["metadata"]["name"], job["name"], "0-0-abcde"]
    assert len("-".join(names)) <= 63 and manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("gke.yaml", {"topology": "16"}, "write it as 4x4"),
        ("gke.yaml", {"topology": "3x3"}, "no whole number of hosts of 4 chips"),
        ("gke.yaml", {"mount": "/elsewhere"}, "--workdir must lie in gs://ours, or in --launch.mount=/elsewhere"),
        ("tpu_vm.txt", {"mount": "/elsewhere"}, "--workdir must lie in gs://ours, or in --launch.mount=/elsewhere"),
        ("tpu_vm.txt", {"spot": "yes"}, "write true or false"),
    ],
)
def test_refused(name, fields, message):
    with pytest.raises(UserError, match=message):
        backend(name, **fields).render(RUN, 1)


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("slurm")])
def test_a_bucket_by_its_own_name_is_the_folder_that_it_is_there(name):
    pytest.importorskip("gcsfs")
    theirs = lambda text: text.replace("/bucket/", "gs://ours/")  # noqa: E731
    run = RUN._replace(flags=tuple(map(theirs, FLAGS)), folder=as_path(theirs(str(FOLDER))))
    cluster = backend(name)
    assert cluster.render(run, 2).replace(cluster.job(run, 2), cluster.job(RUN, 2)) == cluster.render(RUN, 2)
    other = as_path("gs://other/runs/x/seed1")
    for refusing in (cluster, backend("slurm.sh")):
        with pytest.raises(UserError, match=r"--workdir must lie in gs://ours|a folder that the nodes share"):
            refusing.render(run._replace(folder=other), 1)


def test_names_are_of_trial_seed_sweep_and_attempt():
    cluster = backend("slurm.sh")
    names = {cluster.job(RUN, 1), cluster.job(RUN, 2), cluster.job(RUN._replace(folder=Path("/other/runs/x/seed1")), 1)}
    assert len(names) == 3 and cluster.job(RUN, 1).startswith("ft-0123456789ab-s1-")


@pytest.fixture
def asked(monkeypatch):
    """asked(module, answer by a word of the command) -> the commands given."""

    def patch(module, answers):
        given = []

        def call(command, told=None):
            given.append([*command, *([told] if told else [])])
            return next(answer for word, answer in answers.items() if word in command)

        monkeypatch.setattr(module, "call", call)
        return given

    return patch


def attempt(job):
    return Attempt(1, "h", "m", [], 0.0, on="x", job=job, id="12")


def test_slurms_answers(asked):
    states = {"a": "PENDING", "b": "RUNNING", "c": "COMPLETED", "d|d": "COMPLETING", "e": "PREEMPTED", "f": "REQUEUED"}
    listed = "".join(f"{name}|{state}\n" for name, state in states.items())
    given = asked(slurm, {"sbatch": "12;cluster\n", "squeue": listed, "scancel": ""})
    cluster = backend("slurm.sh")
    assert cluster.jobs() == {"a": "queued", "b": "running", "d|d": "running", "f": "queued"}
    assert cluster.send(RUN, 1) == "12" and given[-1][-1] == cluster.render(RUN, 1)
    cluster.cancel(attempt("name"))
    assert "--name=name" in given[-1] and any(word.startswith("--user=") for word in given[-1])


def test_kubernetes_answers(asked):
    def item(name, spec=None, **status):
        return {"metadata": {"name": name}, "spec": spec or {}, "status": status}

    items = [
        item("held", {"suspend": True}), item("waits", replicatedJobsStatus=[{"ready": 0}]), item("new"),
        item("runs", replicatedJobsStatus=[{"ready": 1}]), item("over", terminalState="Completed"),
    ]  # fmt: skip
    items.append({"metadata": {"name": "going", "deletionTimestamp": "x"}, "spec": {}})
    given = asked(gke, {"get": json.dumps({"items": items}), "create": "", "delete": ""})
    cluster = backend("gke.yaml")
    assert cluster.jobs() == {"held": "queued", "waits": "queued", "new": "queued", "runs": "running"}
    assert cluster.send(RUN, 1) == cluster.job(RUN, 1) and yaml.safe_load(given[-1][-1])["kind"] == "JobSet"
    cluster.cancel(attempt("name"))
    assert given[-1][:4] == ["kubectl", "delete", "jobset", "name"]


def test_queued_resources_answers(asked):
    states = {"ft-a": "WAITING_FOR_RESOURCES", "ft-b": "ACTIVE", "ft-c": "SUSPENDED", "ft-d": "FAILED"}
    states |= {"theirs": "ACTIVE", "ft-e": "DELETING"}
    listed = json.dumps([{"name": f"projects/p/x/{name}", "state": {"state": state}} for name, state in states.items()])
    given = asked(tpu_vm, {"list": listed, "create": "", "delete": ""})
    cluster = backend("tpu_vm.txt")
    assert cluster.jobs() == {"ft-a": "queued", "ft-b": "running"}
    assert [command[5] for command in given if "delete" in command] == ["ft-c", "ft-d"]
    assert cluster.code(RUN, attempt("ft-c")) == 143 and cluster.code(RUN, attempt("ft-d")) is None
    assert cluster.send(RUN, 1) == cluster.job(RUN, 1) and "--spot" in given[-1]
