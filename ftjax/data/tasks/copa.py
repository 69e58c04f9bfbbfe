"""COPA: the likelier cause or effect of what a sentence says (Roemmele et al. 2011, in SuperGLUE)."""

import re
from functools import partial
from typing import Any

from ftjax.data.sources import place
from ftjax.data.tasks.table import Source, load_table
from ftjax.data.tasks.task import Choices, Task, class_of
from ftjax.errors import UserError

COLUMNS = {"premise": "premise", "first": "choice1", "second": "choice2", "question": "question", "label": "label"}
LINKS = {"cause": "because", "effect": "so"}


def example(row: dict[str, Any], eos: str) -> Choices:
    """'The man slid the razor across his chin so' and ' his stubble grew.', ' his stubble disappeared.'"""
    if row["question"] not in LINKS:
        raise UserError(f"{place(row)}: question '{row['question']}' is neither cause nor effect")
    premise, options = row["premise"].strip().rstrip("."), (row["first"].strip(), row["second"].strip())
    options = [option if re.match(r"I\b", option) else option[:1].lower() + option[1:] for option in options]
    return Choices(
        f"{premise} {LINKS[row['question']]}",
        tuple(f" {option}" for option in options),
        class_of(row["label"], ("choice1", "choice2"), place(row)),
    )


SOURCE = Source(COLUMNS, partial(example, eos=""))
TASK = Task(("choice",), COLUMNS, partial(load_table, source=SOURCE), example, ("accuracy",))
