"""QNLI: whether a sentence answers a question (Rajpurkar et al. 2016, in GLUE)."""

from ftjax.data.tasks.table import classification_task

TASK = classification_task(
    columns={"text": "question", "text_pair": "sentence", "label": "label"},
    classes=("entailment", "not_entailment"),
)
