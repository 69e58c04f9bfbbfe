"""Every method on real weights: all-MiniLM-L6-v2 on MRPC, from the same 2,000 pairs.

    python -m experiments.minilm_mrpc --model=MINILM_DIR --data=MRPC_DIR --workdir=runs/minilm_mrpc

Two epochs at batch size 32, mean pooling, no dropout; the checkpoint is the best on the validation pairs, accuracy is
on the test pairs with a 95% bootstrap interval. Rates are one guess a method, not tuned. Always answering "equivalent"
scores 66.5%. Over an hour on 2 CPU cores. An interrupted table goes on where it stopped; a finished one is
written to `experiments/results/minilm_mrpc.md`.
"""

import argparse
from pathlib import Path
from typing import Any

from configs.default import get_config
from ftjax.files import write_text
from ftjax.sweep.render import text_table
from ftjax.train.evaluate import evaluate_split
from ftjax.train.loop import train
from ftjax.train.report import commit
from ftjax.train.restore import load_run

COMMON = {
    "steps": 126, "batch_size": 32, "eval_every": 63, "task.max_train_rows": 2000, "data.overlong": "truncate",
    "model.pooling": "mean", "model.dropout": 0.0,
}  # fmt: skip
ALL = {"method.targets": ("all_linear",)}
TRIALS: dict[str, tuple[str, float, dict[str, Any]]] = {  # row -> method, rate, fields
    "full": ("full", 1e-4, {}),
    "head": ("head", 1e-2, {}),
    "top_layers, 2": ("top_layers", 3e-4, {}),
    "gradual, rates / 2.6 a layer": (
        "gradual",
        3e-4,
        {"optimizer.unfreeze_every": 0.25, "optimizer.layer_decay": 0.385},
    ),
    "bitfit": ("bitfit", 2e-3, {}),
    "lora, rank 8": ("lora", 1e-3, ALL),
    "dora, rank 8": ("lora", 1e-3, {**ALL, "method.dora": True}),
    "pissa, rank 8": ("lora", 3e-4, {**ALL, "method.pissa": True}),
    "ia3": ("ia3", 1e-2, {}),
    "adapter, houlsby 16": ("adapter", 1e-3, {}),
    "adapter, pfeiffer 16": ("adapter", 1e-3, {"method.kind": "pfeiffer"}),
    "prompt, 20": ("prompt", 3e-2, {}),
    "prefix, 10": ("prefix", 1e-2, {"method.definition": "peft"}),
    "p_tuning, 3 + 3": ("p_tuning", 1e-3, {}),
    "llama_adapter, 10": ("llama_adapter", 1e-2, {}),
}
HEADER = ("method", "rate", "trainable", "share", "validation", "test", "95% interval", "examples/s", "step MB")


def main() -> None:
    """Runs what is missing, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--workdir", type=Path, default=Path("runs/minilm_mrpc"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = []
    for name, (method, rate, fields) in TRIALS.items():
        print(f"\n== {name}", flush=True)
        axes = f"model={args.model},task=mrpc,method={method}"
        default, config = get_config(axes), get_config(axes)
        more = {"seed": args.seed, "task.data": args.data, "optimizer.learning_rate": rate}
        config.update_from_flattened_dict(COMMON | more | fields)
        workdir = args.workdir / name.replace(",", "").replace(" / ", "-").replace(" ", "-")
        result = train(config, default, workdir)
        test, _ = evaluate_split(*load_run(workdir), "test")
        low, high = test["accuracy_interval"]
        count, total = result["trainable_parameters"], result["total_parameters"]
        rows.append([
            name, f"{rate:g}", f"{count:,}", f"{100 * count / total:.3g}%", f"{100 * result['best']['value']:.1f}",
            f"{100 * test['accuracy']:.1f}", f"{100 * low:.1f} to {100 * high:.1f}",
            f"{result['examples_per_second']:,.0f}", f"{result['step_memory_bytes'] / 1e6:.0f}",
        ])  # fmt: skip
        print(" ".join(rows[-1]), flush=True)
    table = text_table(HEADER, rows)
    command = "python -m experiments.minilm_mrpc --model=all-MiniLM-L6-v2 --data=DIR"
    facts = f"`{command}`, seed {args.seed}, commit {commit()}."
    text = f"# MiniLM on MRPC\n\n{(__doc__ or '').strip()}\n\n{facts}\n\n{table}\n"
    write_text(Path(__file__).parent / "results" / "minilm_mrpc.md", text)
    print("\n" + table)


if __name__ == "__main__":
    main()
