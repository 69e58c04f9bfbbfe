"""The tasks, one file each."""

from ftjax.data.tasks import e2e, mrpc, reverse, sst2, text, vowels
from ftjax.data.tasks.task import Labelled, Split, Task, Text

TASKS: dict[str, Task] = {
    "reverse": reverse.TASK,
    "vowels": vowels.TASK,
    "e2e": e2e.TASK,
    "sst2": sst2.TASK,
    "mrpc": mrpc.TASK,
    "text": text.TASK,
}

__all__ = ["TASKS", "Labelled", "Split", "Task", "Text"]
