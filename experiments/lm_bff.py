"""LM-BFF: with a few examples, a head, a prompt, or a prompt with demonstrations?

Gao, Fisch & Chen 2021, https://arxiv.org/abs/2012.15723, table 3: RoBERTa-large, 16 examples a class, five draws. On
SST-2 92.7 by the prompt; the other numbers beside the table are from memory. The shape: the prompt is far ahead of a
head and spreads less, demonstrations add a little.

    ftjax sweep experiments/lm_bff.py --scale=nano --workdir=runs/lm_bff --jobs=2
    ftjax table --workdir=runs/lm_bff --output=experiments/results/lm_bff.md

nano, a scaled-down analogue: nano-bert tells whether a sentence is about a man or a woman (chance: 50%) from 2 or 8
examples a class, drawn by the seed, and is tested on other nouns; the prompt is "... then [MASK] went away." with he
and she. small: none; no masked model between nano-bert and BERT with its vocabulary's head is at hand. paper: 1,000
steps, evaluated every 100 on as many other examples, the best of which is what a cell says (the paper's grid of rates
and batches is one cell of it, 1e-5 and 8; its cells are of the whole development sets, which is `ftjax eval` of each
run on files of them); accuracy on MRPC and QQP too, and demonstrations drawn from all examples, where the paper takes
the half of each class that is nearest (task.demonstration_encoder).

nano: 35 runs of 40 steps, five seeds, 4 minutes on 2 cores: found, a prompt is ahead of a head (58 and 52 with 2 a
class, 68 and 60 with 8); not found: demonstrations cost 4 to 7 points, and training gains nothing on the untouched
prompt (69).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.cells import UNTOUCHED, Cells, Recipe, at_scale
from experiments.glue import GLUE
from experiments.made import PEOPLE, write_people
from ftjax.sweep import Trial

NANO: dict[str, Any] = {
    "task.files.train": "{prepared}/nouns-train.jsonl", "task.files.test": "{prepared}/nouns-test.jsonl",
    "task.eval_split": "test", "task.classes": tuple(PEOPLE), "task.max_length": 96, "steps": 40, "eval_every": 40,
    "batch_size": 8, "optimizer.learning_rate": 3e-4, "model.dropout": 0.0,
}  # fmt: skip
PAPER = {
    "task.per_class": 16, "epochs": None, "steps": 1000, "eval_every": 100, "batch_size": 8, "task.max_length": 128,
    "data.overlong": "truncate", "optimizer.learning_rate": 1e-5, "optimizer.warmup": 0.0,
}  # fmt: skip
RECIPES = {
    "nano": Recipe("model=nano-bert,task=classification", NANO, (13, 21, 42, 87, 100)),
    "paper": Recipe("model=FacebookAI/roberta-large", PAPER, (13, 21, 42, 87, 100)),
}
WORDS = {"task.template": "{text} then {mask} went away.", "task.label_words": ("he", "she")}
DEMONSTRATIONS = {"task.demonstrations": 1}
EXAMPLES = (2, 8)  # a class
TASKS = ("SST-2", "CoLA", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "MRPC", "QQP")
LONG = {"MNLI-m", "MNLI-mm"}

percent = True
SERIES = {
    "RoBERTa-large (paper, from memory)": {
        (row, column): value
        for row, values in {
            "head": (81.4, 33.9, 45.8, 47.8, 60.2, 54.4, 76.6, 60.7),
            "prompt": (92.7, 9.3, 68.3, 70.5, 64.5, 69.1, 74.5, 65.5),
            "prompt, demonstrations": (92.6, 18.7, 70.7, 72.0, 69.2, 68.7, 77.8, 69.8),
        }.items()
        for column, value in zip(TASKS, values)
    }
}


def trials(scale: str) -> list[Trial]:
    """Rows are ways to ask, columns examples a class; at the paper's scale tasks."""
    if scale == "paper":
        return [trial for column in TASKS for trial in _of_task(column)]
    if scale == "small":
        return []
    draws = {"task.train_draws": 4, "task.test_draws": 4}
    words = {**WORDS, "task.objective": "words"}
    rows = {"head": {}, "prompt": words, "prompt, demonstrations": {**words, **DEMONSTRATIONS, **draws}}
    cells: Cells = {
        (row, f"{count} a class"): ("method=full", {**fields, "task.per_class": count})
        for row, fields in rows.items()
        for count in EXAMPLES
    }
    cells |= {("prompt", "none"): ("method=full", {**words, "task.per_class": 2, **UNTOUCHED})}
    return RECIPES[scale].trials(cells)


def _of_task(column: str) -> list[Trial]:
    task, _, fields = GLUE[column]
    recipe, length = RECIPES["paper"], 256 if column in LONG else 128
    draws = {"task.test_draws": 4} if column in {*LONG, "QQP"} else {}
    shown = {**DEMONSTRATIONS, **draws, "task.max_length": 2 * length}
    rows = {"head": {}, "prompt": {"task.objective": "words"}}
    rows["prompt, demonstrations"] = {"task.objective": "words", **shown}
    cells: Cells = {
        (row, column): (f"task={task},method=full", {**fields, "task.max_length": length, **own})
        for row, own in rows.items()
    }
    return recipe.trials(cells)


paper = at_scale(SERIES, trials)


def prepare(scale: str, folder: Path, fields: Mapping[str, Any]) -> None:
    """Sentences about people, for scale nano."""
    if scale == "nano":
        write_people(folder)
