"""Folders of a tiny student and its teacher with a tokenizer of ten words, and configs of runs with them."""

import json

import numpy as np
import pytest

import ftjax
from configs.default import get_config
from ftjax.data.tokenizer import train_tokenizer

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "ran", "home", "again")
SGD = {"optimizer.momentum": 0.0, "optimizer.schedule": "constant", "optimizer.warmup": 0.0, "optimizer.clip": 0.0}


@pytest.fixture(scope="module")
def folder(make, tmp_path_factory):
    """Folders of a GPT-2 `student`, a deeper, wider Llama `teacher`, one with `other` tokens, a T5; rows of `lm` and
    of `classification`."""
    root, rng = tmp_path_factory.mktemp("distill"), np.random.default_rng(0)
    sentence = lambda n: " ".join(rng.choice(WORDS, n))  # noqa: E731
    for split, n in (("train", 12), ("validation", 5)):
        rows = [json.dumps({"prompt": sentence(2), "completion": " " + sentence(3)}) + "\n" for _ in range(n)]
        (root / f"lm-{split}.jsonl").write_text("".join(rows))
        rows = [json.dumps({"text": sentence(3), "label": ("no", "yes")[i % 2]}) + "\n" for i in range(n)]
        (root / f"classification-{split}.jsonl").write_text("".join(rows))
    for name, text in (("", " ".join(WORDS)), ("other", "abcdefghij klmnopqrstuvwxyz")):
        (root / "text.txt").write_text(text * 20)
        tokenizer = train_tokenizer("byte_bpe", [root / "text.txt"], 280)
        size = dict(vocab_size=len(tokenizer), max_positions=40)
        student, teacher = {**size, "num_layers": 1}, {**size, "num_layers": 2, "hidden_size": 24}
        models = {"student": make("gpt2", **student), "teacher": make("llama", **teacher)}
        encoder = make("t5").cfg.encoder.replace(vocab_size=len(tokenizer), num_layers=1)
        models["seq2seq"] = make("t5", vocab_size=len(tokenizer), num_layers=1, encoder=encoder)
        for kind, made in models.items() if not name else [("other", models["teacher"])]:
            ends = {"eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": 0}
            ftjax.save(root / kind, made.model, made.params, extra=ends)
            tokenizer.save_pretrained(root / kind)
    return root


@pytest.fixture(scope="module")
def configure(folder):
    """configure(distill, method, field=value, ...) -> (config, default) of plain gradient descent."""

    def get(distill="token", method="full", task="lm", **fields):
        default = get_config(f"model={folder / 'student'},task={task},method={method},distill={distill},optimizer=sgd")
        default.data.buckets = 1  # a shape is a program
        config = default.copy_and_resolve_references()
        files = {f"task.files.{split}": str(folder / f"{task}-{split}.jsonl") for split in ("train", "validation")}
        common = {"task.max_length": 32, "batch_size": 4, "steps": 3, "eval_every": 3, "log_every": 1,
                  "optimizer.learning_rate": 0.1}  # fmt: skip
        config.update_from_flattened_dict(common | files | SGD | fields)
        return config, default

    return get


@pytest.fixture(scope="module")
def live(folder):
    """The field that names the teacher."""
    return {"distill.teacher": str(folder / "teacher")}
