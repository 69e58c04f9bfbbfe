"""The first minutes: every method on one task, and two of them on another, side by side.

    make demo            (or: python -m experiments.demo --workdir=runs/demo)

Two tasks on the shipped `nano-gpt`, with names from the project's own generator: `vowels` counts the vowels of a name
(classification), `reverse` spells it backwards (generation, exact match). Prints one table and writes `report.html`
with the table and the curves. An interrupted demo goes on where it stopped. 7 to 14 minutes on 2 CPU cores; full, head
and LoRA come first and take half of it.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from configs.default import get_config
from ftjax.errors import UserError
from ftjax.files import write_text
from ftjax.sweep.record import curve
from ftjax.sweep.render import html_table, page, svg, text_table
from ftjax.train.loop import train


class Trial(NamedTuple):
    """One run: the axes of its config, and fields that differ from their defaults."""

    name: str
    axes: str
    fields: dict[str, Any]


VOWELS = {"epochs": 1.0, "eval_every": 75}
REVERSE = {"batch_size": 32, "steps": 800, "eval_every": 200, "task.validation_size": 200, "log_every": 50}
TRIALS = [
    Trial("vowels/full", "task=vowels,method=full", VOWELS),
    Trial("vowels/head", "task=vowels,method=head", VOWELS),
    Trial("vowels/lora r=2", "task=vowels,method=lora", {**VOWELS, "method.rank": 2}),
    Trial("vowels/lora r=8", "task=vowels,method=lora", {**VOWELS, "method.rank": 8}),
    Trial("reverse/full", "task=reverse,method=full", REVERSE),
    Trial(
        "reverse/lora r=16",
        "task=reverse,method=lora",
        {**REVERSE, "method.rank": 16, "method.targets": ("all_linear",), "optimizer.learning_rate": 6e-3},
    ),
]
TRIALS += [
    Trial(f"vowels/{name}", f"task=vowels,method={name}", {**VOWELS, **fields})
    for name, fields in {
        "top_layers": {"method.count": 2},
        "gradual": {"optimizer.unfreeze_every": 0.1},
        "bitfit": {},
        "ia3": {},
        "adapter": {},
        "prompt": {},
        "prefix": {},
        "p_tuning": {},
        "llama_adapter": {},
        "prefix+lora": {},
    }.items()
]
HEADER = ("task", "method", "metric", "value", "trainable", "examples/s", "step MB", "compile s", "total s")


def folder_of(trial: Trial, workdir: Path) -> Path:
    """The trial's own folder."""
    return workdir / trial.name.replace(" ", "-").replace("=", "")


def run(trial: Trial, workdir: Path) -> dict[str, Any]:
    """Trains one trial, or finds it done; its result."""
    default, config = get_config(trial.axes), get_config(trial.axes)
    config.update_from_flattened_dict(trial.fields)
    return train(config, default, folder_of(trial, workdir))


def row(trial: Trial, result: dict[str, Any]) -> list[str]:
    """A line of the table."""
    task, method = trial.name.split("/")
    metric = result["best"]["metric"]
    return [
        task, method, metric.replace("_", " "), f"{100 * result['metrics'][metric]:.1f}%",
        f"{result['trainable_parameters']:,}", f"{result['examples_per_second']:,.0f}",
        f"{result['step_memory_bytes'] / 1e6:.1f}", f"{result['compile_seconds']:.0f}", f"{result['wall_seconds']:.0f}",
    ]  # fmt: skip


def main() -> None:
    """Runs what is missing, prints the table, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"))
    workdir: Path = parser.parse_args().workdir
    started = time.perf_counter()
    rows, curves = [], {}
    for trial in TRIALS:
        print(f"\n== {trial.name}", flush=True)
        try:
            result = run(trial, workdir)
        except UserError as error:
            sys.exit(f"ftjax: {error}")
        rows.append(row(trial, result))
        folder = folder_of(trial, workdir)
        curves[trial.name] = {n: curve(folder, n) for n in ("train/loss", f"eval/{result['best']['metric']}")}
    print("\n" + text_table(HEADER, rows))
    charts = []
    for task in ("vowels", "reverse"):
        mine = {name.split("/")[1]: c for name, c in curves.items() if name.startswith(task)}
        for name in dict.fromkeys(n for c in mine.values() for n in c):
            charts.append(svg(f"{task}: {name}", "step", name, {method: c[name] for method, c in mine.items()}))
    intro = "The shipped nano-gpt on generated names; `step MB` is what the compiled step allocates, state included."
    write_text(workdir / "report.html", page("ftjax demo", intro, [html_table(HEADER, rows), *charts]))
    print(f"\n{time.perf_counter() - started:.0f} s; curves in {workdir / 'report.html'}")


if __name__ == "__main__":
    main()
