"""E2E NLG: a restaurant's attributes to a sentence, as processed by LoRA (Hu et al. 2021)."""

from typing import Any

from ftjax.data.sources import Row
from ftjax.data.tasks.table import load_table
from ftjax.data.tasks.task import Split, Task, Text, no_classes

COLUMNS = {"context": "context", "completion": "completion"}
FILES = {
    "train": ("lora_train.txt", "train.txt"),
    "validation": ("lora_valid.txt", "valid.txt"),
    "test": ("lora_test.txt", "test.txt"),
}


def load(cfg: Any, split: Split) -> list[Row]:
    """Rows with the roles `context` and `completion`."""
    return load_table(cfg, split, COLUMNS, FILES)


def example(row: dict[str, str], eos: str) -> Text:
    """LoRA ends the context by eos as well; only the completion is in the loss."""
    return Text(row["context"] + eos, f" {row['completion'].strip()}{eos}")


TASK = Task(
    objective="lm",
    columns=COLUMNS,
    load=load,
    example=example,
    classes=no_classes,
    metrics=("perplexity",),
    main_metric=("perplexity", "min"),
)
