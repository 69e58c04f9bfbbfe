"""A tiny BERT with a WordPiece tokenizer of its own, and configs of runs of it."""

import functools
import json

import jax
import numpy as np
import pytest

import ftjax
from configs.default import get_config
from ftjax import tree
from ftjax.data.tokenizer import train_tokenizer
from ftjax.train.build import build
from ftjax.train.fields import Fields

TEXT = "the cat sat on a mat and Anna ran home to Rome by the sea . who sat ? where did Bob run again ? in Oslo , "


@pytest.fixture(autouse=True)
def as_runs(mesh):
    """Under their mesh."""


@pytest.fixture(scope="session")
def bert(make, tmp_path_factory):
    """A Hugging Face folder: a tiny BERT with random weights, without dropout; words that are not in TEXT are several
    pieces."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "text.txt").write_text(TEXT * 20 + "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ " * 2)
    tokenizer = train_tokenizer("wordpiece", [folder / "text.txt"], 160)
    tokenizer.save_pretrained(folder)
    made = make("bert", vocab_size=len(tokenizer), max_positions=64, num_layers=1)
    params = tree.map_paths(lambda path, x: 0 * x if path.endswith("norm/bias") else x, made.params)  # tokens differ so
    ftjax.save(folder, made.model, params, extra={"pad_token_id": 0})
    return folder


@pytest.fixture(scope="session")
def gpt(make, tmp_path_factory):
    """A Hugging Face folder: a tiny GPT-2 with random weights and a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("gpt")
    (folder / "text.txt").write_text(TEXT * 20)
    tokenizer = train_tokenizer("byte_bpe", [folder / "text.txt"], 400)
    tokenizer.save_pretrained(folder)
    made = make("gpt2", vocab_size=len(tokenizer), max_positions=192, num_layers=1)
    ftjax.save(folder, made.model, made.params, extra={"pad_token_id": 0, "eos_token_id": 0})
    return folder


@pytest.fixture
def write(tmp_path):
    """write(name, rows) -> the path of a .jsonl in this test's folder."""

    def rows(name, values):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        return str(path)

    return rows


@pytest.fixture
def configure(bert, write):
    """configure(task, method, train rows, validation rows, field=value, ...) -> (config, default)."""

    def get(task, method, train, validation, **fields):
        default = get_config(f"model={bert},task={task},method={method}")
        default.data.buckets = 1  # a shape is a program
        config = default.copy_and_resolve_references()
        small = {"steps": 3, "batch_size": 4, "eval_batch_size": 4, "task.max_length": 24}
        files = {"train": train, "validation": validation}
        small |= {f"task.files.{name}": write(name, rows) for name, rows in files.items()}
        config.update_from_flattened_dict(small | {"optimizer.warmup": 0.0} | fields)
        return config, default

    return get


@pytest.fixture
def prepare(configure):
    """prepare(as configure) -> (fields, parts), before any training."""

    def get(*args, **fields):
        f = Fields(configure(*args, **fields)[0])
        return f, build(f)

    return get


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _forward(model, expand, head, variables, ids, mask, types):
    variables = {**variables, "adapters": expand(variables["adapters"], variables["params"])}
    hidden = model.apply(variables, ids, mask, token_type_ids=types, method="hidden").last_hidden
    return model.apply(variables, hidden, method=head) if head else hidden


@pytest.fixture(scope="session")
def forward():
    """forward(parts, ids, head, token types) -> hidden states of one sequence [T, D], or what a method of the model
    (logits, classify) makes of each."""

    def get(parts, ids, head=None, types=(), length=56):
        padded, mask, kinds = np.zeros((3, 1, length), np.int32)
        padded[0, : len(ids)], mask[0, : len(ids)] = ids, 1
        kinds[0, : len(types)] = types[:length]
        return np.asarray(_forward(parts.model, parts.method.expand, head, parts.variables, padded, mask, kinds))[0]

    return get
