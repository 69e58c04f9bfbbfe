"""SST-2: the sentiment of a film review's sentence (Socher et al. 2013, in GLUE)."""

from ftjax.data.tasks.table import classification_task

TASK = classification_task(
    columns={"text": "sentence|content|text", "label": "label"},
    classes=("negative", "positive"),
    files={"train": ("glue_train.tsv",), "validation": ("glue_dev.tsv",), "test": ("glue_test.tsv",)},
)
