"""BERT's table 1: one model, fine-tuned alike on each task of GLUE.

Devlin et al. 2019, https://arxiv.org/abs/1810.04805, table 1, of the test server: BERT base 79.6 and large 82.1 on
average, GPT 75.1. The shape there: a larger model beats a smaller one on every task; here as well: a pretrained one the
same from scratch.

    ftjax sweep experiments/glue.py --scale=nano --workdir=runs/glue --jobs=2
    ftjax table --workdir=runs/glue --output=experiments/results/glue.md

nano, a scaled-down analogue: nano-bert, its two lowest layers, and its shape from scratch, on two made-up tasks: a
name's vowels (of 1,000 names; always the commonest count: 43%), and whether a sentence is about a man or a woman, of
nouns that were not trained on (chance: 50%). small: MiniLM likewise on 2,000 rows of SST-2, MRPC and STS-B, whose
folders are to be put (or linked) into WORKDIR/prepared as sst2, mrpc and stsb (--config.model.path=DIR). paper: the
defaults of BERT's code on every task (rate 5e-5, 3 epochs, batches of 32, 128 tokens, warm-up 10%, Adam without bias
correction, weight decay 0.01, clipping at 1), on GLUE's development sets, where the paper's are of the test server by
the best of four rates (from memory). WNLI is left out there and here.

nano: 12 runs of 150 steps, two seeds, 12 minutes on 2 busy cores (of 530 processor seconds): found, on both tasks
pretrained > its lowest two layers > from scratch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.cells import Cells, Recipe, at_scale, needed
from experiments.made import NOUN_FILES, write_people
from ftjax.sweep import Trial

Columns = dict[str, tuple[str, str, dict[str, Any]]]  # column -> task, metric, fields

_GLUE = "nyu-mll/glue"
GLUE: Columns = {
    "MNLI-m": ("mnli", "accuracy", {"task.data": f"{_GLUE}:mnli"}),
    "MNLI-mm": ("mnli", "accuracy", {"task.data": f"{_GLUE}:mnli", "task.genre": "mismatched"}),
    "QQP": ("qqp", "f1", {"task.data": f"{_GLUE}:qqp"}),
    "QNLI": ("qnli", "accuracy", {"task.data": f"{_GLUE}:qnli"}),
    "SST-2": ("sst2", "accuracy", {"task.data": f"{_GLUE}:sst2"}),
    "CoLA": ("cola", "matthews", {"task.data": f"{_GLUE}:cola"}),
    "STS-B": ("stsb", "spearman", {"task.data": f"{_GLUE}:stsb"}),
    "MRPC": ("mrpc", "f1", {"task.data": f"{_GLUE}:mrpc"}),
    "RTE": ("rte", "accuracy", {"task.data": f"{_GLUE}:rte"}),
}
MADE: Columns = {
    "vowels": ("vowels", "accuracy", {"task.max_train_rows": 1000, "task.validation_size": 1000}),
    "man or woman": ("classification", "accuracy", NOUN_FILES),
}
LINKED: Columns = {
    name: (task, metric, {"task.data": f"{{prepared}}/{task}", "task.max_train_rows": 2000})
    for name, (task, metric, _) in GLUE.items()
    if task in ("sst2", "mrpc", "stsb")
}
COLUMNS = {"nano": MADE, "small": LINKED, "paper": GLUE}
NANO = {"steps": 150, "eval_every": 150, "optimizer.learning_rate": 5e-4, "task.max_length": 64}
SMALL = {
    "epochs": None, "steps": 126, "eval_every": 126, "data.overlong": "truncate", "model.pooling": "mean",
    "model.dropout": 0.0, "optimizer.learning_rate": 1e-4,
}  # fmt: skip
PAPER = {
    "epochs": 3.0, "batch_size": 32, "task.max_length": 128, "data.overlong": "truncate", "optimizer.warmup": 0.1,
    "optimizer.learning_rate": 5e-5, "optimizer.weight_decay": 0.01, "optimizer.bias_correction": False,
    "optimizer.eps": 1e-6, "optimizer.clip": 1.0,
}  # fmt: skip
RECIPES = {
    "nano": Recipe("model=nano-bert", NANO, range(2)),
    "small": Recipe("model=sentence-transformers/all-MiniLM-L6-v2", SMALL, range(1)),
    "paper": Recipe("model=google-bert/bert-base-uncased", PAPER, range(3)),
}
SMALLER: dict[str, dict[str, Any]] = {
    "pretrained": {}, "its lowest 2 layers": {"model.layers": (0, 1)}, "from scratch": {"model.init": "random"},
}  # fmt: skip
MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "nano": SMALLER, "small": SMALLER,
    "paper": {"BERT base": {}, "BERT large": {"model.path": "google-bert/bert-large-uncased"}},
}  # fmt: skip

percent = True
SERIES = {
    "test server (paper)": {
        (row, column): value
        for row, values in {
            "BERT base": (84.6, 83.4, 71.2, 90.5, 93.5, 52.1, 85.8, 88.9, 66.4),
            "BERT large": (86.7, 85.9, 72.1, 92.7, 94.9, 60.5, 86.5, 89.3, 70.1),
        }.items()
        for column, value in zip(GLUE, values)
    }
}


def trials(scale: str) -> list[Trial]:
    """Rows are models, columns tasks, each by its own metric at the end of the run."""
    return by_task(RECIPES[scale], MODELS[scale], COLUMNS[scale])


def by_task(recipe: Recipe, models: Mapping[str, Mapping[str, Any]], columns: Columns) -> list[Trial]:
    """A trial for each model and task."""
    made = []
    for column, (task, metric, fields) in columns.items():
        cells: Cells = {(row, column): (f"task={task},method=full", {**fields, **own}) for row, own in models.items()}
        made += recipe.trials(cells, {metric: metric})
    return sorted(made, key=lambda trial: list(models).index(trial.row))


paper = at_scale(SERIES, trials)


def prepare(scale: str, folder: Path, fields: Mapping[str, Any]) -> None:
    """Sentences about people for scale nano; for small a look at what was put there."""
    if scale == "nano":
        write_people(folder)
    elif scale == "small":
        needed(folder, sorted({task for task, _, _ in LINKED.values()}))
