"""SICK: what one sentence about a picture says of another (Marelli et al. 2014)."""

from functools import partial

from ftjax.data.tasks.table import classification_task, read_table

CLASSES = ("entailment", "neutral", "contradiction")

TASK = classification_task(
    columns={
        "text": "sentence_A|sentence1", "text_pair": "sentence_B|sentence2", "label": "entailment_judgment|label",
    },
    classes=CLASSES,
    files={
        "train": ("SICK_train.txt",),
        "validation": ("SICK_trial.txt",),
        "test": ("SICK_test_annotated.txt", "SICK_test.txt"),
    },
    aliases={name.upper(): name for name in CLASSES},
    read=partial(read_table, tabbed=True, bare=True),
)  # fmt: skip
