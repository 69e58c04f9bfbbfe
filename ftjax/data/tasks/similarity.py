"""Pairs of texts that belong together, or triples of an anchor, a text like it and one that is not, in any file."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from ftjax.data.sources import place
from ftjax.data.tasks.table import Source, load_table
from ftjax.data.tasks.task import Task, Texts
from ftjax.errors import UserError

COLUMNS = {
    "first": "first|anchor|text|sentence1",
    "second": "second|positive|text_pair|sentence2",
    "third": "third|negative|",
}


def example(row: Mapping[str, Any], eos: str) -> Texts:
    """The two or three texts, stripped.

    Raises:
        UserError: an empty one.
    """
    texts = {role: row[role].strip() for role in COLUMNS if role in row}
    if empty := [role for role, text in texts.items() if not text]:
        raise UserError(f"{place(row)}: the {empty[0]} text is empty; give it words or remove the row")
    return Texts(tuple(texts.values()))


SOURCE = Source(COLUMNS, partial(example, eos=""))
TASK = Task(("similarity",), COLUMNS, partial(load_table, source=SOURCE), example, ("accuracy",))
