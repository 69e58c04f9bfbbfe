"""Prompt tuning: which start, how long, and from which size of model on does it match full fine-tuning?

Lester et al. 2021, https://arxiv.org/abs/2104.08691, figures 1 and 3 (no numbers are printed): T5 of five sizes on
SuperGLUE. Class names or words as a start do better than random numbers, one token is too few for small models and over
20 gain little, and the gap to full fine-tuning closes with size.

    ftjax sweep experiments/prompt_tuning.py --scale=nano --workdir=runs/prompt_tuning --jobs=2
    ftjax table --workdir=runs/prompt_tuning --output=experiments/results/prompt_tuning.md

nano, a scaled-down analogue: nano-gpt counts vowels with a linear head, which trains along; an untrained prompt is one
of the same tokens that stays as it starts (always the commonest count scores 43%). Sizes are the lowest 1, 2 or all 4
of nano-gpt's layers, which is a poor stand-in for smaller pretrained models. small: the same with MiniLM on SST-2
(--config.model.path=DIR --config.task.data=DIR). paper: T5 v1.1 with language-model adaptation on SuperGLUE's RTE as
text to text, Adafactor at a constant 0.3, 30,000 steps of 32, three runs (all weights at a rate of 1e-3, from memory);
the table is of its base size, the last three rows of all five (prompts of 100 that start at class names, whose base is
the cell above).

nano: 32 runs of 200 steps, two seeds, 10 minutes on 2 cores. Found: the gap to full fine-tuning (95) is 40 and 42
points with one and two layers, where an untrained prompt is ahead (57), and 22 with all four (10 tokens); words are
ahead of random numbers by 2 to 3, at 5 and 20 tokens within the spread. Against the paper: class names are no better
than random numbers (67), and 20 tokens are worse than 5.
"""

from typing import Any

from experiments.cells import Cells, Recipe
from ftjax.sweep import Trial

NANO = {"steps": 200, "eval_every": 50, "batch_size": 32, "task.validation_size": 1000}
SMALL = {
    "steps": 126, "eval_every": 42, "task.max_train_rows": 2000, "data.overlong": "truncate", "model.pooling": "mean",
    "model.dropout": 0.0,
}  # fmt: skip
PAPER = {
    "steps": 30000, "eval_every": 1000, "batch_size": 32, "task.data": "aps/super_glue:rte", "task.max_length": 362,
    "task.objective": "choice", "task.template": "premise: {text} hypothesis: {text_pair} {mask}",
    "task.label_words": ("entailment", "not_entailment"), "data.overlong": "truncate", "loss.z_loss": 1e-4,
    "optimizer.schedule": "constant", "optimizer.warmup": 0.0, "optimizer.clip": 0.0,
}  # fmt: skip
ADAFACTOR = {  # a prompt's: not scaled by the parameters, not factored
    "optimizer.learning_rate": 0.3, "optimizer.weight_decay": 1e-5, "optimizer.scale_parameter": False,
    "optimizer.factored": False,
}  # fmt: skip
RECIPES = {
    "nano": Recipe("model=nano-gpt,task=vowels", NANO, range(2)),
    "small": Recipe("model=sentence-transformers/all-MiniLM-L6-v2,task=sst2", SMALL, range(1)),
    "paper": Recipe("model=google/t5-base-lm-adapt,task=rte,optimizer=adafactor", PAPER, range(3)),
}
PROMPT: dict[str, dict[str, Any]] = {"nano": {}, "small": {}, "paper": ADAFACTOR}
FULL: dict[str, dict[str, Any]] = {
    "nano": {}, "small": {"optimizer.learning_rate": 1e-4}, "paper": {"optimizer.learning_rate": 1e-3},
}  # fmt: skip
INITS = {"random": "random", "words": "vocab", "class names": "classes"}
LENGTHS = {"nano": (1, 5, 20), "small": (2, 5, 20), "paper": (1, 5, 20, 100, 150)}
SIZES: dict[str, dict[str, dict[str, Any]]] = {  # column -> fields
    "nano": {"1 layer": {"model.layers": (0,)}, "2 layers": {"model.layers": (0, 1)}, "4 layers": {}},
    "small": {"2 layers": {"model.layers": (0, 1)}, "6 layers": {}},
    "paper": {
        size: {"model.path": f"google/t5-{size}-lm-adapt"} for size in ("small", "base", "large", "xl", "xxl")
    },
}  # fmt: skip
SOFT: dict[str, dict[str, Any]] = {  # the prompt of the last rows
    "nano": {"method.length": 10}, "small": {"method.length": 10},
    "paper": {**ADAFACTOR, "method.length": 100, "method.init": "classes"},
}  # fmt: skip
CLASSES = {"nano": 11, "small": 2, "paper": 2}

percent = True


def trials(scale: str) -> list[Trial]:
    """Starts by lengths, of which class names need one a class; then methods by sizes."""
    methods = {
        "full": ("method=full", FULL[scale]),
        "prompt": ("method=prompt", SOFT[scale]),
        "untrained prompt": ("method=prompt", {**SOFT[scale], "optimizer.group_rates": "prompt:0"}),
    }
    cells: Cells = {
        (row, f"length {length}"): ("method=prompt", {**PROMPT[scale], "method.init": init, "method.length": length})
        for row, init in INITS.items()
        for length in LENGTHS[scale]
        if init != "classes" or length >= CLASSES[scale]
    } | {
        (row, column): (axes, {**fields, **size})
        for row, (axes, fields) in methods.items()
        for column, size in SIZES[scale].items()
        if (row, column) != ("prompt", "base")  # which is above
    }
    return RECIPES[scale].trials(cells)
