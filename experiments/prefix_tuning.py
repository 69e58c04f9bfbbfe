"""Prefix-tuning: how long, from which start, with how little data, and in domains that training did not have.

Li & Liang 2021, https://arxiv.org/abs/2101.00190, GPT-2 on table-to-text. Its shape: keys and values in all layers are
better than embeddings alone at any length, with 50 to 500 examples a prefix is ahead of full fine-tuning (by 2.9 BLEU
on average) if it starts at the activations of real words, and it is far ahead on WebNLG's unseen categories.

    ftjax sweep experiments/prefix_tuning.py --scale=nano --workdir=runs/prefix_tuning --jobs=2
    ftjax table --workdir=runs/prefix_tuning --output=experiments/results/prefix_tuning.md

BLEU. nano, a scaled-down analogue: nano-gpt on made-up restaurants in E2E's form; no unseen domains. small: nano-gpt on
WebNLG (--config.task.data=DIR), 4,000 examples seen, greedy answers to the whole test set: the categories alone, for
lengths and little data are nano's. paper: GPT-2 medium on WebNLG by the paper's rates, batches, epochs and
sentence-level loss, 5 beams (its length of 5 is the row `prefix`); low data from WebNLG too (the paper: E2E), the first
rows of the training set and not five random subsets.

nano: 20 runs of 150 to 225 steps, two seeds, 11 minutes on 2 cores. Found: every layer is ahead of embeddings alone at
each length (5, 19, 26; the latter write nothing that counts). Against the paper: with 50 rows all weights are far ahead
(51), and a random start (19) is better than words (7 and 8).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.cells import Cells, Recipe, at_scale
from experiments.made import DESCRIPTIONS, write_restaurants
from ftjax.sweep import Trial

SMALL = {
    "task.max_length": 440,
    "steps": 500,
    "eval_every": 500,
    "batch_size": 8,
    "task.eval_split": "test",
    "generate.examples": 2000,
}
PAPER = {
    "task.data": "webnlg-challenge/web_nlg:webnlg_challenge_2017", "task.eval_split": "test",
    "loss.reduction": "sentence", "data.layout": "buckets", "optimizer.warmup": 0.0, "optimizer.clip": 1.0,
    "generate.num_beams": 5, "generate.examples": 2000, "generate.max_new_tokens": 100,
}  # fmt: skip
RECIPES = {
    "nano": Recipe("model=nano-gpt,task=e2e", DESCRIPTIONS, range(2)),
    "small": Recipe("model=nano-gpt,task=webnlg", SMALL, range(1)),
    "paper": Recipe("model=openai-community/gpt2-medium,task=webnlg", PAPER, range(3)),
}
FULL: dict[str, dict[str, Any]] = {
    "nano": {}, "small": {}, "paper": {"epochs": 10.0, "batch_size": 6, "optimizer.learning_rate": 1e-5},
}  # fmt: skip
PREFIX: dict[str, dict[str, Any]] = {
    "nano": {"optimizer.learning_rate": 4e-3},
    "small": {"optimizer.learning_rate": 4e-3},
    "paper": {"epochs": 5.0, "batch_size": 5, "optimizer.learning_rate": 5e-5},
}
PROMPT: dict[str, dict[str, Any]] = {"nano": {}, "small": {}, "paper": PREFIX["paper"]}
LENGTHS = {"nano": (1, 5, 20), "small": (), "paper": (1, 10, 20)}
ROWS = {"nano": (50,), "small": (), "paper": (50, 100, 200, 500)}
LOW = {"nano": 150, "paper": 200}  # steps with little data
STARTS = {
    "random": {"method.init": "random"},
    "a word": {"method.init": "words", "method.text": "elephant"},
    "the task": {"method.init": "words", "method.text": "describe the table:"},
}
LENGTH = 5
DOMAINS = {"seen": "seen/bleu", "unseen": "unseen/bleu", "all": "bleu"}

percent = True
SERIES = {
    "WebNLG, GPT-2 M, BLEU (paper)": {
        (row, column): value
        for row, values in {"full": (64.7, 26.7, 45.7), "prefix": (62.9, 45.3, 55.0)}.items()
        for column, value in zip(DOMAINS, values)
    },
    "E2E, GPT-2 M, BLEU (paper)": {
        ("embeddings only", "length 1"): 48.1, ("embeddings only", "length 10"): 62.2,
        ("embeddings only", "length 20"): 61.9,
    },
}  # fmt: skip


def trials(scale: str) -> list[Trial]:
    """Methods by domain, kinds of prompts by length, and starts by the number of examples."""
    recipe, beams = RECIPES[scale], "_beam5" if scale == "paper" else ""
    full, prefix = ("method=full", FULL[scale]), ("method=prefix", {**PREFIX[scale], "method.length": LENGTH})
    domains: Cells = {} if scale == "nano" else {("full", ""): full, ("prefix", ""): prefix}
    lengths: Cells = {
        (row, f"length {n}"): (f"method={method}", {**fields[scale], "method.length": n})
        for row, (method, fields) in {"every layer": ("prefix", PREFIX), "embeddings only": ("prompt", PROMPT)}.items()
        for n in LENGTHS[scale]
    }
    few: Cells = {
        (f"{name}, little data", f"{count} rows"): (axes, {**fields, **_few(scale, count)})
        for name, (axes, fields) in {
            "full": full, **{f"prefix from {start}": (prefix[0], {**prefix[1], **x}) for start, x in STARTS.items()},
        }.items()
        for count in ROWS[scale]
    }  # fmt: skip
    return [
        *recipe.trials(domains, {title: name + beams for title, name in DOMAINS.items()}),
        *recipe.trials({**lengths, **few}, {"bleu": "bleu" + beams}),
    ]


def _few(scale: str, count: int) -> dict[str, Any]:
    """200 steps, 400 with 500 examples, as of the paper's prefixes; its full fine-tuning on 50 and 100 had 100."""
    steps = LOW[scale] * (2 if count == 500 else 1)
    return {"task.max_train_rows": count, "epochs": None, "steps": steps, "eval_every": steps}


paper = at_scale(SERIES, trials)


def prepare(scale: str, folder: Path, fields: Mapping[str, Any]) -> None:
    """Made-up restaurants for scale nano; nothing for the others."""
    if scale == "nano":
        write_restaurants(folder)
