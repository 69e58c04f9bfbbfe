"""Counting the vowels of a name (CMU Advanced NLP, classification notebook, Spring 2026)."""

from typing import Any

from ftjax.data.sources import Row
from ftjax.data.tasks.table import load_names
from ftjax.data.tasks.task import Labelled, Split, Task

COLUMNS = {"name": "name"}
CLASSES = tuple(str(count) for count in range(11))  # the last one holds ten or more


def load(cfg: Any, split: Split) -> list[Row]:
    """Rows with the role `name`."""
    return load_names(cfg, split, COLUMNS)


def example(row: dict[str, str], eos: str) -> Labelled:
    """emma -> 'emma', 2."""
    name = row["name"].strip()
    return Labelled(name, min(sum(letter in "aeiou" for letter in name.lower()), len(CLASSES) - 1))


def classes(cfg: Any) -> tuple[str, ...]:
    """'0' to '10'."""
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
