"""MRPC: whether two sentences of the news say the same (Dolan & Brockett 2005, in GLUE)."""

from functools import partial

from ftjax.data.tasks.table import classification_task, read_table

TASK = classification_task(
    columns={"text": "#1 String|sentence1", "text_pair": "#2 String|sentence2", "label": "Quality|label"},
    classes=("different", "equivalent"),
    files={
        "train": ("msr-para-train.tsv", "msr_paraphrase_train.txt"),
        "validation": ("msr-para-val.tsv",),
        "test": ("msr-para-test.tsv", "msr_paraphrase_test.txt"),
    },
    metrics=("accuracy", "f1"),
    aliases={"not_equivalent": "different"},
    read=partial(read_table, tabbed=True, bare=True),
)
