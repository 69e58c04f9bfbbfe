"""RTE: whether a premise entails a hypothesis (Dagan et al. 2006 and later, in GLUE and SuperGLUE)."""

from ftjax.data.tasks.table import classification_task

TASK = classification_task(
    columns={"text": "sentence1|premise", "text_pair": "sentence2|hypothesis", "label": "label"},
    classes=("entailment", "not_entailment"),
)
