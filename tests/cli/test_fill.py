"""`ftjax fill`: the words of transformers' fill-mask, its output, and errors."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf

import ftjax
from ftjax.cli.main import main
from ftjax.data.around import Around
from ftjax.data.tokenizer import train_tokenizer

WORDS = "the cat sat on a mat and the dog ran to the old red house by the sea while they sang of rain. "
TEXTS = ["the [MASK] sat on a mat.", "they [MASK] of [MASK] by the old sea while the dog ran"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A small BERT with random weights, far from uniform, written by transformers."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "text.txt").write_text(WORDS * 20)
    tokenizer = train_tokenizer("wordpiece", [folder / "text.txt"], 100)
    tokenizer.save_pretrained(folder)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    torch.manual_seed(0)
    config = hf.BertConfig(vocab_size=100, **sizes, max_position_embeddings=24, initializer_range=0.7, pad_token_id=0)
    hf.BertForMaskedLM(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture
def run(directory, capsys):
    """run(*flags) -> (exit code, stdout, the lines of ours on stderr)."""

    def call(*flags, model=directory):
        code = main(["fill", *([f"--model={model}"] if model else []), *flags])
        said = capsys.readouterr()
        return code, said.out, [line for line in said.err.splitlines() if line.startswith("ftjax: ")]

    return call


def test_the_words_of_transformers(run, directory):
    code, out, err = run(*(f"--text={text}" for text in TEXTS), "--json")
    assert code == 0, err
    pipeline = hf.pipeline("fill-mask", model=str(directory), tokenizer=str(directory), top_k=5)
    for text, line in zip(TEXTS, out.splitlines(), strict=True):
        row, theirs = json.loads(line), pipeline(text)
        theirs = theirs if isinstance(theirs[0], list) else [theirs]
        assert row["text"] == text
        for mine, expected in zip(row["masks"], theirs, strict=True):
            assert [each["id"] for each in mine] == [each["token"] for each in expected]
            assert [each["word"] for each in mine] == [each["token_str"] for each in expected]
            probabilities = [each["probability"] for each in mine]
            np.testing.assert_allclose(probabilities, [each["score"] for each in expected], rtol=1e-5, atol=1e-6)
            assert probabilities[0] > 2 * probabilities[-1]
    assert json.loads(out.splitlines()[0])["filled"] == pipeline(TEXTS[0])[0]["sequence"]


def test_text(run):
    _, out, _ = run(*(f"--text={text}" for text in TEXTS), "--json")
    _, second = map(json.loads, out.splitlines())
    _, out, _ = run(f"--text={TEXTS[1]}", "--top=2")
    first, *_ = lines = out.splitlines()
    assert first == f"{second['masks'][0][0]['probability']:.4f}  {second['masks'][0][0]['word']}"
    assert len(lines) == 2 + 1 + 2 + 1 + 1 and lines[-1] == second["filled"]  # alone as beside a longer text


def test_a_mask_of_the_tokenizer_s_own(run, directory, tmp_path):
    for file in directory.iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace("[MASK]", "<mask>")) if file.suffix == ".json" else (
            (tmp_path / file.name).write_bytes(file.read_bytes())
        )
    expected = run("--text=the [MASK] sat")
    assert expected[0] == 0
    for text in ("the [MASK] sat", "the <mask> sat"):
        assert run(f"--text={text}", model=tmp_path) == expected


def test_a_run_s_words_around_the_text(run, directory, monkeypatch):
    """Anchor words of the method go behind [CLS] and before [SEP]; the text is filled as if it had them."""
    model, params = ftjax.load(directory)
    tokenizer = hf.AutoTokenizer.from_pretrained(directory)
    cat, sea = (tokenizer.convert_tokens_to_ids(word) for word in ("cat", "sea"))
    special = frozenset([tokenizer.cls_token_id]), frozenset([tokenizer.sep_token_id])
    parts = SimpleNamespace(
        model=model, tokenizer=tokenizer, variables={"params": params, "adapters": {}},
        method=SimpleNamespace(expand=lambda adapters, params: adapters),
        around=Around((cat, sea), (sea,), True, *special),
    )  # fmt: skip
    monkeypatch.setattr("ftjax.train.restore.load_run", lambda workdir: (None, parts))
    code, out, err = run("--workdir=x", "--text=the [MASK] sat", "--json", model=None)
    assert code == 0, err
    expected = json.loads(run("--text=cat sea the [MASK] sat sea", "--json")[1])
    assert json.loads(out)["masks"] == expected["masks"] and "sea" not in json.loads(out)["filled"]
    text = "the " * 18 + "[MASK]"  # with [CLS], [SEP] and the three words, 24
    assert run("--workdir=x", f"--text={text}", model=None)[0] == 0
    code, _, err = run("--workdir=x", f"--text=the {text}", model=None)
    assert code == 2 and "22 tokens" in err[0] and "room for 21" in err[0]
    parts.around = parts.around._replace(left=(cat,), mask=tokenizer.mask_token_id)
    code, _, err = run("--workdir=x", "--text=the [MASK]", "--text=a [MASK] a [MASK]", model=None)
    assert code == 2 and "--text='a [MASK] a [MASK]': the run's method puts tokens next to one gap" in err[0]


def test_a_run_without_the_head(run, make, monkeypatch):
    parts, f = SimpleNamespace(model=make("gpt2").model), SimpleNamespace(task=SimpleNamespace(name="e2e"))
    monkeypatch.setattr("ftjax.train.restore.load_run", lambda workdir: (f, parts))
    code, _, err = run("--workdir=x", "--text=a [MASK]", model=None)
    assert code == 2 and "task=e2e" in err[0] and "ftjax generate" in err[0]


def test_the_shipped_model(run):
    code, out, err = run("--text=The old man sat down by the [MASK] and lit his pipe.", model="nano-bert")
    assert code == 0 and "door" in out.split("\n\n")[0], err


def test_models_without_the_head(run, directory, tmp_path):
    code, _, err = run("--text=a [MASK]", model="nano-gpt")
    assert code == 2 and len(err) == 1 and "gpt2" in err[0] and "ftjax generate" in err[0]
    model, params = ftjax.load(directory, head="none")
    ftjax.save(tmp_path, model, params)
    code, _, err = run("--text=a [MASK]", model=tmp_path)
    assert code == 2 and len(err) == 1 and "cls.predictions.bias" in err[0] and "newly" not in err[0]


def test_a_tokenizer_without_a_mask(run, directory, tmp_path):
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"mask_token": None}))
    code, _, err = run("--text=a [MASK]", model=tmp_path)
    assert code == 2 and "no mask token" in err[0]


@pytest.mark.parametrize("flags, words", [
    ([], ["--text"]),
    (["--text=the cat"], ["'the cat'", "no [MASK]"]),
    (["--text=a [MASK]", "--workdir=x"], ["either"]),
    (["--text=" + "a " * 22 + "[MASK]"], ["25 tokens", "room for 24"]),
    (["--text=" + "a " * 40 + "[MASK]"], ["a...'", "43 tokens"]),
    (["--text=a [MASK]", "--top=101"], ["--top=101", "100"]),
    (["--text=a [MASK]", "--top=0"], ["top"]),
    (["--text=a \udcff [MASK]"], ["character 3", "surrogate"]),
])  # fmt: skip
def test_bad_input(run, flags, words):
    code, _, err = run(*flags)
    assert code == 2 and len(err) == 1 and all(word in err[0] for word in words), err
