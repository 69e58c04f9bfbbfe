"""Hinton et al. section 6: soft targets where there is little data.

Hinton et al. 2015, https://arxiv.org/abs/1503.02531, "soft targets as regularizers": of a speech model's training set
3% are left. A model that learns from their labels scores 44.5% where the one that had all of them scores 58.9%; from
the soft targets of that one, on these same 3% of the inputs, it scores 57.0%.

    ftjax sweep experiments/hinton.py --scale=nano --workdir=runs/hinton --jobs=2
    ftjax table --workdir=runs/hinton --output=experiments/results/hinton.md

The teacher is fine-tuned in full on all training rows, a student with the same weights at its start on the first 1%,
3% or 10% of them: by their labels alone (hard) or by the teacher's classes alone (soft, temperature 2; the teacher
sees these same rows and no others). Accuracy at the best of eight evaluations, so that the hard labels have early
stopping as in the paper. nano: nano-gpt counts the vowels of 20,000 names; small: MiniLM on 20,000 rows of SST-2, with
--config.model.path=DIR --config.task.data=DIR. Three seeds of one teacher. paper: none, for want of its speech data.

nano: 21 minutes of processes, without the teacher's: the two tie; hard labels do not get worse again by the last
evaluation, as they do in the paper.
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.commands import command
from ftjax.sweep import Trial
from ftjax.sweep.record import Record

SEEDS, ALL, STEPS = range(3), 20000, 320
SHARES = {"1%": 200, "3%": 600, "10%": 2000}
AXES = {
    "nano": "model=nano-gpt,task=vowels,method=full",
    "small": "model=sentence-transformers/all-MiniLM-L6-v2,task=sst2,method=full",
}
FIELDS: dict[str, dict[str, Any]] = {
    "nano": {"task.validation_size": 1000, "optimizer.learning_rate": 1e-3},
    "small": {
        "data.overlong": "truncate", "model.pooling": "mean", "model.dropout": 0.0, "optimizer.learning_rate": 1e-4,
    },
}  # fmt: skip
SOFT = {"distill.teacher": "{prepared}/teacher", "distill.alpha": 1.0, "distill.temperature": 2.0}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {"hard labels": ("none", {}), "soft targets": ("token", SOFT)}

percent = True
paper = {"speech, frames (paper)": {("hard labels", "3%"): 44.5, ("soft targets", "3%"): 57.0}}


def trials(scale: str) -> list[Trial]:
    """Rows are what a student learns from, columns how much of the data it has; none at the paper's own scale."""
    if scale not in AXES:
        return []
    every = {"batch_size": 32, "steps": STEPS, "eval_every": STEPS // 8}
    return [
        Trial(row, share, seed, f"{AXES[scale]},distill={axis}", {
            **FIELDS[scale], **every, "task.max_train_rows": count, **fields,
        })
        for seed in SEEDS
        for row, (axis, fields) in ROWS.items()
        for share, count in SHARES.items()
    ]  # fmt: skip


def prepare(scale: str, folder: Path, fields: Mapping[str, Any]) -> None:
    """The teacher: an epoch of all rows."""
    own = {"batch_size": 64, "epochs": 1.0, "task.max_train_rows": ALL, "seed": 0}
    command("train", AXES[scale], {**FIELDS[scale], **own, **fields}, f"--workdir={folder / 'teacher'}")


def render(records: list[Record]) -> str:
    """The teacher's accuracy, what soft targets gain, and how far the last evaluation is below the best one."""
    if not records:
        return ""
    teacher = records[0].run.folder.parents[1] / "prepared" / "teacher" / "result.json"
    best = json.loads(teacher.read_text("utf-8"))["best"]["value"]
    lines = [f"The teacher, of all {ALL:,} rows: {100 * best:.1f} (paper: 58.9)."]
    for share in SHARES:
        found = {(r.run.trial.row, r.run.trial.seed): r.result for r in records if r.run.trial.column == share}
        seeds = [seed for seed in SEEDS if all((row, seed) in found for row in ROWS)]
        if not seeds:
            continue
        gains = [100 * (found["soft targets", s]["best"]["value"] - found["hard labels", s]["best"]["value"])
                 for s in seeds]  # fmt: skip
        late = [statistics.fmean(100 * (found[row, s]["best"]["value"] - found[row, s]["metrics"]["accuracy"])
                                 for s in seeds) for row in ROWS]  # fmt: skip
        lines.append(
            f"{share}: soft targets gain {statistics.fmean(gains):+.1f}, in {sum(gain > 0 for gain in gains)} of"
            f" {len(seeds)} seeds; the last evaluation is below the best by {late[0]:.1f} (hard), {late[1]:.1f} (soft)."
        )
    return "\n".join(lines)
