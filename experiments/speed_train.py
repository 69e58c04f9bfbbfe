"""The parts of `experiments.speed` that train: the sides, and ftjax with one thing switched off.

Each part runs in a process of its own, so imports are local: transformers' side loads no jax.
"""

import argparse
import json
import random
import resource
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

LORA = {"rank": 4, "alpha": 8.0}
SHARED = {"data.layout": "packed", "data.shared_prompts": 8, "data.row_length": 256}  # a row a batch, of 8 on average
SIDES = {  # side -> the part that runs it, its method
    f"{part}{more} {method}": (part + more, method)
    for method in ("full", "lora")
    for part, more in (("transformers", ""), ("ftjax", ""), ("ftjax", " shared"))
}
KERNEL = "attention by jax.nn"


def small_model(folder: Path, tokenizer_files: Path, seed: int) -> None:
    """A Hugging Face directory: GPT-2 small's shape, random weights, no dropout, GPT-2's tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    files = [str(tokenizer_files / name) for name in ("encoder.json", "vocab.bpe")]
    bpe = Tokenizer(models.BPE.from_file(*files))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, bos_token=end, pad_token=end).save_pretrained(folder)
    torch.manual_seed(seed)
    GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).save_pretrained(folder)


def ftjax_config(folder: Path, method: str, batch_size: int, seed: int) -> Any:
    """The config of a run on the sample in `folder`, in length buckets: on a CPU the cheaper layout."""
    from configs import default

    config = default.get_config(f"model={folder / 'model'},task=e2e,method={method}")
    config.task.files.train = str(folder / "sample.jsonl")
    config.batch_size, config.seed, config.model.dropout, config.data.layout = batch_size, seed, 0.0, "buckets"
    if method == "lora":
        config.method.update(**LORA, targets=("q", "v"))
    return config


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Writes the model, a sample of E2E (`sample.jsonl`) and its token ids and labels (`encoded.json`): all rows of
    randomly chosen meaning representations, in random order."""
    from configs import default
    from ftjax import hub
    from ftjax.data.bad import BadRows
    from ftjax.data.encode import encode_lm
    from ftjax.data.encoded import Collector
    from ftjax.data.tasks import TASKS
    from ftjax.train.fields import Fields

    task, config = TASKS["e2e"], default.get_config("task=e2e").task
    config.data = str(args.data)
    rows = task.load(Fields(config), "train", BadRows())
    steps = args.warmup + args.steps * (1 if args.command == "train" else args.rounds)
    rng, known = random.Random(args.seed), {}
    for row in rows:
        text: Any = task.example(row, "")
        known.setdefault(text.prompt, []).append(row)
    rows = [row for family in rng.sample([*known.values()], len(known)) for row in family][: args.batch_size * steps]
    rng.shuffle(rows)
    (folder / "sample.jsonl").write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    if args.model == "gpt2-small-shape":
        small_model(folder / "model", args.tokenizer, args.seed)
    else:
        (folder / "model").symlink_to(Path(args.model).resolve())
    tokenizer = hub.tokenizer(folder / "model")
    texts: Any = [task.example(row, tokenizer.eos_token) for row in rows]
    encoded = encode_lm(texts, tokenizer, Collector(config.max_length))
    examples = (encoded[i] for i in range(len(encoded)))
    lists = [{"input_ids": x.tokens.tolist(), "labels": x.labels.tolist()} for x in examples]
    (folder / "encoded.json").write_text(json.dumps(lists))


def transformers_side(folder: Path, method: str, args: argparse.Namespace) -> dict[str, float]:
    """Runs `Trainer` once over the examples; imports no jax, so that its memory is its own."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    still = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, **still)
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules=["c_attn"], fan_in_fan_out=True)
        model = get_peft_model(model, lora)
    tokens: list[int] = []
    pad = transformers.DataCollatorForSeq2Seq(tokenizer, padding=True)

    def collate(examples: list[dict]) -> Any:
        tokens.append(sum(len(e["input_ids"]) - 1 for e in examples))  # the last token predicts nothing
        return pad(examples)

    class Times(transformers.TrainerCallback):
        ends: list[float] = []  # noqa: RUF012 - one run

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    options = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=args.batch_size, num_train_epochs=1,
        train_sampling_strategy="group_by_length", max_grad_norm=1.0, seed=args.seed, save_strategy="no",
        logging_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    times = Times()
    data = json.loads((folder / "encoded.json").read_text())
    trainer = transformers.Trainer(model, options, collate, data, callbacks=[times])
    trainer.train()
    steps = len(times.ends) - args.warmup
    seconds = times.ends[-1] - times.ends[args.warmup - 1]
    return rates(seconds, steps, args.batch_size * steps, sum(tokens[args.warmup :]), 0.0)


def rates(seconds: float, steps: int, examples: int, tokens: int, compile_seconds: float) -> dict[str, float]:
    """What a side reports."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {
        "examples/s": examples / seconds, "tokens/s": tokens / seconds, "ms/step": 1000 * seconds / steps,
        "peak GB": memory, "compile s": compile_seconds,
    }  # fmt: skip


class Run:
    """One ftjax run: `steps` trains on batches of `plan`."""

    def __init__(self, config: Any, objective: Any = None, every_gradient: bool = False):
        """objective: (model) -> Objective in place of the task's; every_gradient: do not cut the backward pass."""
        import jax
        import optax

        from ftjax import tree
        from ftjax.train.build import build, load_data
        from ftjax.train.compiled import Compiled
        from ftjax.train.fields import Fields
        from ftjax.train.flops import step_flops
        from ftjax.train.optimizer import make_optimizer
        from ftjax.train.step import init_state, make_step

        f = Fields(config)
        parts = build(f)
        self.loader = load_data(f, parts, "train", training=True).loader
        labels = parts.labels
        if every_gradient:
            labels = jax.tree.map(lambda name: "still" if name == tree.FREEZE else name, labels)
        train, self.frozen = tree.split(parts.variables, labels)
        names = tree.split(labels, labels)[0]
        if every_gradient:
            groups = dict.fromkeys(("lora_a", "lora_b"), optax.adam(1e-4))
            tx = optax.multi_transform({"still": optax.set_to_zero(), **groups}, names)
        else:
            tx, _ = make_optimizer(f.optimizer, names, 10**6, 10**3)
        self.state = init_state(train, tx)
        loss = (objective(parts.model) if objective else parts.objective).loss
        self.compiled, self.key = Compiled(make_step(loss, tx), donate_argnums=0), jax.random.key(config.seed)
        self.plan = self.loader.plan(0)
        sited = jax.eval_shape(parts.method.expand, parts.variables["adapters"], parts.variables["params"])
        # the work of a step of the plan's first shape
        self.flops = step_flops(parts.model.cfg, parts.labels, parts.variables, sited, *self.loader.shapes[0])

    def compile(self) -> None:
        """A step of each shape."""
        self.steps({batch.length: batch for batch in self.plan}.values())

    def steps(self, plans: Any) -> tuple[float, int, int]:
        """Trains on these planned batches: (seconds without compilation, examples, tokens)."""
        import jax

        compiling, started, examples, tokens = self.compiled.seconds, time.perf_counter(), 0, 0
        for planned in plans:
            batch = self.loader.assemble(planned)
            examples += int(batch["segment_ids"].max(1).sum())
            tokens += int((batch["segment_ids"] != 0).sum())
            self.state, _ = self.compiled(self.state, self.frozen, batch, self.key)
        jax.block_until_ready(self.state)
        return time.perf_counter() - started - (self.compiled.seconds - compiling), examples, tokens


def ftjax_side(folder: Path, method: str, args: argparse.Namespace, **fields: Any) -> dict[str, float]:
    """Runs the train step once over the examples."""
    config = ftjax_config(folder, method, args.batch_size, args.seed)
    config.update_from_flattened_dict(fields)
    run = Run(config)
    run.compile()  # a compilation would hide the steps that run behind it
    run.steps(run.plan[: args.warmup])
    measured = run.plan[args.warmup : -1]  # the last batch of an epoch may be half empty
    seconds, examples, tokens = run.steps(measured)
    return rates(seconds, len(measured), examples, tokens, run.compiled.seconds)


def logits_everywhere(model: Any) -> Any:
    """The task's loss from logits of every position, kept whole `[B, T, V]` and differentiated by JAX, as a plain step
    would."""
    import jax.numpy as jnp

    from ftjax.objectives.base import IGNORE, Objective, Sums
    from ftjax.objectives.cross_entropy import cross_entropy

    def loss(variables: Any, batch: Any, key: Any) -> Sums:
        out = model.apply(
            variables, batch["input_ids"], segment_ids=batch["segment_ids"], position_ids=batch["position_ids"]
        )
        rows = jnp.arange(batch["labels"].shape[0])[:, None]
        where = jnp.where(batch["labels"] == IGNORE, batch["input_ids"].shape[1], batch["label_positions"])
        labels = jnp.full_like(batch["input_ids"], IGNORE).at[rows, where].set(batch["labels"], mode="drop")
        return Sums(cross_entropy(out.logits, labels)[0].sum(), jnp.sum(labels != IGNORE).astype(jnp.float32), {})

    return Objective(loss)


def plain_attention(q: Any, k: Any, v: Any, mask: Any, *_: Any, **__: Any) -> tuple[Any, None]:
    """What JAX has, in place of `ftjax.nn.attention.attend`."""
    import jax

    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla"), None


def decomposition(folder: Path, method: str, args: argparse.Namespace) -> dict[str, float]:
    """{what is switched: time per example over that of ftjax as it is}."""
    import jax

    from ftjax.nn import attention

    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))  # rounds after the first read it
    variants: dict[str, tuple[dict, dict]] = {  # fields of the config, arguments of Run
        "as it is": ({}, {}),
        "packed rows": ({"data.layout": "packed"}, {}),
        "packed rows, shared prompts": (SHARED, {}),
        "one length for all": ({"data.buckets": 1}, {}),
        "logits at every position": ({}, {"objective": logits_everywhere}),
        "layers in a scan": ({"model.scan_unroll": 1}, {}),
        KERNEL: ({}, {}),
    }
    if method == "lora":
        variants["gradients of frozen parameters"] = ({}, {"every_gradient": True})
    per_example: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(args.rounds):  # rebuilt in each: all states at once would not fit beside each other
        for name, (fields, options) in variants.items():
            config = ftjax_config(folder, method, args.batch_size, args.seed)
            config.update_from_flattened_dict(fields)
            attend = plain_attention if name == KERNEL else attention.attend
            with patch.object(attention, "attend", attend):
                run = Run(config, **options)
                run.compile()
            plan = run.plan[:-1]  # the last batch of an epoch may be half empty
            seconds, examples, _ = run.steps(
                plan[n % len(plan)] for n in range(turn * args.steps, (turn + 1) * args.steps)
            )
            per_example[name].append(seconds / examples)
    base = per_example["as it is"]
    return {name: statistics.median(a / b for a, b in zip(x, base)) for name, x in per_example.items()}


MEASURED = {  # the first trains below every layer, and costs nothing itself
    "frozen forward and input gradient": {"method.targets": ("embed",), "method.rank": 1},
    "lora": {"method.rank": 4, "method.targets": ("q", "v")},
    "ia3": {},
    "adapter": {"method.kind": "pfeiffer", "method.size": 16},
    "prefix": {"method.definition": "peft", "method.length": 10},
}


def methods(folder: Path, method: str, args: argparse.Namespace) -> dict[str, Any]:
    """{method: [step time over that of a frozen forward pass and its input's gradient, the same of the analytic work]},
    medians over rounds, all in turn in one process."""
    from ftjax.methods import METHODS

    runs = {}
    for name, fields in MEASURED.items():
        config = ftjax_config(folder, name if name in METHODS else "lora", args.batch_size, args.seed)
        config.update_from_flattened_dict(fields)
        runs[name] = Run(config)
    for run in runs.values():
        run.steps(run.plan[:1])
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(args.rounds):
        for name, run in runs.items():
            seconds[name].append(run.steps(run.plan[turn * args.steps : (turn + 1) * args.steps])[0])
    base = next(iter(runs))
    return {
        name: [statistics.median(a / b for a, b in zip(seconds[name], seconds[base])), run.flops / runs[base].flops]
        for name, run in runs.items()
    }


PARTS = {
    "transformers": transformers_side, "ftjax": ftjax_side, "ftjax shared": partial(ftjax_side, **SHARED),
    "decomposition": decomposition, "methods": methods,
}  # fmt: skip
