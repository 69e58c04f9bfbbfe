"""LoRA table 6: how small can the rank be?

Hu et al. 2021, https://arxiv.org/abs/2106.09685, table 6: ranks 1 to 64 for three sets of GPT-3's attention matrices,
validation accuracy on WikiSQL and MNLI. Its weights cannot be had: what can be reproduced is the table's shape, that
more matrices at a low rank do better than one matrix at a high one, and that the rank hardly matters.

    ftjax sweep experiments/lora_rank.py --scale=nano --workdir=runs/lora_rank --jobs=2
    ftjax table --workdir=runs/lora_rank --output=experiments/results/lora_rank.md

nano: the shipped nano-gpt counts vowels, a scaled-down analogue; always answering the commonest count scores 43%.
small: 2,000 rows of SST-2 by MiniLM, and of E2E (BLEU) by nano-gpt, 15 runs each; the folders, or links to them, are to
be put into WORKDIR/prepared before, as `minilm`, `sst2` and `e2e`. paper: RoBERTa-base on SST-2 by the recipe of the
paper's table 9, five seeds. alpha is 16 (paper: 8) whatever the rank.

nano: 30 runs of 300 steps, two seeds, 9 minutes on 2 cores: found, two or four matrices at rank 1 (89) are ahead of
Wq at rank 64 (86). Against the paper, the rank matters: 64 is 3 to 6 points ahead of 1.
small: 30 runs, one seed, 32 minutes on 2 cores: on SST-2 all four matrices at rank 1 (81.2) are ahead of Wq at rank 64
(79.5), and the rank hardly matters; on E2E (BLEU) Wq alone learns nothing, and of all four rank 1 is too low (2; 29 at
8 and 64).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import lora_e2e
from experiments.cells import Cells, Recipe, needed
from ftjax.sweep import Trial

NANO: dict[str, Any] = {"steps": 300, "eval_every": 75, "task.validation_size": 1000}
SST2 = {
    "steps": 126, "eval_every": 63, "task.max_train_rows": 2000, "data.overlong": "truncate", "model.pooling": "mean",
    "model.dropout": 0.0, "optimizer.learning_rate": 1e-3, "model.path": "{prepared}/minilm",
    "task.data": "{prepared}/sst2",
}  # fmt: skip
E2E = {**lora_e2e.SMALL, "optimizer.learning_rate": lora_e2e.RATES["lora"], "task.data": "{prepared}/e2e"}
# RoBERTa-base on SST-2 (table 9): AdamW, linear after 6% of warm-up, 60 epochs of batches of 16, 512 tokens.
PAPER = {
    "epochs": 60.0, "batch_size": 16, "task.max_length": 512, "task.data": "nyu-mll/glue:sst2", "method.alpha": 8.0,
    "optimizer.learning_rate": 5e-4, "optimizer.weight_decay": 0.1, "optimizer.warmup": 0.06,
}  # fmt: skip
RECIPES: dict[str, dict[str, tuple[Recipe, dict[str, str]]]] = {  # scale -> what rows begin with -> recipe, metrics
    "nano": {"": (Recipe("model=nano-gpt,task=vowels", NANO, range(2)), {})},
    "small": {
        "": (Recipe("model=sentence-transformers/all-MiniLM-L6-v2,task=sst2", SST2, range(1)), {}),
        "E2E: ": (Recipe("model=nano-gpt,task=e2e", E2E, range(1)), {"BLEU": "bleu"}),
    },
    "paper": {"": (Recipe("model=FacebookAI/roberta-base,task=sst2", PAPER, range(5)), {})},
}

RANKS = (1, 2, 4, 8, 64)
TARGETS = {"Wq": ("attn/q",), "Wq, Wv": ("attn/q", "attn/v"), "Wq, Wk, Wv, Wo": ("attention",)}

percent = True
paper = {
    f"{data}, GPT-3 (paper)": {
        (row, f"r={rank}"): value for row, values in rows.items() for rank, value in zip(RANKS, values)
    }
    for data, rows in {
        "WikiSQL": {
            "Wq": (68.8, 69.6, 70.5, 70.4, 70.0),
            "Wq, Wv": (73.4, 73.3, 73.7, 73.8, 73.5),
            "Wq, Wk, Wv, Wo": (74.1, 73.7, 74.0, 74.0, 73.9),
        },
        "MNLI": {
            "Wq": (90.7, 90.9, 91.1, 90.7, 90.7),
            "Wq, Wv": (91.3, 91.4, 91.3, 91.6, 91.4),
            "Wq, Wk, Wv, Wo": (91.2, 91.7, 91.7, 91.5, 91.4),
        },
    }.items()
}


def for_tasks(scale: str, cells: Cells) -> list[Trial]:
    """The cells' trials on each task of a scale."""
    return [
        trial
        for start, (recipe, metrics) in RECIPES[scale].items()
        for trial in recipe.trials({(start + row, column): cell for (row, column), cell in cells.items()}, metrics)
    ]


def trials(scale: str) -> list[Trial]:
    """Rows are the adapted matrices, columns the ranks."""
    cells: Cells = {
        (row, f"r={rank}"): ("method=lora", {"method.targets": targets, "method.rank": rank})
        for row, targets in TARGETS.items()
        for rank in RANKS
    }
    return for_tasks(scale, cells)


def prepare(scale: str, folder: Path, fields: Mapping[str, Any]) -> None:
    """Looks that scale small has what it reads."""
    if scale == "small":
        needed(folder, ["minilm", "sst2", "e2e"])
