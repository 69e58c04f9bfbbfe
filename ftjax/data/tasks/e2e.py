"""E2E NLG: a restaurant's attributes to a sentence (Novikova et al. 2017), their files or LoRA's (Hu et al. 2021)."""

from functools import partial
from typing import Any

from ftjax.data.tasks.table import Source, filled, load_table
from ftjax.data.tasks.task import Task, Text

COLUMNS = {"context": "context|mr|meaning_representation", "completion": "completion|ref|human_reference"}
FILES = {
    "train": ("lora_train.txt", "trainset.csv"),
    "validation": ("lora_valid.txt", "devset.csv"),
    "test": ("lora_test.txt", "testset_w_refs.csv"),
}


def described(row: dict[str, Any], eos: str) -> Text:
    """LoRA ends the context by eos as well; only the completion is in the loss. UserError where one is empty."""
    filled(row, "context")
    return Text(row["context"] + eos, f" {filled(row, 'completion')}{eos}")


SOURCE = Source(COLUMNS, partial(described, eos=""), FILES)
TASK = Task(
    ("lm",),
    COLUMNS,
    partial(load_table, source=SOURCE),
    described,
    ("perplexity", "bleu", "nist", "rouge_l", "cider"),
)
