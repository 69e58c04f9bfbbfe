"""CoNLL-2003: names of persons, organisations, places and others in English news (Tjong Kim Sang & De Meulder 2003)."""

from ftjax.data.tasks.tagging import tagging_task

TASK = tagging_task(
    columns={"words": "tokens|words|0", "tags": "ner_tags|tags|-1"},
    classes=("O", *(f"{prefix}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for prefix in "BI")),
    files={
        "train": ("eng.train", "train.conll", "train.txt"),
        "validation": ("eng.testa", "valid.conll", "valid.txt"),
        "test": ("eng.testb",),
    },
    metrics=("entity_f1", "accuracy"),
)
