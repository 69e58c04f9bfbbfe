"""CoLA: whether a sentence is acceptable English (Warstadt et al. 2019, in GLUE, whose files have no header)."""

from functools import partial

from ftjax.data.tasks.table import classification_task, read_table

TASK = classification_task(
    columns={"text": "sentence", "label": "label"},
    classes=("unacceptable", "acceptable"),
    metrics=("matthews", "accuracy"),
    read=partial(read_table, header=("source", "label", "mark", "sentence"), bare=True),
)
