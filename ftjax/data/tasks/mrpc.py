"""MRPC: whether two sentences of the news say the same (Dolan & Brockett 2005, in GLUE)."""

from typing import Any

from ftjax.data.sources import Row
from ftjax.data.tasks.table import class_index, load_labelled
from ftjax.data.tasks.task import Labelled, Split, Task

COLUMNS = {"first": "#1 String|sentence1", "second": "#2 String|sentence2", "label": "Quality|label"}
CLASSES = ("different", "equivalent")
FILES = {
    "train": ("msr-para-train.tsv", "train.tsv"),
    "validation": ("msr-para-val.tsv", "dev.tsv"),
    "test": ("msr-para-test.tsv", "test.tsv"),
}


def load(cfg: Any, split: Split) -> list[Row]:
    """Rows with the roles `first`, `second` and `label`, every label checked."""
    return load_labelled(cfg, split, COLUMNS, FILES, CLASSES)


def example(row: dict[str, str], eos: str) -> Labelled:
    """The pair as it stands, and 0 or 1."""
    return Labelled(row["first"].strip(), class_index(row, "label", CLASSES), row["second"].strip())


def classes(cfg: Any) -> tuple[str, ...]:
    """different, equivalent."""
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
