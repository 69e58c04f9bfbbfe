"""CoLA: whether a sentence is acceptable English (Warstadt et al. 2019, in GLUE, whose files have no header)."""

from ftjax.data.tasks.table import classification_task, read_table

TASK = classification_task(
    columns={"text": "sentence", "label": "label"},
    classes=("unacceptable", "acceptable"),
    metrics=("matthews", "accuracy"),
    read=lambda path, columns, bad: read_table(path, columns, bad, header=("source", "label", "mark", "sentence")),
)
