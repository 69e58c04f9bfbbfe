"""The right one of several continuations, in any file whose rows hold lists."""

from functools import partial
from typing import Any

from ftjax.data.sources import place
from ftjax.data.tasks.table import Source, as_texts, load_table
from ftjax.data.tasks.task import Choices, Task
from ftjax.errors import UserError

COLUMNS = {"prompt": "prompt|ctx|question", "options": "options|endings|choices", "label": "label|answer"}


def example(row: dict[str, Any], eos: str) -> Choices:
    """The prompt as it stands, each option after a space; the label is an index from 0 or an option's own text.

    Raises:
        UserError: fewer than two options, or a label that is neither.
    """
    options, label = row["options"], row["label"].strip()
    if len(options) < 2 or len(set(options)) < len(options):
        raise UserError(f"{place(row)}: give two or more options, each once (there are {len(options)})")
    right = {options.index(label)} if label in options else set()
    if label.isascii() and label.isdecimal() and int(label) < len(options):
        right.add(int(label))
    if len(right) != 1:
        said = "may be the text of one option and the number of another" if right else "is neither"
        raise UserError(f"{place(row)}: the label is an option's text or number from 0, and '{label}' {said}")
    return Choices(row["prompt"], tuple(f" {option.strip()}" for option in options), right.pop())


SOURCE = Source(COLUMNS, partial(example, eos=""), formats=(".jsonl", ".json"), take={"options": as_texts})
TASK = Task(("choice",), COLUMNS, partial(load_table, source=SOURCE), example, ("accuracy",))
