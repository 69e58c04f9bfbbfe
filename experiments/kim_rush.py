"""Kim & Rush table 1: a teacher's words, its sentences, or both?

Kim & Rush 2016, https://arxiv.org/abs/1606.07947, table 1: English to German by LSTMs, a teacher of 4 x 1000 (BLEU
17.7 greedy, 19.5 by 5 beams) and students of 2 x 500. Its shape: training on the teacher's own sentences (Seq-KD)
lifts greedy decoding far more than beam search, until beams are hardly needed. WMT is out of reach here; the shape is
looked for on two other tasks, and the line below the table says whether it was found.

    ftjax sweep experiments/kim_rush.py --scale=nano --workdir=runs/kim_rush --jobs=2
    ftjax table --workdir=runs/kim_rush --output=experiments/results/kim_rush.md

nano: names spelled backwards, exact match; small: E2E (--config.task.data=DIR), BLEU of 100 meaning representations.
The teacher is nano-gpt, fine-tuned in full; students are two of nano-gpt's four layers, fine-tuned alike, all for the
same number of steps. Word-KD: half of the loss is the teacher's distribution at each token. Seq-KD: the teacher's best
of 10 beams in place of the reference. Seq-Inter: of these 10 the one closest to a reference (the paper: of 35), in the
second half of the steps, after Seq-KD in the first; all three: Word-KD in that half as well. Three seeds of one
teacher and one corpus; 22 and 19 minutes of processes, without what the teachers take. The shape is on neither task:
the teacher's names are the references themselves, and on E2E the beams of this small teacher repeat phrases (49.9 BLEU,
greedily 56.8), which Seq-KD hands on.
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.commands import command
from ftjax.distill.sequence import matches_reference
from ftjax.sweep import Trial
from ftjax.sweep.record import Record

SEEDS, BEAMS = range(3), 10


class Recipe(NamedTuple):
    """A scale: task and metric, fields of all runs, steps of the teacher and of a student, flags of `ftjax teach`."""

    task: str
    metric: str
    common: dict[str, Any]
    teacher: int
    student: int
    choice: tuple[str, ...] = ()


RECIPES = {
    "nano": Recipe(
        "reverse", "exact_match",
        {"batch_size": 32, "task.train_size": 8000, "task.validation_size": 400},
        teacher=800, student=600, choice=("--characters",),
    ),
    "small": Recipe(
        "e2e", "bleu",
        {"task.max_train_rows": 4000, "task.max_eval_rows": 1000, "generate.examples": 100, "batch_size": 8},
        teacher=800, student=500,
    ),
}  # fmt: skip

STUDENT = {"model.layers": (0, 3)}
TEACHER, BEST, NEAREST, START = (f"{{prepared}}/{x}" for x in ("teacher", "best.jsonl", "nearest.jsonl", "start"))
ROWS: dict[str, tuple[str, dict[str, Any]]] = {  # row -> the distill axis, its fields
    "Baseline": ("none", {}),
    "Word-KD": ("token", {"distill.teacher": TEACHER}),
    "Seq-KD": ("sequence", {"distill.corpus": BEST}),
    "Seq-Inter": ("sequence", {"distill.corpus": NEAREST, "warm_start": START}),
    "all three": ("token", {"distill.teacher": TEACHER, "distill.corpus": NEAREST, "warm_start": START}),
}

percent = True
paper = {
    "En-De BLEU, 2 x 500 (paper)": {
        (row, column): value
        for row, values in {
            "Baseline": (14.7, 17.6), "Word-KD": (15.4, 17.7), "Seq-KD": (18.9, 19.0), "all three": (18.8, 19.2),
        }.items()
        for column, value in zip(("greedy", "5 beams"), values)
    }
}  # fmt: skip


def metrics(scale: str) -> dict[str, str]:
    """The task's metric by both ways of decoding."""
    name = RECIPES[scale].metric if scale in RECIPES else ""
    return {"greedy": name, "5 beams": f"{name}_beam5"}


def trials(scale: str) -> list[Trial]:
    """Rows are what a student learns from; no trials at the paper's own scale."""
    if scale not in RECIPES:
        return []
    recipe = RECIPES[scale]
    return [
        Trial(row, "", seed, _axes(recipe, axis), _fields(recipe, fields, seed))
        for seed in SEEDS
        for row, (axis, fields) in ROWS.items()
    ]


def _axes(recipe: Recipe, distill: str) -> str:
    return f"model=nano-gpt,task={recipe.task},method=full,distill={distill}"


def _fields(recipe: Recipe, fields: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A student's; one that starts from another has half of the steps left."""
    made = {**recipe.common, **STUDENT, **_steps(recipe.student), **fields}
    if "warm_start" in fields:
        made |= {**_steps(recipe.student // 2), "warm_start": f"{fields['warm_start']}{seed}"}
    return made


def _steps(steps: int) -> dict[str, Any]:
    return {"steps": steps, "eval_every": steps, "generate.num_beams": 5}


def prepare(scale: str, folder: Path, fields: Mapping[str, Any]) -> None:
    """The teacher, its answers and the two corpora of them, and of each seed a Seq-KD student of half the steps."""
    recipe = RECIPES[scale]
    teacher = {**recipe.common, **_steps(recipe.teacher), "seed": 0, **fields}
    command("train", _axes(recipe, "none"), teacher, f"--workdir={folder / 'teacher'}")
    asked = {name: value for name, value in {**recipe.common, **fields}.items() if name.startswith(("task.", "data."))}
    for corpus, choose in ((BEST, ("--choose=score",)), (NEAREST, ("--choose=reference", *recipe.choice))):
        command(
            "teach", _axes(recipe, "sequence"), {**asked, "distill.teacher": folder / "teacher"}, "--sequences",
            f"--output={folder / Path(corpus).name}", f"--hypotheses={folder / 'answers.jsonl'}", *choose,
            f"--num_beams={BEAMS}", f"--num_return_sequences={BEAMS}", "--batch_size=64",
        )  # fmt: skip
    for seed in SEEDS:
        start = {**_fields(recipe, {"distill.corpus": folder / "best.jsonl"}, seed), **_steps(recipe.student // 2)}
        start |= {"seed": seed, **fields}
        command("train", _axes(recipe, "sequence"), start, f"--workdir={folder / f'start{seed}'}")


def render(records: list[Record]) -> str:
    """The teacher's values, and whether the shape is there."""
    if not records:
        return ""
    measured = records[0].result["metrics"]
    names = next((n, f"{n}_beam5") for n in ("exact_match", "bleu") if f"{n}_beam5" in measured)
    value = lambda result: [100 * result["metrics"][name] for name in names]  # noqa: E731
    found = {(r.run.trial.row, r.run.trial.seed): value(r.result) for r in records}
    prepared = records[0].run.folder.parents[1] / "prepared"
    greedy, beams = value(json.loads((prepared / "teacher" / "result.json").read_text("utf-8")))
    said = [json.loads(line) for line in (prepared / Path(BEST).name).read_text("utf-8").splitlines()]
    same = statistics.fmean(map(matches_reference, said))
    lines = [
        f"The teacher: {greedy:.1f} greedy, {beams:.1f} by 5 beams; {100 * same:.1f}% of what it teaches by Seq-KD is a"
        " reference word for word."
    ]
    seeds = [seed for seed in SEEDS if ("Baseline", seed) in found and ("Seq-KD", seed) in found]
    if seeds:
        lifts = [[b - a for a, b in zip(found["Baseline", seed], found["Seq-KD", seed])] for seed in seeds]
        greedy, beams = (statistics.fmean(one) for one in zip(*lifts))
        there = sum(one > 0 and one > other for one, other in lifts)
        lines.append(
            f"Seq-KD over the baseline: {greedy:+.1f} greedy, {beams:+.1f} by 5 beams (paper: +4.2, +1.4). That it"
            f" lifts greedy decoding, and more than beam search, is {'' if there == len(SEEDS) else 'not '}found: so in"
            f" {there} of {len(seeds)} seeds that are done."
        )
    return "\n".join(lines)
