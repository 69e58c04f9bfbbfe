"""The rounds of Self-Instruct: new instructions, their sort, their examples, and what of it all is kept."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from ftjax.errors import RunError, UserError
from ftjax.selfinstruct.filters import ALIKE, Pool, good_instances, wrong_with
from ftjax.selfinstruct.prompts import (
    Step,
    ask_for_instances,
    ask_for_instructions,
    ask_for_sort,
    fitted,
    read_instances,
    read_instructions,
    read_sort,
)  # fmt: skip
from ftjax.selfinstruct.seeds import Seed

HUMAN, MODEL = 6, 2  # tasks that are shown for new ones, of people and of the model
SORTED = (12, 19)  # that are shown for the sort: classification, others
SOLVED = 8  # that are shown for examples

Record = dict[str, Any]


class Written(NamedTuple):
    """What the model wrote, up to a stop string or its end; `ended` is false where it was cut off."""

    text: str
    ended: bool


Write = Callable[[Sequence[str], Step, int], list[Written]]  # (prompts, step, number of the first prompt of the step)
Fits = Callable[[str, Step], bool]


class New(NamedTuple):
    """A new instruction on its way."""

    instruction: str
    shown: tuple[str, ...]  # ids of tasks
    nearest: str  # the id of the likest task that there was
    rouge_l: float


def self_instruct(
    seeds: Sequence[Seed],
    write: Write,
    add: Callable[[Record], None],
    *,
    num: int,
    seed: int = 0,
    prompts: int = 8,
    patience: int = 10,
    fits: Fits = lambda prompt, step: True,
    there: Sequence[Record] = (),
) -> Counter[str]:
    """Has tasks written until there are `num`; `add` gets a record for each example.

    A record has `instruction`, `input`, `output`, `id`, `is_classification` and `provenance`: its round, which of how
    many examples of its task it is, the tasks that were shown, and the likest task with its ROUGE-L. All depends on
    the seeds, `seed`, `prompts` and `write` alone, so that a broken run goes on as it would have: its last round is
    written again, and what of it is `there` is not added twice.

    Args:
        write: the model, which samples for `instructions` (Wang et al.: temperature 0.7, top_p 0.5), else is greedy.
        prompts: prompts for instructions a round.
        patience: rounds without a new task before it gives up.
        fits: whether a prompt has room; fewer tasks are shown where it has not.
        there: the records that were added before.

    Returns:
        How many were 'kept', and what was left out: empty, length, sign, unseen, similar, 'cut off' at a list's end,
        unsorted, 'without example', prompts with 'no room'; and how many prompts were 'shortened' by what they show.

    Raises:
        UserError: records that are not of this run; no room for any prompt of instructions.
        RunError: `patience` rounds without a new task.
    """
    state = _State(seeds, write, fits, seed, prompts)
    first = there[-1]["provenance"]["round"] if there else 0
    before = [record for record in there if record["provenance"]["round"] < first]
    for record in before:
        state.keep(record)
    old, idle = list(there[len(before) :]), 0
    whole = bool(old) and old[-1]["provenance"]["example"] == old[-1]["provenance"]["of"]
    if whole and len(state.made) + len({record["id"] for record in old}) >= num:
        for record in old:
            state.keep(record)
        return state.counts
    for number in count(first):
        if len(state.made) >= num:
            return state.counts
        if idle == patience:
            raise RunError(
                f"{patience} rounds without a new task, {len(state.made)} of {num} are there (left out: "
                f"{told(state.counts) or 'nothing, for nothing was written'}); give a better model or other seeds"
            )
        records = state.round(number, num - len(state.made))
        if old[: len(records)] != records[: len(old)] or len(old) > len(records):
            raise UserError(
                f"round {number} is not written as the first time (a record was {old[0]['instruction']!r:.60}): "
                "the machine or the software is another; begin a new file"
            )
        for record in records[len(old) :]:
            add(record)
        for record in records:
            state.keep(record)
        old, idle = [], 0 if records else idle + 1
    raise AssertionError("count() has no end")


def told(counts: Mapping[str, int]) -> str:
    """What was left out, as text."""
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()) if n and name != "kept")


class _State:
    """The tasks that there are, and the model."""

    def __init__(self, seeds: Sequence[Seed], write: Write, fits: Fits, seed: int, prompts: int):
        self.seeds, self.write, self.fits, self.seed, self.prompts = seeds, write, fits, seed, prompts
        self.made: list[Seed] = []
        self.pool = Pool(one.instruction for one in seeds)
        self.counts: Counter[str] = Counter()
        rng = random.Random(f"{seed} shown")
        by_sort = {sort: [one for one in seeds if one.is_classification == sort] for sort in (True, False)}
        self.sorted = [one for sort, n in zip((True, False), SORTED) for one in _some(rng, by_sort[sort], n)]
        rng.shuffle(self.sorted)
        self.solved = {sort: _some(rng, by_sort[sort], SOLVED) for sort in (True, False)}

    def keep(self, record: Record) -> None:
        """The task of a record is there from now on."""
        if not self.made or self.made[-1].id != record["id"]:
            self.made.append(Seed(record["id"], record["instruction"], (), record["is_classification"]))
            self.pool.add(record["instruction"])
            self.counts["kept"] += 1

    def round(self, number: int, most: int) -> list[Record]:
        """The records of one round, of `most` tasks at most. Changes nothing but the counts."""
        new = self._instructions(number)
        sorts = self._ask("sort", number, [(partial(ask_for_sort, one.instruction), self.sorted) for one in new])
        found: list[tuple[New, bool]] = []
        for one, answer in zip(new, sorts):
            sort = answer and read_sort(answer[0].text)
            self.counts["unsorted"] += answer is not None and sort is None
            found += [] if sort is None else [(one, sort)]
        asked = [(partial(ask_for_instances, one.instruction, sort), self.solved[sort]) for one, sort in found]
        records, tasks = [], 0
        for (one, sort), answer in zip(found, self._ask("instances", number, asked)):
            if answer is None:
                continue
            pairs = good_instances(read_instances(*answer[0], sort))
            self.counts["without example"] += not pairs
            if pairs and tasks < most:
                records += _records(one, sort, pairs, number, f"made_{len(self.made) + tasks}")
                tasks += 1
        return records

    def _instructions(self, number: int) -> list[New]:
        """New ones that pass the filters."""
        rng, asked = random.Random(f"{self.seed} {number}"), []
        for _ in range(self.prompts):
            few = _some(rng, self.made, MODEL)
            shown = [*few, *_some(rng, self.seeds, HUMAN + MODEL - len(few))]
            rng.shuffle(shown)
            asked.append((ask_for_instructions, shown))
        answers = self._ask("instructions", number, asked)
        if not any(answers):
            raise UserError("the model has no room for a list of tasks and what is to follow: take fewer new tokens")
        names, found, size = [one.id for one in (*self.seeds, *self.made)], [], len(self.pool)
        for (_, shown), answer in zip(asked, answers):
            if answer is None:
                continue
            self.counts["cut off"] += not answer[0].ended
            ids = tuple(one.id for one in shown[len(shown) - answer[1] :])
            for instruction in read_instructions(*answer[0]):
                score, nearest = self.pool.nearest(instruction)
                wrong = wrong_with(instruction) or ("similar" if score > ALIKE else None)
                if wrong:
                    self.counts[wrong] += 1
                    continue
                name = names[nearest] if nearest < size else "this round's"
                found.append(New(instruction, ids, name, score))
                self.pool.add(instruction)
        self.pool.cut(size)  # those that get examples come back
        return found

    def _ask(
        self, step: Step, number: int, asked: Sequence[tuple[Callable[[Sequence[Seed]], str], Sequence[Seed]]]
    ) -> list[tuple[Written, int] | None]:
        """What the model writes, and how many tasks the prompt showed; None where there is no room for it."""
        prompts = [fitted(build, shown, lambda text: self.fits(text, step)) for build, shown in asked]
        self.counts["no room"] += prompts.count(None)
        self.counts["shortened"] += sum(p is not None and p[1] < len(shown) for p, (_, shown) in zip(prompts, asked))
        texts = [prompt[0] for prompt in prompts if prompt is not None]
        found = iter(self.write(texts, step, number * self.prompts) if texts else ())
        return [None if prompt is None else (next(found), prompt[1]) for prompt in prompts]


def _some(rng: random.Random, tasks: Sequence[Seed], most: int) -> list[Seed]:
    return rng.sample(tasks, min(most, len(tasks)))


def _records(one: New, sort: bool, pairs: Sequence[tuple[str, str]], number: int, name: str) -> list[Record]:
    provenance = {"round": number, "of": len(pairs), "shown": list(one.shown), "nearest": one.nearest,
                  "rouge_l": round(one.rouge_l, 4)}  # fmt: skip
    return [
        {"instruction": one.instruction, "input": given, "output": output, "id": name, "is_classification": sort,
         "provenance": {**provenance, "example": i}}
        for i, (given, output) in enumerate(pairs, 1)
    ]  # fmt: skip
