"""Universal Dependencies: the part of speech of each word (Nivre et al. 2020); English EWT by default."""

from ftjax.data.tasks.tagging import tagging_task

CLASSES = (
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM",
    "VERB", "X",
)  # fmt: skip

TASK = tagging_task(
    columns={"words": "tokens|form|0", "tags": "upos|1"},
    classes=CLASSES,
    files={
        "train": ("en_ewt-ud-train.conllu", "pos_train.tsv"),
        "validation": ("en_ewt-ud-dev.conllu", "pos_dev.tsv"),
        "test": ("en_ewt-ud-test.conllu", "pos_test.tsv"),
    },
    metrics=("accuracy",),
)
