"""What a task is."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from ftjax.data.sources import Row

Split = Literal["train", "validation", "test"]


class Text(NamedTuple):
    """An example for a language model: the loss is on `completion` only."""

    prompt: str
    completion: str


class Labelled(NamedTuple):
    """An example for a classifier; `label` is a class's index or its name."""

    text: str
    label: int | str
    text_pair: str | None = None


class Task(NamedTuple):
    """One task; `cfg` is the attribute-style `task` section of a config."""

    objective: Literal["lm", "classification"]
    columns: dict[str, str]  # role -> default column, 'a|b' where files differ; cfg.columns.<role> overrides
    load: Callable[[Any, Split], list[Row]]  # rows role -> str
    example: Callable[[dict[str, str], str], Text | Labelled]  # (row, the tokenizer's eos string)
    classes: Callable[[Any], tuple[str, ...] | None]
    metrics: tuple[str, ...]
    main_metric: tuple[str, Literal["max", "min"]]
    chunked: bool = False  # encode by `encode_text_chunks`: examples are whole documents


def no_classes(cfg: Any) -> None:
    """`classes` of a language-model task."""
    return None
