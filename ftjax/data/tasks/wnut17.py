"""WNUT 2017: rare and emerging names in noisy text (Derczynski et al. 2017)."""

from ftjax.data.tasks.tagging import tagging_task

KINDS = ("corporation", "creative-work", "group", "location", "person", "product")

TASK = tagging_task(
    columns={"words": "tokens|words|0", "tags": "ner_tags|tags|-1"},
    classes=("O", *(f"{prefix}-{kind}" for kind in KINDS for prefix in "BI")),
    files={
        "train": ("wnut17train.conll",),
        "validation": ("emerging.dev.conll",),
        "test": ("emerging.test.annotated", "emerging.test.conll"),
    },
    metrics=("entity_f1", "accuracy"),
)
