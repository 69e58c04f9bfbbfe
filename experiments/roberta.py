"""RoBERTa: more data, larger batches and more steps of masked words.

Liu et al. 2019, https://arxiv.org/abs/1907.11692, table 4: SQuAD (F1), MNLI-m and SST-2 after pretraining a large BERT
on 16 or 160 GB of text, with batches of 8,000, for 100,000 to 500,000 steps. The shape: each of the three helps.

    ftjax sweep experiments/roberta.py --scale=nano --workdir=runs/roberta --jobs=2
    ftjax table --workdir=runs/roberta --output=experiments/results/roberta.md

nano, a scaled-down analogue: nano-bert's shape from scratch on made-up sentences about restaurants, 20 of them or
4,000; cells are nats per masked token of other sentences (less is better). small: the same on novels
(--config.task.data=DIR of .txt.gz files), from nano-bert, one novel or 40. paper: fine-tuning of the released large
model (500,000 steps, 160 GB) and of BERT's, by a rate of 1e-5, batches of 32, weight decay 0.1, 10 epochs, warm-up 6%
(one of its grid, from memory); the checkpoints between are not public.

nano: 12 runs, two seeds, 24 minutes of processes: found, each of the three helps, the amount of text most where steps
are many (2.55 and 0.93).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.cells import Cells, Recipe, at_scale
from experiments.glue import by_task
from experiments.made import RESTAURANT_TEXTS, write_restaurants
from ftjax.sweep import Trial

BATCHES = {"batch 8, 100 steps": (8, 100), "batch 32, 100 steps": (32, 100), "batch 32, 400 steps": (32, 400)}
MLM = {"task.objective": "mlm", "task.max_length": 64, "optimizer.learning_rate": 1e-3}
NANO = {**MLM, **RESTAURANT_TEXTS, "model.init": "random"}
SMALL = {**MLM, "task.max_length": 128, "optimizer.learning_rate": 3e-4, "task.max_eval_rows": 1}
ROWS: dict[str, dict[str, dict[str, Any]]] = {
    "nano": {"20 sentences": {"task.max_train_rows": 20}, "4,000 sentences": {}},
    "small": {"1 novel": {"task.max_train_rows": 1}, "40 novels": {"task.max_train_rows": 40}},
}
RECIPES = {
    "nano": Recipe("model=nano-bert,task=text", NANO, range(2)),
    "small": Recipe("model=nano-bert,task=text", SMALL, range(1)),
}
PAPER = {
    "epochs": 10.0, "batch_size": 32, "data.overlong": "truncate", "optimizer.learning_rate": 1e-5,
    "optimizer.weight_decay": 0.1, "optimizer.warmup": 0.06,
}  # fmt: skip
TASKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "SQuAD v1": ("squad", "squad_f1", {"task.data": "rajpurkar/squad", "data.overlong": "error"}),
    "SQuAD v2": ("squad", "squad_f1", {"task.data": "rajpurkar/squad_v2", "data.overlong": "error"}),
    "MNLI-m": ("mnli", "accuracy", {"task.data": "nyu-mll/glue:mnli", "task.max_length": 512}),
    "SST-2": ("sst2", "accuracy", {"task.data": "nyu-mll/glue:sst2", "task.max_length": 512}),
}
MODELS: dict[str, dict[str, Any]] = {
    "RoBERTa, 160 GB, 500K steps": {}, "BERT large": {"model.path": "google-bert/bert-large-cased"},
}  # fmt: skip

SERIES = {
    "paper": {
        (row, column): value / 100
        for row, values in {
            "RoBERTa, 160 GB, 500K steps": (94.6, 89.4, 90.2, 96.4), "BERT large": (90.9, 81.8, 86.6, 93.7),
        }.items()
        for column, value in zip(TASKS, values)
    }
}  # fmt: skip


def trials(scale: str) -> list[Trial]:
    """Rows are amounts of text, columns batch sizes and steps; at the paper's scale models by task."""
    if scale == "paper":
        return by_task(Recipe("model=FacebookAI/roberta-large", PAPER, range(5)), MODELS, TASKS)
    cells: Cells = {
        (row, column): ("method=full", {**fields, "batch_size": size, "steps": steps, "eval_every": steps})
        for row, fields in ROWS[scale].items()
        for column, (size, steps) in BATCHES.items()
    }
    return RECIPES[scale].trials(cells, {"loss": "loss"})


paper = at_scale(SERIES, trials)


def prepare(scale: str, folder: Path, fields: Mapping[str, Any]) -> None:
    """Made-up sentences, for scale nano."""
    if scale == "nano":
        write_restaurants(folder)
