"""Data sets of several sorts as instructions (Wei et al. 2022), mixed by their sizes up to a cap (Raffel et al. 2020).

`task.parts.<name>` says where a data set is, as `task` does where it is alone; one without a place is left out.
`task.held_out` names a cluster: training is without it, and evaluation on it alone.
"""

import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ftjax.data.bad import BadRows
from ftjax.data.flan import INSTRUCTIONS, drawn
from ftjax.data.sources import Row, none_left
from ftjax.data.tasks import agnews, cola, copa, e2e, mnli, mrpc, multi30k, qqp, rte, sick, squad, sst2, stsb
from ftjax.data.tasks.table import limited
from ftjax.data.tasks.task import Split, Task, Text
from ftjax.errors import UserError

PARTS: dict[str, Task] = {
    module.__name__.rpartition(".")[2]: module.TASK
    for module in (sst2, mrpc, qqp, stsb, rte, sick, mnli, cola, agnews, copa, e2e, multi30k, squad)
}


def load(cfg: Any, split: Split, bad: BadRows) -> list[Row]:
    """Rows with `prompt`, `completion` and `part`, the data set's name, shuffled.

    For training each part gives its share of `quotas`, rows again and again in new orders where it has fewer. A row's
    wording is drawn from the seed, its number and how often it has been there; for evaluation none is turned around.

    Raises:
        UserError: no part, none left by task.held_out, a cap or a size that is none, and as the parts say.
    """
    training = split == "train"
    if cfg.cap < 1 or cfg.size < 0:
        raise UserError(f"task.cap={cfg.cap} task.size={cfg.size}: give 1 or more, and 0 (all once) or more")
    found = {name: _slots(name, getattr(cfg.parts, name), split, bad) for name in parts_of(cfg, training)}
    counts = {name: len(rows) for name, rows in found.items()}
    out = []
    for name, count in (quotas(counts, cfg.cap, cfg.size) if training else counts).items():
        for index, times in _in_turn(counts[name], count, f"{cfg.seed} {name}"):
            where, slots = found[name][index]
            prompt, answer = INSTRUCTIONS[name].text(drawn(name, index, times, cfg.seed, training), slots)
            out.append(Row({"prompt": prompt, "completion": answer, "part": name}, where))
    random.Random(f"{cfg.seed}").shuffle(out)
    return limited(out, cfg, split)


def parts_of(cfg: Any, training: bool) -> list[str]:
    """The parts that are trained on, or evaluated."""
    there = []
    for name in PARTS:
        part = getattr(cfg.parts, name)
        if any([part.data, part.files.train, part.files.validation, part.files.test]):
            there.append(name)
    clusters = {INSTRUCTIONS[name].cluster for name in there}
    if not there:
        raise UserError(f"task.parts: none has data; set task.parts.<name>.data, of {', '.join(PARTS)}")
    if not cfg.held_out:
        return there
    if cfg.held_out not in clusters or len(clusters) == 1:
        raise UserError(
            f"task.held_out={cfg.held_out!r}: the parts are of the clusters {', '.join(sorted(clusters))};"
            " name one of two or more"
        )
    return [name for name in there if (INSTRUCTIONS[name].cluster == cfg.held_out) != training]


def quotas(counts: Mapping[str, int], cap: int, size: int) -> dict[str, int]:
    """How many of `size` rows each part gives: as its count, but at most `cap`, is to their sum.

    `size` 0 is that sum. What is left over of whole rows goes to the largest remainders.
    """
    rates = {name: min(count, cap) for name, count in counts.items()}
    whole = sum(rates.values())
    size = size or whole
    given = {name: size * rate // whole for name, rate in rates.items()}
    for name in sorted(rates, key=lambda name: -(size * rates[name] % whole))[: size - sum(given.values())]:
        given[name] += 1
    return given


def _in_turn(rows: int, wanted: int, seed: str) -> Iterator[tuple[int, int]]:
    """(row, how often it was there before): all in a random order, then all in another, until there are enough."""
    rng = random.Random(seed)
    for times in range(-(-wanted // rows)):
        order = rng.sample(range(rows), rows)
        yield from ((index, times) for index in order[: wanted - times * rows])


def _slots(name: str, cfg: Any, split: Split, bad: BadRows) -> list[tuple[str, dict[str, Any]]]:
    """(place, slots of the wordings) of a part's rows. What is wrong names the part's fields as a user writes them."""
    task, out, before = PARTS[name], [], len(bad.messages)
    field = re.compile(rf"\btask\.(?=({'|'.join(cfg.to_dict())})\b)")
    try:
        classes = task.classes(cfg)
        for row in task.load(cfg, split, bad):
            with bad:
                out.append((row.where, INSTRUCTIONS[name].slots(cfg, row, task.example(row, ""), classes)))
    except UserError as error:
        raise UserError(field.sub(f"task.parts.{name}.", str(error))) from None
    bad.messages[before:] = [field.sub(f"task.parts.{name}.", message) for message in bad.messages[before:]]
    if not out:
        raise none_left(f"task.parts.{name}", bad.messages[before:])
    return out


def example(row: dict[str, Any], eos: str) -> Text:
    """The answer is a line of its own."""
    return Text(row["prompt"], row["completion"] + eos, row["part"])


TASK = Task(("lm",), {}, load, example, ("perplexity", "exact_match", "rougeL"))
