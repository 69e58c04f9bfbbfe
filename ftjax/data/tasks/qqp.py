"""QQP: whether two questions of Quora ask the same (in GLUE)."""

from ftjax.data.tasks.table import classification_task

TASK = classification_task(
    columns={"text": "question1", "text_pair": "question2", "label": "is_duplicate|label"},
    classes=("different", "duplicate"),
    metrics=("accuracy", "f1"),
    aliases={"not_duplicate": "different"},
)
