"""Counting the vowels of a name (CMU Advanced NLP, classification notebook, Spring 2026)."""

from typing import Any

from ftjax.data.tasks.names import COLUMNS, load_names
from ftjax.data.tasks.task import Labelled, Task

CLASSES = tuple(str(count) for count in range(11))  # the last one holds ten or more


def example(row: dict[str, Any], eos: str) -> Labelled:
    """emma -> 'emma', 2."""
    name = row["name"].strip()
    return Labelled(name, min(sum(letter in "aeiou" for letter in name.lower()), len(CLASSES) - 1))


TASK = Task(
    ("classification", "words", "choice"), COLUMNS, load_names, example, ("accuracy",), classes=lambda cfg: CLASSES
)
