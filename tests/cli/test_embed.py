"""`ftjax embed`: vectors of transformers' hidden states, whatever the order and the padding; files, search, errors."""

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from huggingface_hub.utils import filter_repo_objects

import ftjax
from ftjax import hub
from ftjax.cli.main import main
from ftjax.data.around import Around
from ftjax.data.tokenizer import train_tokenizer
from ftjax.errors import UserError

WORDS = "the cat sat on a mat and the dog ran to the old red house by the sea while they sang of rain. (don't) "
TEXTS = [
    "the cat sat on a mat", "they sang, of rain...", "the old red house by the sea while the dog ran to a mat (don't)",
    "rain", "a dog and a cat", "the sea",
]  # fmt: skip
MINILM = Path(__file__).parents[2].parent / "shared" / "models" / "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(family) -> a directory of a tiny random model with a tokenizer, written by transformers."""
    made = {}

    def get(family):
        if family in made:
            return made[family]
        path = made[family] = tmp_path_factory.mktemp(family)
        (path / "text.txt").write_text(WORDS * 20)
        kind = {"bert": "wordpiece", "gpt2": "byte_bpe", "t5": "unigram"}[family]
        tokenizer = train_tokenizer(kind, [path / "text.txt"], 300 if family == "gpt2" else 110)
        tokenizer.save_pretrained(path)
        torch.manual_seed(0)
        vocab = dict(vocab_size=len(tokenizer), num_hidden_layers=1, hidden_size=16, num_attention_heads=2)
        if family == "bert":
            sizes = dict(intermediate_size=24, max_position_embeddings=32, pad_token_id=0)
            model = hf.BertModel(hf.BertConfig(**vocab, **sizes))
        elif family == "gpt2":
            model = hf.GPT2Model(hf.GPT2Config(**vocab, n_positions=32))
        else:
            model = hf.T5ForConditionalGeneration(hf.T5Config(**vocab, d_kv=8, d_ff=24, decoder_start_token_id=0))
        for name, p in model.named_parameters():
            torch.nn.init.normal_(p, float("norm" in name or "ln" in name) * name.endswith("weight"), 0.3)
        model.eval().save_pretrained(path)
        return path

    return get


@pytest.fixture(scope="module")
def loaded(folder):
    """loaded(family) -> (model, params, tokenizer, transformers' hidden states of one text)."""

    def get(family):
        path = folder(family)
        model, params = ftjax.load(path, head="none")
        cls = {"bert": hf.BertModel, "gpt2": hf.GPT2Model, "t5": hf.T5EncoderModel}[family]
        theirs, tokenizer = cls.from_pretrained(path).eval(), hub.tokenizer(path)

        def hidden(text):
            ids = tokenizer(text)["input_ids"]
            ids += [tokenizer.eos_token_id] if family == "gpt2" else []  # as decoders learn what a row is
            with torch.no_grad():
                return theirs(torch.tensor([ids])).last_hidden_state[0].numpy()

        return model, params, tokenizer, hidden

    return get


REDUCE = {"mean": lambda h: h.mean(0), "first": lambda h: h[0], "last": lambda h: h[-1], "max": lambda h: h.max(0)}


@pytest.mark.parametrize("family, pooling", [
    *(("bert", pooling) for pooling in REDUCE), ("gpt2", "last"), ("gpt2", "mean"), ("t5", "mean"),
])  # fmt: skip
def test_vectors_of_transformers(loaded, family, pooling):
    """One text at a time there, all in two padded batches here, whatever their order."""
    model, params, tokenizer, hidden = loaded(family)
    expected = np.stack([REDUCE[pooling](hidden(text)) for text in TEXTS])
    for order in ([0, 1, 2, 3, 4, 5], [3, 2, 5, 0, 4, 1]):
        found = ftjax.embed(model, params, tokenizer, [TEXTS[i] for i in order], pooling=pooling, batch_size=4)
        np.testing.assert_allclose(found, expected[order], rtol=1e-4, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    unit = ftjax.embed(model, params, tokenizer, TEXTS, pooling=pooling, normalise=True, batch_size=4)
    np.testing.assert_allclose(unit, found[np.argsort(order)] / np.linalg.norm(expected, axis=1)[:, None], atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_words_are_the_means_of_their_pieces(loaded, family):
    model, params, tokenizer, hidden = loaded(family)
    found = ftjax.embed_words(model, params, tokenizer, TEXTS, batch_size=4)
    assert found[1].words == ["they", "sang", ",", "of", "rain", "..."]
    assert found[2].words[-3:] == ["(", "don't", ")"]
    for text, (words, vectors) in zip(TEXTS[1:3], found[1:3]):
        spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        at, states = 0, hidden(text)
        for word, vector in zip(words, vectors, strict=True):
            begin = text.index(word, at)
            at = begin + len(word)
            own = [i for i, (start, end) in enumerate(spans) if end > begin and start < at and end > start]
            np.testing.assert_allclose(vector, states[own].mean(0), rtol=1e-4, atol=1e-5)
    assert max(len(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in found[2].words) > 1


def test_texts_that_are_cut(loaded, caplog):
    model, params, tokenizer, _ = loaded("bert")
    long = "the cat sat on a mat"
    cut, short, _ = ftjax.embed(model, params, tokenizer, [long, "the cat sat", "rain"], max_length=5)
    assert "1 of 3 texts are cut to 5 tokens" in caplog.text
    np.testing.assert_allclose(cut, short, rtol=1e-5, atol=1e-6)
    [words, _] = ftjax.embed_words(model, params, tokenizer, [long, "rain"], max_length=5)
    assert words.words == ["the", "cat", "sat"]
    np.testing.assert_allclose(words.vectors.mean(0) * 3, _inner(loaded, "the cat sat"), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="max_length=33: give 3 or more, at most 32"):
        ftjax.embed(model, params, tokenizer, [long], max_length=33)
    with pytest.raises(UserError, match="pooling='sum'"):
        ftjax.embed(model, params, tokenizer, [long], pooling="sum")
    with pytest.raises(UserError, match="no texts"):
        ftjax.embed(model, params, tokenizer, [])


def _inner(loaded, text):
    return loaded("bert")[3](text)[1:-1].sum(0)


@pytest.fixture
def run(folder, tmp_path, capsys):
    """run(*flags, texts) -> (exit code, stdout, the lines of ours on stderr), on in.txt or in.jsonl."""

    def call(*flags, texts=TEXTS, file="in.txt", model=True):
        if not file:
            pass
        elif file == "in.txt":
            (tmp_path / file).write_text("".join(text + "\n" for text in texts))
        else:
            (tmp_path / file).write_text("".join(json.dumps({"text": text, "id": 7}) + "\n" for text in texts))
        source = [f"--input={tmp_path / file}"] if file else []
        code = main(["embed", *([f"--model={folder('bert')}"] if model else []), *source, *flags])
        said = capsys.readouterr()
        return code, said.out, [line for line in said.err.splitlines() if line.startswith("ftjax: ")]

    return call


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files(run, tmp_path, loaded):
    expected = ftjax.embed(*loaded("bert")[:3], TEXTS, pooling="max")
    code, out, err = run(f"--output={tmp_path / 'out.npy'}", "--pooling=max")
    assert code == 0 and not err and "6 rows" in out
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    code, _, err = run(f"--output={tmp_path / 'out.jsonl'}", "--pooling=max", file="in.jsonl")
    rows = lines(tmp_path / "out.jsonl")
    assert code == 0 and [(row["text"], row["id"]) for row in rows] == [(text, 7) for text in TEXTS]
    np.testing.assert_array_equal(np.array([row["vector"] for row in rows], np.float32), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "in.txt", "out.jsonl", "out.npy"]


def test_a_sentence_transformers_folder(run, tmp_path, loaded, folder):
    path, out = shutil.copytree(folder("bert"), tmp_path / "st"), tmp_path / "out.npy"

    def write(pooling, *modules, **length):
        listed = [("Transformer", ""), ("Pooling", "1_Pooling"), *((name, "2_" + name) for name in modules)]
        rows = [{"type": f"sentence_transformers.models.{name}", "path": part} for name, part in listed]
        (path / "modules.json").write_text(json.dumps(rows))
        (path / "1_Pooling").mkdir(exist_ok=True)
        (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))
        (path / "sentence_bert_config.json").write_text(json.dumps(length))

    def vectors(*flags):
        code, _, err = run(f"--model={path}", f"--output={out}", *flags, model=False)
        return np.load(out) if code == 0 else err[0]

    write({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "Normalize", max_seq_length=6)
    embed = partial(ftjax.embed, *loaded("bert")[:3], TEXTS)
    np.testing.assert_array_equal(vectors(), embed(pooling="first", normalise=True, max_length=6))
    flags = ["--pooling=max", "--nonormalise", "--max_length=7"]
    np.testing.assert_array_equal(vectors(*flags), embed(pooling="max", max_length=7))
    write({"pooling_mode_lasttoken": True}, "Dense")
    assert "modules.json: Dense is not here; --pooling" in vectors()
    np.testing.assert_array_equal(vectors("--pooling=max"), embed(pooling="max"))
    write({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True})
    assert "pooling by max_tokens and mean_tokens; here it is by one of cls_token" in vectors()


def test_what_of_a_hub_s_folders_is_read(monkeypatch):
    """The settings of sentence-transformers' modules, and no other weights than the model's."""
    there = ["config.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "onnx/config.json", "a/1_b/c.json"]
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, **patterns: "/".join(["", *filter_repo_objects(there, **patterns)]),
    )
    assert str(hub.files.resolve("a/b", weights=False)) == "/config.json/1_Pooling/config.json"


def test_words_in_files(run, tmp_path, loaded):
    code, _, err = run(f"--output={tmp_path / 'out.jsonl'}", "--level=word")
    assert code == 0 and not err
    for row, (words, vectors) in zip(lines(tmp_path / "out.jsonl"), ftjax.embed_words(*loaded("bert")[:3], TEXTS)):
        assert row["words"] == words
        np.testing.assert_array_equal(np.array(row["vectors"], np.float32), vectors)
    code, again, _ = run(f"--index={tmp_path / 'out.jsonl'}", "--level=word", "--query=rain sea", "--json", file="")
    assert code == 0 and run("--level=word", "--query=rain sea", "--json")[1].replace("in.txt", "out.jsonl") == again
    first, second = map(json.loads, again.splitlines())
    assert [first["query"], second["query"]] == ["rain", "sea"] and len(first["nearest"]) == 5


def test_search(run, tmp_path):
    code, out, err = run("--query=the cat sat on a mat", "--query=rain", "--top=2")
    assert code == 0 and not err
    first, best, _, second, other, _ = out.splitlines()
    assert first == "the cat sat on a mat:" and second == "rain:"
    assert best == f"1.0000  {tmp_path / 'in.txt'}:1  the cat sat on a mat"
    assert other.startswith("1.0000") and other.endswith("in.txt:4  rain")
    run(f"--output={tmp_path / 'out.npy'}", "--normalise")
    flags = "--query=the cat sat on a mat", "--query=rain", "--top=2"
    assert run(f"--index={tmp_path / 'out.npy'}", *flags)[1] == out
    run(f"--output={tmp_path / 'out.jsonl'}")
    found = run(f"--index={tmp_path / 'out.jsonl'}", *flags, file="")[1]
    assert found == out.replace("in.txt", "out.jsonl")


def test_a_run_s_vectors(run, folder, tmp_path, monkeypatch, caplog):
    """With the pooling and the length that it was trained with, and its method's tokens around the text."""
    model, params = ftjax.load(folder("bert"), head="none", pooling="first")
    tokenizer = hub.tokenizer(folder("bert"))
    cat, sea = (tokenizer.convert_tokens_to_ids(word) for word in ("cat", "sea"))
    special = frozenset([tokenizer.cls_token_id]), frozenset([tokenizer.sep_token_id])
    parts = SimpleNamespace(
        model=model, tokenizer=tokenizer, variables={"params": params, "adapters": {}},
        method=SimpleNamespace(expand=lambda adapters, params: adapters),
        around=Around((cat, sea), (sea,), True, *special),
    )  # fmt: skip
    f = SimpleNamespace(task=SimpleNamespace(max_length=5))
    monkeypatch.setattr("ftjax.train.restore.load_run", lambda workdir: (f, parts))
    code, _, err = run(
        "--workdir=x", f"--output={tmp_path / 'out.npy'}", texts=["the dog", "the old red house"], model=False
    )
    assert code == 0 and not err and "1 of 2 texts are cut to 5 tokens" in caplog.text
    expected = ftjax.embed(
        model, params, tokenizer, ["cat sea the dog sea", "cat sea the old red sea"], pooling="first"
    )  # fmt: skip
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-5, atol=1e-6)
    parts.around = parts.around._replace(left=(cat,), mask=tokenizer.mask_token_id)
    code, _, err = run("--workdir=x", f"--output={tmp_path / 'out.npy'}", texts=["a [MASK]", "the dog"], model=False)
    assert code == 2 and "in.txt:2: the method puts tokens next to a gap" in err[0] and "[MASK] alone" in err[0]


@pytest.mark.parametrize("flags, words", [
    ([], ["--output", "--query"]),
    (["--output=x/out.npy"], ["x/out.npy", "a folder that is there"]),
    (["--output=out.csv"], ["out.csv", ".jsonl or .npy"]),
    (["--output=out.npy", "--level=word"], ["out.npy", "word", ".jsonl"]),
    (["--query=a", "--level=word", "--pooling=max"], ["--pooling"]),
    (["--query=a", "--workdir=x"], ["either"]),
    (["--query=a", "--index=a.jsonl"], ["--input", "--index"]),
    (["--query=a", "--index=none.npy"], ["none.npy", "cannot be read"]),
    (["--query=a", "--output=out.npy", "--index=a.npy"], ["--index"]),
    (["--query= "], ["--query=' '", "empty"]),
    (["--query=a", "--column=title"], ["in.jsonl:1", "no text under 'title'", "text, id"]),
    (["--query=a", "--max_length=40"], ["max_length=40", "at most 32"]),
])  # fmt: skip
def test_bad_flags(run, flags, words):
    code, out, err = run(*flags, file="in.jsonl")
    assert code == 2 and not out and len(err) == 1 and all(word in err[0] for word in words), err


def test_bad_texts(run, tmp_path):
    for file in ("in.txt", "in.jsonl"):
        code, _, err = run("--query=a", texts=["a", " ", "b"], file=file)
        assert code == 2 and len(err) == 1 and f"{file}:2: " in err[0] and "empty" in err[0], err
    code, _, err = run("--query=a", "--level=word", texts=["a", "b \x00 c"])
    assert code == 2 and "in.txt:2: the tokenizer makes no token of the word '\\x00'" in err[0]


def test_bad_indexes(run, tmp_path, folder):
    index = tmp_path / "out.jsonl"
    for row, words in (
        ({"text": "a"}, ["out.jsonl:1", "no vector", "--level"]),
        ({"text": "a", "vector": ["x"]}, ["out.jsonl", "numbers"]),
        ({"text": "a", "vector": [1.0, 2.0]}, ["2 wide", "16"]),
    ):
        index.write_text(json.dumps(row))
        code, _, err = run("--query=a", f"--index={index}", file="")
        assert code == 2 and len(err) == 1 and all(word in err[0] for word in words), err
    np.save(tmp_path / "out.npy", np.zeros((4, 16)))
    code, _, err = run("--query=a", f"--index={tmp_path / 'out.npy'}")
    assert code == 2 and "[4, 16]" in err[0] and "6 rows" in err[0]
    index.write_text(json.dumps({"text": "a", "vector": [1.0]}))
    code, _, err = run(f"--input={index}", f"--output={tmp_path / 'new.jsonl'}", file="")
    assert code == 2 and "has vector already" in err[0]


minilm = pytest.mark.skipif(not MINILM.is_dir(), reason=f"all-MiniLM-L6-v2 is not at {MINILM}")
SENSES = {
    "bat": [
        ("The favorite food of this species of bat is mosquitoes.", "A bat hung from the roof of the cave.",
         "The bat hunts insects at night by echolocation."),
        ("The cricketer picked up his bat and walked to the crease.", "He hit the ball for six with his bat.",
         "The batsman raised his bat after scoring a century."),
    ],
    "cardinal": [
        ("The cardinal isn't just a lawn decoration; the species makes themselves useful by eating mosquitoes.",
         "A red cardinal sang from the branch of a tree.", "The cardinal fed its chicks in the nest."),
        ("The cardinal celebrated mass at the Vatican.", "The pope named a new cardinal from Brazil.",
         "The cardinal was elected by the bishops in Rome."),
    ],
}  # fmt: skip


@minilm
@pytest.mark.parametrize("word", SENSES)
def test_words_of_one_sense_are_nearer(word):
    model, params = ftjax.load(MINILM, head="none")
    texts = [text for sense in SENSES[word] for text in sense]
    found = ftjax.embed_words(model, params, hub.tokenizer(MINILM), texts, normalise=True)
    own = np.stack([vectors[words.index(word)] for words, vectors in found])
    cosines, same = own @ own.T, np.kron(np.eye(2), np.ones((3, 3)))
    others = same - np.eye(6)
    mine, theirs = (cosines * others).sum(1) / 2, (cosines * (1 - same)).sum(1) / 3
    assert (mine > theirs).all(), (mine, theirs)  # each use is nearer to those of its sense
    assert mine.mean() - theirs.mean() > 0.02


@minilm
def test_sentence_transformers_recipe():
    """Mean pooling over the mask, and vectors of length 1, as the model's card computes them in torch."""
    theirs, tokenizer = hf.BertModel.from_pretrained(MINILM, dtype=torch.float32).eval(), hub.tokenizer(MINILM)
    texts = [text for senses in SENSES.values() for sense in senses for text in sense]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden, mask = theirs(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    model, params = ftjax.load(MINILM, head="none")
    np.testing.assert_allclose(ftjax.embed(model, params, tokenizer, texts, normalise=True), expected, atol=1e-5)
