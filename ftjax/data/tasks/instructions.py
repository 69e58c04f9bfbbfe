"""Instructions and answers, in Alpaca's prompt (Taori et al. 2023); Self-Instruct's files too (Wang et al. 2022).

The answer begins on a line of its own, as Alpaca-LoRA has it: right after the colon a tokenizer may join the two.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from ftjax.data.sources import Row
from ftjax.data.tasks.table import Source, as_text, filled, load_table
from ftjax.data.tasks.task import Task, Text
from ftjax.errors import UserError

COLUMNS = {"instruction": "instruction", "input": "input|", "output": "output|response"}
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


def expand(row: Row) -> Iterator[Row]:
    """Self-Instruct's rows have several `instances` of one instruction."""
    if "instances" not in row:
        yield row
        return
    instances = row["instances"]
    if not isinstance(instances, list) or not all(isinstance(one, dict) for one in instances):
        raise UserError(f"{row.where}: instances must be a list of objects with input and output")
    for instance in instances:
        yield Row({"instruction": row.get("instruction"), **instance}, row.where)


def prompt(instruction: str, more: str = "") -> str:
    """Alpaca's prompt of an instruction, and of an input where there is one."""
    parts = {"instruction": instruction, "input": more}
    return (WITH_INPUT if more else WITHOUT_INPUT).format(**parts)


def example(row: dict[str, Any], eos: str) -> Text:
    """The prompt, and the answer without the space around it. UserError where instruction or answer is empty."""
    filled(row, "instruction")
    return Text(prompt(row["instruction"], row.get("input", "")), filled(row, "output") + eos)


def _maybe(value: Any) -> str:
    return "" if value is None else as_text(value)


SOURCE = Source(COLUMNS, partial(example, eos=""), expand=expand, take={"input": _maybe}, ragged=True)
TASK = Task(("lm",), COLUMNS, partial(load_table, source=SOURCE), example, ("perplexity", "rougeL"))
