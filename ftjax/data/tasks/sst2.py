"""SST-2: the sentiment of a film review's sentence (Socher et al. 2013, in GLUE)."""

from typing import Any

from ftjax.data.sources import Row
from ftjax.data.tasks.table import class_index, load_labelled
from ftjax.data.tasks.task import Labelled, Split, Task

COLUMNS = {"text": "sentence|content", "label": "label"}
CLASSES = ("negative", "positive")
FILES = {
    "train": ("glue_train.tsv", "train.tsv"),
    "validation": ("glue_dev.tsv", "dev.tsv"),
    "test": ("glue_test.tsv", "test.tsv"),
}


def load(cfg: Any, split: Split) -> list[Row]:
    """Rows with the roles `text` and `label`, every label checked."""
    return load_labelled(cfg, split, COLUMNS, FILES, CLASSES)


def example(row: dict[str, str], eos: str) -> Labelled:
    """The sentence as it stands, and 0 or 1."""
    return Labelled(row["text"].strip(), class_index(row, "label", CLASSES))


def classes(cfg: Any) -> tuple[str, ...]:
    """negative, positive."""
    return CLASSES


TASK = Task(
    objective="classification",
    columns=COLUMNS,
    load=load,
    example=example,
    classes=classes,
    metrics=("accuracy",),
    main_metric=("accuracy", "max"),
)
