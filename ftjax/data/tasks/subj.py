"""Subj: whether a sentence of a film review is an opinion or a fact (Pang & Lee 2004)."""

from ftjax.data.tasks.table import classification_task

TASK = classification_task(
    columns={"text": "text|sentence", "label": "label_text|label"},
    classes=("subjective", "objective"),
    numbers=False,
)
