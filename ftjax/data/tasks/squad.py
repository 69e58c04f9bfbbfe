"""SQuAD, version 1.1 and 2.0, where questions may have no answer (Rajpurkar et al. 2016, 2018)."""

from functools import partial

from ftjax.data.tasks import qa
from ftjax.data.tasks.task import Task

FILES = {"train": ("train-v1.1.json", "train-v2.0.json"), "validation": ("dev-v1.1.json", "dev-v2.0.json")}

TASK = Task(
    qa.TASK.objectives,
    qa.COLUMNS | {"id": "id"},
    partial(qa.load, source=qa.SOURCE._replace(columns=qa.COLUMNS | {"id": "id"}, files=FILES)),
    qa.example,
    qa.TASK.metrics,
)
