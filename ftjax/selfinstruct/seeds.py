"""Tasks that people wrote, in Self-Instruct's format."""

from pathlib import Path
from typing import Any, NamedTuple

from ftjax.data.bad import BadRows
from ftjax.data.sources import place, read_rows
from ftjax.errors import UserError


class Seed(NamedTuple):
    """An instruction, its examples, (input, output) each, and whether the outputs are labels of classes."""

    id: str
    instruction: str
    instances: tuple[tuple[str, str], ...]
    is_classification: bool


def read_seeds(path: str | Path) -> list[Seed]:
    """The tasks of a file: rows of `instruction`, `instances` (input, output), `is_classification` and maybe `id`.

    Raises:
        UserError: a row that is none; no classification task among them, or none of the rest.
    """
    seeds = [_seed(row, number) for number, row in enumerate(read_rows(path, bad=BadRows()), 1)]
    if len({seed.is_classification for seed in seeds}) < 2:
        raise UserError(f"{path}: give tasks of both sorts, with is_classification true and false: each shows how")
    return seeds


def _seed(row: dict[str, Any], number: int) -> Seed:
    instances = row.get("instances")
    try:
        pairs = tuple((one.get("input") or "", one["output"]) for one in instances)  # type: ignore[union-attr]
        seed = Seed(f"{row.get('id', f'seed_{number}')}", row["instruction"], pairs, row["is_classification"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{place(row)}: no task with instruction, is_classification and instances of input and output ({error!r})"
        ) from None
    texts = [seed.instruction, *(text for pair in pairs for text in pair)]
    if not all(isinstance(text, str) for text in texts) or not seed.instruction.strip() or not pairs:
        raise UserError(f"{place(row)}: the instruction and its one or more instances must be text")
    if not isinstance(seed.is_classification, bool):
        raise UserError(f"{place(row)}: is_classification is {seed.is_classification!r}; give true or false")
    return seed
