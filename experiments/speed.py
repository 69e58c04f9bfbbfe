"""Speed and memory of ftjax against transformers + PEFT: same machine, model, weights, examples, batch size.

    python -m experiments.speed train     --data=DIR --tokenizer=GPT2_DIR
    python -m experiments.speed decompose --data=DIR --tokenizer=GPT2_DIR
    python -m experiments.speed methods   --data=DIR --tokenizer=GPT2_DIR
    python -m experiments.speed generate
    python -m experiments.speed load
    python -m experiments.speed data      --data=DIR
    python -m experiments.speed distill   --data=DIR
    python -m experiments.speed sweep

All but `load`, `data`, `distill` and `sweep` need torch, `train` peft as well: `pip install -e '.[test]'`.

`train` measures training steps, fp32, dropout 0, AdamW, clipping at 1, loss on the completions only:

- ftjax in six length buckets (on a CPU packed rows cost more than they save: `decompose`), and transformers' `Trainer`,
  for LoRA on a PEFT model, at its best: padding to the longest example of the batch, batches grouped by length, fused
  AdamW, all cores that the process may use. Both pass once over the same sample of E2E: all references of randomly
  chosen meaning representations, in random order. `ftjax shared` packs up to 8 references of one representation behind
  one copy of it (`data.shared_prompts`): the same losses, but a batch of 8 is of few prompts then.
- LoRA has rank 4 on q and v in ftjax. PEFT can only adapt GPT-2's fused `c_attn`; its rank 4 there has exactly as many
  trainable parameters. PEFT's backward pass then needs the input of q, k and v alike, as ours does.
- Each side runs in a fresh process, sides in turn, `--rounds` times. The first `--warmup` steps are left out, and so is
  compilation (reported apart). Tokens are real ones: inputs that are no padding. Peak memory is the process's resident
  set, compiler included.

`decompose` measures ftjax with one thing switched at a time, variants in turn in one process; the figure is the
median over rounds of (seconds per example of the variant / of ftjax as it is).

`methods` measures the step of methods that add something to a frozen model against the frozen forward pass with the
gradient of its input (a rank-1 LoRA on the embedding alone), and beside it the same ratio of the analytic work.

`generate` decodes 64 tokens after prompts of 32, batch 32, fp32, greedily and with 10 beams, in a GPT-2-small shape and
a Llama shape of 100 million parameters, against transformers' `generate`; each side in a fresh process. `limit` is the
share reached of the steps that memory allows: weights and half-full caches read once, at the measured bandwidth.

`load` is the most anonymous memory while a directory of 1.2 billion parameters is loaded in its own bf16.

`data` measures what comes before the step for the shipped nano-gpt on E2E, packed as it trains by default, on one core
(the best of `--rounds`), and beside it the steps of full fine-tuning, batch size 8, on all cores.

`distill` measures the steps of a student (two layers of the shipped nano-gpt, on E2E) alone, with a live teacher
(nano-gpt) and with a cache of its 64 likeliest tokens, in turn in one process, and the teacher's forward pass alone;
and what XLA allots for the loss of a live teacher, by vocabulary and labelled positions, compiled only.

`sweep` measures `ftjax sweep` of a table of LoRA's rank x learning rate on the shipped nano-gpt, start-up, compilation,
evaluation and saving included: its trials as one program, and each in a process of its own, one and two at a time; and
beside it the steps alone, of one program and one by one.

For training the model is GPT-2 small in shape with random weights and GPT-2's tokenizer (`encoder.json`, `vocab.bpe`),
written as a Hugging Face directory that both sides load; `--model` takes any other such directory of a GPT-2.
A record goes to `experiments/results/speed.jsonl`; the last of each kind make `experiments/results/speed.md`.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments import speed_data, speed_decode, speed_distill, speed_sweep, speed_train
from ftjax.sweep.render import text_table

RESULTS = Path(__file__).parent / "results"


def in_process(kind: str, name: str, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """What a fresh process of this module reports on its last line."""
    what = ["part", kind, name, str(folder), json.dumps(vars(args), default=str)]
    command = [sys.executable, "-m", "experiments.speed", *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} {name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def part(kind: str, name: str, folder: Path, args: argparse.Namespace) -> None:
    """The inside of `in_process`."""
    parts = speed_train.PARTS | speed_data.PARTS | speed_sweep.PARTS
    parts |= {"generate": speed_decode.generate, "load": speed_decode.load, "distill": speed_distill.distill}
    print(json.dumps(parts[kind](folder, name, args)))


def measure(args: argparse.Namespace) -> None:
    """Measures what the command says, adds the record and renders the tables."""
    from ftjax.train.report import commit

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.command not in ("data", "distill", "sweep"):
            (speed_decode if args.command in ("generate", "load") else speed_train).prepare(folder, args)
        if args.command == "train":
            result: Any = {side: [] for side in speed_train.SIDES}
            for side, (kind, method) in [*speed_train.SIDES.items()] * args.rounds:
                result[side].append(in_process(kind, method, folder, args))
                print(side, json.dumps(result[side][-1]), flush=True)
        elif args.command == "generate":
            result = {}
            for side in speed_decode.SIDES:
                result[side] = in_process("generate", side, folder, args)
                print(side, json.dumps(result[side]), flush=True)
        elif args.command == "load":
            result = in_process("load", "ftjax", folder, args)
        elif args.command == "data":
            result = {}
            for side in speed_data.SIDES:
                result |= in_process(side, args.model, folder, args)
        elif args.command == "sweep":
            result = {}
            for kind, name in speed_sweep.SIDES:
                result[f"{kind} {name}"] = in_process(kind, name, folder, args)
                print(kind, name, json.dumps(result[f"{kind} {name}"]), flush=True)
        elif args.command in ("methods", "distill"):
            result = in_process(args.command, "all", folder, args)
        else:
            result = {method: in_process("decomposition", method, folder, args) for method in ("full", "lora")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    command = re.sub(r"--(data|tokenizer|model)=\S+", r"--\1=DIR", " ".join(sys.argv[1:]))
    record = {
        "kind": args.command, "command": "python -m experiments.speed " + command, "seed": args.seed,
        "commit": commit(), "machine": f"{cores} x {processor()}", "load": os.getloadavg()[2],
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "speed.jsonl").open("a") as file:
        file.write(json.dumps(record | {"result": result}) + "\n")
    records = {r["kind"]: r for r in map(json.loads, (RESULTS / "speed.jsonl").read_text().splitlines())}
    text = "# Speed\n" + "".join(
        f"\n{facts(record)}\n\n{TABLES[kind](record['result'])}\n" for kind, record in records.items()
    )
    (RESULTS / "speed.md").write_text(text)
    print(text)


def facts(record: dict[str, Any]) -> str:
    """What a table was measured by, and where."""
    load = "not taken" if record["load"] is None else f"{record['load']:.1f}"
    return "`{command}`: seed {seed}, commit {commit}, {machine}, load average {}, {date}.".format(load, **record)


def processor() -> str:
    """The CPU's model name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def train_table(result: dict[str, Any]) -> str:
    """Medians over rounds; ratios of the same round."""
    columns = ("examples/s", "tokens/s", "ms/step", "peak GB", "compile s")
    rows = []
    for side, runs in result.items():
        theirs = result["transformers " + side.split()[-1]]
        ratio = statistics.median(a["examples/s"] / b["examples/s"] for a, b in zip(runs, theirs))
        rows.append([side, *(f"{statistics.median(run[c] for run in runs):.4g}" for c in columns), f"{ratio:.2f}"])
    return text_table(["side", *columns, "examples/s against transformers"], rows)


def decompose_table(result: dict[str, Any]) -> str:
    """Ratios of the time per example, by what is switched."""
    rows = [[name, f"{result['full'].get(name, ''):.4}", f"{ratio:.4}"] for name, ratio in result["lora"].items()]
    return text_table(["ftjax, time over that as it is", "full", "lora"], rows)


def methods_table(result: dict[str, Any]) -> str:
    """Ratios of time and of work, and the one over the other."""
    rows = [[name, f"{time:.3f}", f"{work:.3f}", f"{time / work:.2f}"] for name, (time, work) in result.items()]
    return text_table(["ftjax, a step against the frozen one", "time", "work", "time over work"], rows)


def generate_table(result: dict[str, Any]) -> str:
    """Tokens per second, against transformers and against what memory allows."""
    rows = []
    for side, run in result.items():
        theirs = result["transformers " + side.split(" ", 1)[1]]
        limit = run["steps/s"] * run["step bytes"] / run["bandwidth"]
        ratio = run["tokens/s"] / theirs["tokens/s"]
        rows.append([side, f"{run['tokens/s']:.4g}", f"{ratio:.2f}", f"{limit:.2f}", f"{run['first s']:.3g}"])
    return text_table(["side", "tokens/s", "against transformers", "limit", "compile s"], rows)


def load_table(result: dict[str, Any]) -> str:
    """Peak over size."""
    size, peak = result["bytes"], result["peak anonymous"]
    row = [f"{size / 2**20:.0f}", f"{peak / 2**20:.0f}", f"{peak / size:.3f}", f"{result['seconds']:.1f}"]
    return text_table(["parameters MiB", "peak anonymous MiB", "ratio", "seconds"], [row])


def data_table(result: dict[str, Any]) -> str:
    """Examples per second, and over those of training."""
    facts = f"{result['examples']:,} examples, packed rows {result['fill']:.1%} full"
    rates = {name: rate for name, rate in result.items() if name not in ("examples", "fill")}
    rows = [[name, f"{rate:,.0f}", f"{rate / rates['training']:.1f}"] for name, rate in rates.items()]
    return text_table([facts, "examples/s", "against training"], rows)


def distill_table(result: dict[str, Any]) -> str:
    """Milliseconds and what they come to; megabytes of the loss."""
    wanted = {"live teacher": "student + teacher forward", "cache of 64": "student"}
    rows = [
        [name, f"{ms:.1f}", f"{result['over'][name]:.3f} of {wanted[name]}" if name in wanted else ""]
        for name, ms in result["ms"].items()
    ]
    sizes = [(int(v), int(n), size) for v, made in result["loss bytes"].items() for n, size in made.items()]
    memory = [[f"{v:,}", f"{n:,}", f"{size / 1e6:.0f}", f"{4e-6 * v * n:,.0f}"] for v, n, size in sizes]
    columns = ["vocabulary", "labels", "loss and gradient, MB", "[B, T, V] once, MB"]
    return text_table(["a step", "ms", "ratio"], rows) + "\n\n" + text_table(columns, memory)


def sweep_table(result: dict[str, Any]) -> str:
    """Seconds of the table, and how many times those of one program."""
    steps = result["steps all"]
    ones = {name.removeprefix("table "): one for name, one in result.items() if name.startswith("table")}
    base = ones["together"]["seconds"]
    rows = [[f"{name}: {one['runs']} trials", *(f"{one[k]:.0f}" for k in ("seconds", "processor seconds")),
             f"{one['seconds'] / base:.2f}"] for name, one in ones.items()]  # fmt: skip
    rows.append(["a step of all, ms: together", f"{steps['together']:.0f}", "", "1.00"])
    rows.append(
        ["a step of all, ms: one by one", f"{steps['apart']:.0f}", "", f"{steps['apart'] / steps['together']:.2f}"]
    )
    return text_table(["the table", "seconds", "processor seconds", "against together"], rows)


TABLES = {
    "train": train_table, "decompose": decompose_table, "methods": methods_table, "generate": generate_table,
    "load": load_table, "data": data_table, "distill": distill_table, "sweep": sweep_table,
}  # fmt: skip


def main() -> None:
    """The subcommands."""
    if sys.argv[1:2] == ["part"]:
        kind, name, folder, options = sys.argv[2:]
        return part(kind, name, Path(folder), argparse.Namespace(**json.loads(options)))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    decoding = commands.add_parser("generate", help="decoding against transformers")
    decoding.add_argument("--batch_size", type=int, default=32)
    decoding.add_argument("--prompt", type=int, default=32, help="tokens")
    decoding.add_argument("--new", type=int, default=64, help="tokens")
    decoding.add_argument("--rounds", type=int, default=2)
    loading = commands.add_parser("load", help="memory of loading")
    feeding = commands.add_parser("data", help="the loader against training")
    feeding.add_argument("--data", type=Path, required=True, help="the E2E folder")
    feeding.add_argument("--model", default="nano-gpt")
    feeding.add_argument("--batch_size", type=int, default=8)
    feeding.add_argument("--steps", type=int, default=10, help="of training, measured")
    feeding.add_argument("--warmup", type=int, default=2)
    feeding.add_argument("--rounds", type=int, default=3)
    teaching = commands.add_parser("distill", help="a teacher's cost")
    teaching.add_argument("--data", type=Path, required=True, help="the E2E folder")
    teaching.add_argument("--model", default="nano-gpt")
    teaching.add_argument("--layers", type=int, nargs="+", default=(0, 3), help="of the model, the student's")
    teaching.add_argument("--batch_size", type=int, default=32)
    teaching.add_argument("--steps", type=int, default=8, help="of a side in a round")
    teaching.add_argument("--rounds", type=int, default=5)
    grouping = commands.add_parser("sweep", help="a table as one program")
    grouping.add_argument("--task", default="vowels", help="vowels or reverse")
    grouping.add_argument("--trials", type=int, default=16, help="the first so many of ranks x rates")
    grouping.add_argument("--steps", type=int, default=150, help="of a trial")
    grouping.add_argument("--batch_size", type=int, default=32)
    grouping.add_argument("--rounds", type=int, default=5, help="of the steps alone")
    for command in (decoding, loading, feeding, teaching, grouping):
        command.add_argument("--seed", type=int, default=0)
    for name, about in (
        ("train", "against transformers"),
        ("decompose", "one gain at a time"),
        ("methods", "of adapters"),
    ):
        command = commands.add_parser(name, help=about)
        command.add_argument("--data", type=Path, required=True, help="the E2E folder")
        command.add_argument("--tokenizer", type=Path, required=True)
        command.add_argument("--model", default="gpt2-small-shape")
        command.add_argument("--batch_size", type=int, default=8)
        command.add_argument("--steps", type=int, default=20, help="measured, in a round of a side")
        command.add_argument("--warmup", type=int, default=3)
        command.add_argument("--rounds", type=int, default=2)
        command.add_argument("--seed", type=int, default=0)
    return measure(parser.parse_args())


if __name__ == "__main__":
    main()
