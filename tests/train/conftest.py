"""Configs of an optimizer, as the shipped ones; a tiny GPT-2 and data to train it on."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import ftjax
from configs import optimizer
from configs.default import get_config

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "ran", "home", "again")


@pytest.fixture(scope="session")
def optimizer_config():
    """optimizer_config(name, field=value, ...): the defaults but for a constant rate without warm-up and clipping."""

    def get(name="adamw", **fields):
        cfg = optimizer.get(name)
        cfg.update(dict(schedule="constant", warmup=0.0, clip=0.0) | fields)
        return cfg

    return get


@pytest.fixture(scope="session")
def model(make, tmp_path_factory):
    """A Hugging Face folder of a tiny GPT-2 with its dropouts on, and a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, "<eos>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    rates = dict.fromkeys(("embed_dropout", "attention_dropout", "hidden_dropout"), 0.1)
    made = make("gpt2", vocab_size=257, **rates)
    ftjax.save(folder, made.model, made.params)
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A text of 60 lines, and 20 and 9 labelled sentences."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    sentence = lambda: " ".join(rng.choice(WORDS, 5))  # noqa: E731
    (folder / "text.txt").write_text("\n".join(sentence() for _ in range(60)))
    for split, n in (("train", 20), ("validation", 9)):
        rows = [json.dumps({"sentence": sentence(), "label": i % 2}) + "\n" for i in range(n)]
        (folder / f"{split}.jsonl").write_text("".join(rows))
    return folder


@pytest.fixture(scope="session")
def configure(model, files):
    """configure(task, method, field=value, ...) -> (config, default)."""

    def get(task, method, **fields):
        default = get_config(f"model={model},task={task},method={method}")
        common = {"batch_size": 8, "optimizer.warmup": 0.0, "log_every": 2}
        tasks = {
            "text": {"task.data": str(files / "text.txt"), "task.max_length": 32, "steps": 12},
            "sst2": {f"task.files.{x}": str(files / f"{x}.jsonl") for x in ("train", "validation")}
            | {"task.max_length": 32, "data.buckets": 1},
        }
        config = default.copy_and_resolve_references()
        config.update_from_flattened_dict(common | tasks[task] | fields)
        return config, default

    return get
