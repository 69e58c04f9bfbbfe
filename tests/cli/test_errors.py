"""Bad input on the command line: one line that names the thing and the mend, exit code 2, nothing half-written."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import ftjax
from ftjax.cli.main import main

LENGTH = ["--config.task.max_length=100"]
SIZES = [
    "--config.task.max_length=100",
    "--config.steps=2",
    "--config.eval_every=2",
    "--config.batch_size=4",
    "--config.eval_batch_size=4",
]
ROWS = ["--config.task.train_size=16", "--config.task.validation_size=4", "--config.task.test_size=4"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory, make):
    """A tiny GPT-2 with a character tokenizer, as a Hugging Face directory."""
    folder = tmp_path_factory.mktemp("model")
    made = make("gpt2", max_positions=128, vocab_size=257, num_layers=1)
    ftjax.save(folder, made.model, made.params)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*alphabet, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}  # no pad token
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def train(directory, tmp_path, capsys):
    """train(axes, *flags) -> (exit code, stderr, workdir)."""

    def run(axes, *flags, model=None):
        workdir = tmp_path / "run"
        config = f"--config=configs/default.py:model={model or directory},{axes}"
        code = main(["train", config, f"--workdir={workdir}", *LENGTH, *SIZES, *flags])
        return code, capsys.readouterr().err, workdir

    return run


def expect(outcome, *words):
    """Exit code 2, one line with these words, no workdir."""
    code, err, workdir = outcome
    mine = [line for line in err.splitlines() if line.startswith("ftjax: ") and "newly initialised" not in line]
    assert code == 2 and len(mine) == 1, err
    assert all(word in mine[0] for word in words), mine[0]
    assert not workdir.exists()


@pytest.mark.parametrize("axis", ["task", "method", "optimizer", "mesh", "distill"])
def test_unknown_axis_value_lists_what_exists(train, axis):
    expect(train(f"{axis}=nonsense"), axis, "nonsense")


def test_unknown_axis(train):
    expect(train("colour=red"), "colour", "method")


def test_unknown_field(train):
    expect(train("task=reverse", "--config.method.ranks=4"), "--config has no such field: 'ranks'")


def test_unused_field(train):
    expect(train("task=reverse,method=full", *ROWS, "--config.steps=2", "--config.epochs=3"), "config.epochs=3")


def test_no_such_model(train, tmp_path):
    expect(train("task=reverse", model=tmp_path / "nowhere"), "nowhere")


def test_missing_file(train):
    flags = ["--config.task.files.train=no.jsonl", "--config.task.files.validation=no.jsonl"]
    expect(train("task=e2e", *flags), "no.jsonl")


def test_wrong_column_names_those_there_are(train, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\na,b\n")
    flags = [f"--config.task.files.train={file}", f"--config.task.files.validation={file}"]
    expect(train("task=e2e", *flags), "rows.csv", "question", "task.columns.context")


def test_empty_split(train, tmp_path):
    full, empty = tmp_path / "a.csv", tmp_path / "b.csv"
    full.write_text("context,completion\na,b\n")
    empty.write_text("context,completion\n")
    expect(train("task=e2e", f"--config.task.files.train={full}", f"--config.task.files.validation={empty}"), "b.csv")


def test_label_outside_the_classes(train, tmp_path):
    file = tmp_path / "rows.tsv"
    file.write_text("sentence\tlabel\ngood\t1\nodd\t7\n")
    flags = [f"--config.task.files.train={file}", f"--config.task.files.validation={file}"]
    expect(train("task=sst2", *flags), "rows.tsv:3", "7", "negative")


def test_sequence_over_the_maximum(train, tmp_path):
    expect(train("task=reverse", *ROWS, "--config.task.max_length=1000"), "1000", "128")
    expect(train("task=reverse", *ROWS, "--config.task.max_length=20"), "20")


def test_pattern_that_matches_no_site(train):
    expect(train("task=reverse,method=lora", *ROWS, "--config.method.targets=('query',)"), "query", "layers/attn/q")


def test_corrupt_weights(train, directory, tmp_path):
    copy = tmp_path / "model"
    copy.mkdir()
    for file in directory.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    expect(train("task=reverse", *ROWS, model=copy), "model.safetensors")
    weights.write_bytes(whole)
    tensors = load_file(weights)
    name = next(iter(tensors))
    tensors[name] = np.zeros((3, 3), np.float32)
    save_file(tensors, weights)
    expect(train("task=reverse", *ROWS, model=copy), name.removeprefix("transformer."))


def test_workdir_of_another_config_and_a_tokenizer_without_pad(train):
    code, err, workdir = train("task=reverse,method=lora", *ROWS)
    assert code == 0, err
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    code, err, _ = train("task=reverse,method=lora", *ROWS, "--config.seed=1")
    assert code == 2 and "seed" in err and "--workdir" in err
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ([], "usage"),
        (["dance"], "dance"),
        (["train", "--colour=red"], "Unknown command line flag 'colour'\n"),
        (["train", "stray"], "stray"),
        (["eval"], "--workdir"),
        (["eval", "--workdir=nowhere"], "nowhere"),
        (["eval", "--workdir=nowhere", "--config.seed=1"], "--config.seed: it is as in the run of --workdir"),
        (["generate", "--model=nano-gpt"], "--prompt"),
    ],
)
def test_bad_command_lines(capsys, argv, word):
    assert main(argv) == 2
    said = capsys.readouterr()
    assert word in said.out + said.err


TEACH = ["teach", "--config=configs/default.py:distill=token", "--config.distill.teacher=nano-gpt"]


@pytest.mark.parametrize("argv", [
    ["export", "--workdir=run", "--output=gs://b/x"], ["merge", "--workdir=run", "--output=gs://b/x"],
    ["import", "--adapter=a", "--model=nano-gpt", "--workdir=gs://b/x"],
    ["generate", "--model=nano-gpt", "--input=a.jsonl", "--output=gs://b/x"],
    ["generate", "--model=nano-gpt", "--output=b.jsonl", "--input=gs://b/x"],
    ["embed", "--model=nano-bert", "--input=a.txt", "--output=gs://b/x"],
    ["embed", "--model=nano-bert", "--query=a", "--index=gs://b/x"],
    ["score", "--predictions=a.jsonl", "--metrics=bleu", "--per_example=gs://b/x"],
    ["self-instruct", "--seeds=a.jsonl", "--model=nano-gpt", "--output=gs://b/x"],
    ["tokenizer", "train", "--kind=bpe", "--input=a.txt", "--vocab_size=9", "--output=gs://b/x"],
    [*TEACH, "--output=gs://b/x"], [*TEACH, "--sequences", "--output=a.jsonl", "--hypotheses=gs://b/x"],
])  # fmt: skip
def test_what_is_no_run_does_not_lie_in_a_bucket(capsys, argv):
    assert main(argv) == 2
    assert f"{argv[-1]}: give a path of this machine" in capsys.readouterr().err


def test_a_reader_that_has_read_enough():
    """As behind `| head`: no traceback."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "ftjax", "help"], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("command", ["train", "eval", "generate"])
def test_help(capsys, command):
    assert main([command, "--help"]) == 0
    assert "--workdir" in capsys.readouterr().out
