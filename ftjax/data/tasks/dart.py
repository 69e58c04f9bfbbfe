"""DART: facts from tables and other sets to a text (Nan et al. 2021), linearised as by LoRA (Hu et al. 2021)."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from ftjax.data.sources import Row
from ftjax.data.tasks.e2e import described
from ftjax.data.tasks.table import Source, load_table
from ftjax.data.tasks.task import Task
from ftjax.data.tasks.triples import linearised
from ftjax.errors import UserError

COLUMNS = {"context": "context", "completion": "completion"}
FILES = {
    split: (f"dart-v1.1.1-full-{name}.json",)
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test"))
}


def expand(row: Row) -> Iterator[Row]:
    """A row for each text of a set of triples, properties in small letters; one without stays as it is."""
    if "tripleset" not in row:
        yield row
        return
    triples, texts = row["tripleset"], row.get("annotations")
    if isinstance(texts, dict) and isinstance(texts.get("text"), list):  # the hub's
        texts = [{"text": text} for text in texts["text"]]
    if not isinstance(texts, list) or not all(isinstance(text, dict) for text in texts):
        raise UserError(f"{row.where}: no list of texts under annotations")
    try:
        context = linearised([_lower(triple) for triple in triples] if isinstance(triples, list) else None)
    except ValueError as error:
        raise UserError(f"{row.where}: the triples are {triples!r:.40}: {error}") from None
    for text in texts:
        yield Row({"context": context, "completion": text.get("text")}, row.where)


def _lower(triple: Any) -> Any:
    """The property of [s, p, o] in small letters."""
    if isinstance(triple, list) and len(triple) == 3 and isinstance(triple[1], str):
        return [triple[0], triple[1].lower(), triple[2]]
    return triple


SOURCE = Source(COLUMNS, partial(described, eos=""), FILES, expand=expand)
TASK = Task(("lm",), COLUMNS, partial(load_table, source=SOURCE), described, ("perplexity", "bleu_cased", "chrf"))
