"""P-tuning on LAMA: does a learned prompt make the wording of a template matter less?

Liu et al. 2021, https://arxiv.org/abs/2103.10385: facts asked by four wordings of one relation (T-REx P17, a place's
country), BERT base (the model from memory). Hit@1 is 20 to 51 without, and 58 with P-tuning whatever the wording, which
stays as anchor words. Here a cell is the best evaluation, of which a row without training has one.

    ftjax sweep experiments/p_tuning_lama.py --scale=nano --workdir=runs/p_tuning_lama --jobs=2
    ftjax table --workdir=runs/p_tuning_lama --output=experiments/results/p_tuning_lama.md

nano, a scaled-down analogue: the relation that nano-bert knows from novels is a noun's pronoun (he, she, it, they,
sought among 20 words; one of them always: 25%), tested on nouns that the prompt was not trained on. Without: a step at
a rate of 0. small: none, for want of a masked model that knows facts. paper: bert-base-cased, AutoPrompt's rows of P17
(--config.task.data=DIR --config.task.vocab_file=FILE), Adam at 1e-5, weight decay 5e-4, batches of 8, up to 100 epochs,
until 20 evaluations bring nothing; its factor of 0.98 an epoch on the rate is left out.

nano: 16 runs, two seeds, 12 minutes on 2 cores: found, 6 to 38 without and 70 to 80 with P-tuning, nearly whatever
the wording.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.cells import UNTOUCHED, Cells, Recipe, at_scale
from experiments.made import write_pronouns
from ftjax.sweep import Trial

FACTS = {f"task.files.{split}": f"{{prepared}}/pronouns-{split}.jsonl" for split in ("train", "validation")}
NANO = {
    **FACTS, "task.relation": "pronoun", "task.vocab_file": "{prepared}/words.txt", "steps": 150, "eval_every": 30,
    "batch_size": 16, "optimizer.learning_rate": 5e-3, "model.dropout": 0.0,
}  # fmt: skip
PAPER = {
    "task.relation": "P17", "epochs": 100.0, "batch_size": 8, "early_stopping": 20, "data.on_bad_row": "skip",
    "optimizer.learning_rate": 1e-5, "optimizer.weight_decay": 5e-4, "optimizer.schedule": "constant",
    "optimizer.warmup": 0.0, "optimizer.clip": 0.0,
}  # fmt: skip
RECIPES = {
    "nano": Recipe("model=nano-bert,task=lama", NANO, range(2)),
    "paper": Recipe("model=google-bert/bert-base-cased,task=lama", PAPER, (34,)),
}
TEMPLATES: dict[str, dict[str, str]] = {
    "nano": {
        "said that": "the [X] said that [Y] would go .", "is": "[X] is [Y] .",
        "which word?": "[X] : which word ? [Y] .", "none": "[X] [Y]",
    },
    "paper": {
        "located in": "[X] is located in [Y] .",
        "which country or state?": "[X] is located in which country or state ? [Y] .",
        "which country?": "[X] is located in which country ? [Y] .",
        "which country? In": "[X] is located in which country ? In [Y] .",
    },
}  # fmt: skip
SOFT = {"method.template": "{3}{before}{mask}{3}{after}{3}"}
WITHOUT = {**UNTOUCHED, "early_stopping": None, "optimizer.weight_decay": None, "model.dropout": None}

percent = True
SERIES = {
    "P17, BERT base (paper)": {
        (row, column): value
        for row, values in {
            "located in": (31.3, 57.8), "which country or state?": (19.8, 57.8), "which country?": (31.4, 58.1),
            "which country? In": (51.1, 58.1),
        }.items()
        for column, value in zip(("without", "P-tuning"), values)
    }
}  # fmt: skip


def trials(scale: str) -> list[Trial]:
    """Rows are wordings, columns without and with P-tuning; none at scale small."""
    if scale == "small":
        return []
    cells: Cells = {
        (row, column): (axes, {**fields, "task.template": text})
        for row, text in TEMPLATES[scale].items()
        for column, (axes, fields) in {
            "without": ("method=full", WITHOUT), "P-tuning": ("method=p_tuning", SOFT),
        }.items()
    }  # fmt: skip
    return RECIPES[scale].trials(cells)


paper = at_scale(SERIES, trials)


def prepare(scale: str, folder: Path, fields: Mapping[str, Any]) -> None:
    """Nouns and their pronouns, for scale nano."""
    if scale == "nano":
        write_pronouns(folder)
