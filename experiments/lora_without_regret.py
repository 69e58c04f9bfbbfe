"""LoRA Without Regret: which rate, which matrices, which batch size, and how low a rank for policy gradients?

Schulman et al. 2025, https://thinkingmachines.ai/blog/lora/, by figures: the best rate of LoRA is about 10 times that
of full fine-tuning (9.8 by a fit, about 15 in runs of up to 100 steps), nearly the same for all ranks, a rank that is
too low for the data falls behind, attention alone is worse than the MLPs alone with as many parameters, large batches
cost LoRA more, and under a policy gradient rank 1 does as well as all weights.

    ftjax sweep experiments/lora_without_regret.py --scale=nano --workdir=runs/lora_without_regret --jobs=2
    ftjax table --workdir=runs/lora_without_regret --output=experiments/results/lora_without_regret.md

Nats per token on held-out rows after the last step (less is better) by rate, which is constant, without warm-up; alpha
is 32, all kernels of the layers are adapted unless a row says otherwise. "policy" rows: the share of right answers of
four drawn for each held-out name, after a policy gradient by a verifier, and at its start, which was trained a little.
Below the table each other row's best rate, and how the rates of LoRA and full fine-tuning compare.

nano, a scaled-down analogue: nano-gpt spells names of up to six letters backwards. small: nano-gpt on E2E, 2,000 rows,
without the policy rows (--config.task.data=DIR). paper: Llama-3.1-8B on Tulu 3, an epoch at 2,048 tokens, batches of 32
where the post gives none, ranks 1 to 512, and attention at rank 256 against MLPs at 128; its policy gradients (MATH,
GSM8K) are left out.

nano: 48 runs of 3,200 examples and 4 of policy gradients (60 steps of 32 prompts, 8 answers each), two seeds, 12
minutes on 2 cores. Found: nearly one best rate of LoRA for all ranks (3e-3, of rank 1 1e-3), the higher the rank the
better (3.40, 2.89, 2.85), MLPs ahead of attention (3.14 and 3.25); a policy gradient raises the drawn answers that are
right by rank 1 too (40.1% to 48.2), by all weights twice as much (55.1; one rate each, the best of three and of two for
one seed, on these names). Against the post: full fine-tuning is far ahead (1.75), at a rate that is a third at most,
and its lead over rank 8 is less with batches of 128 (0.60 for 1.15).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.cells import UNTOUCHED, Recipe
from experiments.commands import command
from ftjax.data.names import names
from ftjax.files import write_rows
from ftjax.sweep import Trial
from ftjax.sweep.record import Record

CONSTANT = {"optimizer.schedule": "constant", "optimizer.warmup": 0.0}
SHORT: dict[str, Any] = {
    **{f"task.files.{split}": f"{{prepared}}/short-{split}.jsonl" for split in ("train", "validation")},
    "task.max_length": 32,
}  # fmt: skip
NANO = {**CONSTANT, **SHORT, "steps": 100, "eval_every": 100, "batch_size": 32, "generate.examples": 1}
SMALL = {
    **CONSTANT, "steps": 100, "eval_every": 100, "batch_size": 8, "generate.examples": 1, "task.max_train_rows": 2000,
    "task.max_eval_rows": 500,
}  # fmt: skip
PAPER = {
    **CONSTANT, "epochs": 1.0, "batch_size": 32, "micro_batches": 4, "task.max_length": 2048, "generate.examples": 1,
    "task.data": "allenai/tulu-3-sft-mixture", "data.overlong": "truncate", "model.param_dtype": "bfloat16",
    "model.dtype": "bfloat16", "model.remat": True,
}  # fmt: skip
RECIPES = {
    "nano": Recipe("model=nano-gpt,task=lm", NANO, range(2)),
    "small": Recipe("model=nano-gpt,task=e2e", SMALL, range(1)),
    "paper": Recipe("model=meta-llama/Llama-3.1-8B,task=chat", PAPER, range(1)),
}
LORA = {"method.alpha": 32.0, "method.targets": ("all_linear",)}
RATES = {  # of full fine-tuning
    "nano": (1e-3, 3e-3, 1e-2), "small": (1e-4, 3e-4, 1e-3, 3e-3), "paper": (3e-6, 1e-5, 3e-5, 1e-4),
}  # fmt: skip
TIMES = {"nano": 1, "small": 10, "paper": 10}  # so many times as high are LoRA's
RANKS = {"nano": (1, 8, 64), "small": (1, 16), "paper": (1, 4, 16, 64, 256, 512)}
HALVES = {"nano": (16, 8), "small": (16, 8), "paper": (256, 128)}  # ranks of attention and of the MLPs
BATCHES = {"nano": (128,), "small": (), "paper": (256,)}
MIDDLE = {"nano": 8, "small": 16, "paper": 256}  # the rank of the rows by batch size

STARTED = {
    **CONSTANT, **SHORT, "generate.examples": 400, "generate.samples": 4, "warm_start": "{prepared}/start",
}  # fmt: skip
POLICY = {"steps": 60, "eval_every": 60, "batch_size": 32, "distill.samples": 8}
POLICY_RATES = (1e-4,)  # of full fine-tuning; LoRA's is ten times as high
START = {
    **SHORT, "steps": 200, "eval_every": 200, "batch_size": 64, "optimizer.learning_rate": 2e-3, "seed": 0,
}  # fmt: skip
REWARD = "exact_match_sampled4"
Rows = dict[str, tuple[str, dict[str, Any]]]  # row -> the method and what else of the axes, fields


def trials(scale: str) -> list[Trial]:
    """Rows are ranks, matrices and batch sizes, columns rates."""
    attention, mlp = HALVES[scale]
    rows: Rows = {f"LoRA, rank {rank}": _lora(rank) for rank in RANKS[scale]}
    rows |= {
        "full": ("full", {}),
        f"LoRA, attention, rank {attention}": _lora(attention, "attention"),
        f"LoRA, MLPs, rank {mlp}": _lora(mlp, "mlp"),
    }
    of_batch: Rows = {}
    for size in BATCHES[scale]:
        method, fields = _lora(MIDDLE[scale])
        of_batch[f"LoRA, rank {MIDDLE[scale]}, batch {size}"] = (method, {**fields, **_batch(scale, size)})
        of_batch[f"full, batch {size}"] = ("full", _batch(scale, size))
    rates, times = RATES[scale], TIMES[scale]
    cells = _by_rate(rows, rates, times) | _by_rate(of_batch, rates[-3:], times)  # the lowest is none of theirs
    made = RECIPES[scale].trials(cells, {"loss": "loss"})
    if scale != "nano":
        return made
    policy: Rows = {"policy, LoRA, rank 1": _lora(1), "policy, full": ("full", {})}
    policy = {row: (f"{method},distill=policy", {**POLICY, **own}) for row, (method, own) in policy.items()}
    cells = {("policy, start", "0"): ("method=full", UNTOUCHED)} | _by_rate(policy, POLICY_RATES, 10)
    recipe = RECIPES[scale]._replace(fields=STARTED)
    return [*made, *recipe.trials(cells, {"reward": REWARD})]


def _lora(rank: int, *targets: str) -> tuple[str, dict[str, Any]]:
    return "lora", {**LORA, **({"method.targets": targets} if targets else {}), "method.rank": rank}


def _by_rate(rows: Rows, rates: Sequence[float], times: int) -> dict[tuple[str, str], tuple[str, dict[str, Any]]]:
    return {
        (row, f"{rate:g}"): (f"method={method}", {**fields, "optimizer.learning_rate": rate})
        for row, (method, fields) in rows.items()
        for rate in (round(x * (times if method.startswith("lora") else 1), 9) for x in rates)
    }


def _batch(scale: str, size: int) -> dict[str, Any]:
    """Another batch size, of as many examples in all."""
    fields = RECIPES[scale].fields
    if "steps" not in fields:
        return {"batch_size": size, "micro_batches": size // 8}
    steps = fields["steps"] * fields["batch_size"] // size
    return {"batch_size": size, "steps": steps, "eval_every": steps}


def prepare(scale: str, folder: Path, fields: Mapping[str, Any]) -> None:
    """Short names, and the start of the policy gradients, which spells some of them right."""
    if scale != "nano":
        return
    short = [name for name in names(20000, seed=0) if len(name) <= 6]
    for split, part in (("train", short[:12000]), ("validation", short[12000:12400])):
        write_rows(folder / f"short-{split}.jsonl", [{"prompt": f"{x} =", "completion": f" {x[::-1]}"} for x in part])
    start = {name: x.format(prepared=folder) if isinstance(x, str) else x for name, x in START.items()}
    command("train", "model=nano-gpt,task=lm,method=full", {**start, **fields}, f"--workdir={folder / 'start'}")


def render(records: Sequence[Record]) -> str:
    """Each row's best rate, and LoRA's over full fine-tuning's."""
    values: dict[str, dict[float, list[float]]] = {}
    for record in records:
        row, loss = record.run.trial.row, record.result["metrics"]["loss"]
        if not row.startswith("policy"):  # of which there is one rate
            values.setdefault(row, {}).setdefault(float(record.run.trial.column), []).append(-loss)
    means = {row: {rate: statistics.fmean(x) for rate, x in rates.items()} for row, rates in values.items()}
    best = {row: max(rates, key=rates.__getitem__) for row, rates in means.items()}
    edge = {row: len(rates) > 2 and best[row] in (min(rates), max(rates)) for row, rates in values.items()}
    lines = [f"{row}: {best[row]:g}{' (at an end of those tried)' if edge[row] else ''}" for row in best]
    ranks = [best[row] for row in best if row.startswith("LoRA, rank") and "batch" not in row]
    if "full" in best and ranks:
        mean = math.exp(statistics.fmean(math.log(rate / best["full"]) for rate in ranks))
        lines.append(f"LoRA's over full fine-tuning's, in the mean over ranks: {mean:.1f} (paper: 9.8)")
    return "Best rates.\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""
