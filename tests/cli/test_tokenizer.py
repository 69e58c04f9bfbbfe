"""`ftjax tokenizer train`: a folder that transformers loads, and what it prints."""

import pytest
from transformers import AutoTokenizer

from ftjax.cli.main import main


@pytest.fixture
def run(tmp_path, capsys):
    """run(*flags) -> (exit code, stdout, stderr), in a folder with a.txt and b.txt."""
    (tmp_path / "a.txt").write_text("ab ab\n")
    (tmp_path / "b.txt").write_text("ab cd")

    def call(*flags, train="train"):
        code = main(["tokenizer", train, *(flag.replace("@", f"{tmp_path}/") for flag in flags)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.mark.parametrize("files", [["--input=@a.txt,@b.txt"], ["--input=@a.txt", "--input=@b.txt"]])
def test_learns_and_measures(run, tmp_path, files):
    flags = ["--kind=bpe", *files, "--output=@new/out", "--special=<x>"]
    code, out, err = run(*flags, "--vocab_size=11")  # four special ones and <x>, a b c d and the mark, one merge
    assert code == 0, err
    assert "11 ids; 2.250 tokens a word and 1.222 bytes a token over 4 words" in out  # (2, 2, 2, 3) of 11 bytes
    loaded = AutoTokenizer.from_pretrained(tmp_path / "new" / "out")
    assert len(loaded) == 11 and loaded.eos_token == "</s>" and loaded.convert_tokens_to_ids("<x>") == 10
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]
    assert run(*flags, "--vocab_size=12")[0] == 0  # in its place
    assert len(AutoTokenizer.from_pretrained(tmp_path / "new" / "out")) == 12


@pytest.mark.parametrize("flags, words", [
    (["--kind=bpe", "--input=@a.txt", "--vocab_size=20"], ["--output"]),
    (["--kind=bpe", "--output=@out", "--vocab_size=20"], ["--input"]),
    (["--kind=pbe", "--input=@a.txt", "--output=@out", "--vocab_size=20"], ["'pbe'", "wordpiece"]),
    (["--kind=bpe", "--input=@no.txt", "--output=@out", "--vocab_size=20"], ["no.txt", "no such file"]),
    (["--kind=bpe", "--input=@a.txt", "--output=@out", "--vocab_size=6"], ["vocab_size", "give 1 more"]),
    (["--kind=bpe", "--input=@a.txt", "--output=@a.txt/out", "--vocab_size=20"], ["cannot write"]),
    (["--kind=bpe", "--input=@a.txt", "--output=@out", "--vocab_size=20", "--sentinels=-1"], ["sentinels"]),
])  # fmt: skip
def test_bad_input(run, tmp_path, flags, words):
    code, _, err = run(*flags)
    assert code == 2 and len(err.splitlines()) == 1 and all(word in err for word in words), err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_only_train(run):
    code, _, err = run(train="learn")
    assert code == 2 and "tokenizer train" in err
