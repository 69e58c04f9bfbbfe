"""`ftjax generate`: text to the terminal and files of answers that a killed run goes on with."""

import errno
import json
import shutil

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import ftjax
from ftjax.cli.generate import Start, stops_of, tokens_of
from ftjax.cli.main import main
from ftjax.data.encode import encode_lm, encode_seq2seq
from ftjax.data.encoded import Collector
from ftjax.data.tasks.task import Text
from ftjax.data.tokenizer import train_tokenizer
from ftjax.decode import batches
from ftjax.decode.records import appending
from ftjax.train.evaluate import prompt_of

PLAIN = "<|user|>\n\n<|assistant|>\n"  # what the template of that name puts around a prompt
PROMPTS = ["abc", "the cat", "x", "once upon a time", "zz"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory, make):
    """A tiny GPT-2 with a byte tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    made = make("gpt2", max_positions=64, vocab_size=257)
    ftjax.save(folder, made.model, made.params)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "<|endoftext|>"])}, []))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def run(directory, capsys):
    """run(*flags) -> (exit code, stdout, the lines of ours on stderr)."""

    def call(*flags):
        code = main(["generate", f"--model={directory}", "--max_new_tokens=6", *flags])
        said = capsys.readouterr()
        return code, said.out, [line for line in said.err.splitlines() if line.startswith("ftjax: ")]

    return call


@pytest.fixture
def answer(run, tmp_path):
    """answer(*flags, prompts) -> as run, of a file of prompts; and where the answers are."""
    output = tmp_path / "out.jsonl"

    def call(*flags, prompts=PROMPTS):
        rows = "".join(json.dumps({"prompt": p, "id": i}) + "\n" for i, p in enumerate(prompts))
        (tmp_path / "in.jsonl").write_text(rows)
        return run(f"--input={tmp_path / 'in.jsonl'}", f"--output={output}", "--batch_size=2", *flags)

    call.output, call.said = output, tmp_path / "out.jsonl.options.json"
    return call


def test_text(run):
    code, out, _ = run("--prompt=abc", "--prompt=the cat", "--do_sample", "--seed=3")
    assert code == 0 and out.startswith("abc") and "the cat" in out
    code, streamed, _ = run("--prompt=abc", "--do_sample", "--seed=3", "--stream")
    assert code == 0 and streamed.startswith("abc") and out.startswith(streamed)


@pytest.mark.parametrize("added", ["$A </s>", "</s> $A", "<pad> $A </s>", "$A"])  # </s> and <pad> are bos in turn
def test_a_prompt_is_encoded_as_in_training(make, tmp_path, added):
    (tmp_path / "text.txt").write_text("the cat sat on a mat, a cat\n" * 20)
    tokenizer = train_tokenizer("unigram", [tmp_path / "text.txt"], 40)
    assert tokenizer("cat")["input_ids"][-1] == tokenizer.eos_token_id
    tokenizer.bos_token = "<pad>" if added.startswith("<pad>") else "</s>"
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<pad>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(added, special_tokens=special)
    texts = [Text(prompt, " a mat") for prompt in ("the cat sat", f"{tokenizer.bos_token}the cat")]
    starts = {name: Start(make(name).model, {}, None, {}, tokenizer, list, 0, {}) for name in ("gpt2", "t5")}

    encoded = encode_lm(texts, tokenizer, Collector(40))
    for i, text in enumerate(texts):
        assert tokens_of(starts["gpt2"], text.prompt, "") == prompt_of(encoded, i)
    encoded = encode_seq2seq(texts, tokenizer, 0, Collector(40))
    for i, text in enumerate(texts):
        assert tokens_of(starts["t5"], text.prompt, "") == prompt_of(encoded, i)
    closed, bare = (tokens_of(starts["t5"], text, "") for text in ("the cat</s>", "the cat"))
    assert closed == bare + [tokenizer.eos_token_id] * (not added.endswith("</s>"))  # not a second one


def test_stops(run):
    _, out, _ = run("--prompt=abc", "--do_sample", "--seed=3", "--temperature=5")
    letter = out[len("abc") + 2]
    code, cut, _ = run("--prompt=abc", "--do_sample", "--seed=3", "--temperature=5", f"--stop={letter}")
    assert code == 0 and cut.rstrip("\n") == "abc" + out[len("abc") :].split(letter)[0]


def test_stops_that_are_special_tokens():
    """By their ids, whether or not the tokenizer has a name for them."""
    made = Tokenizer(models.WordLevel({"a": 0, "<eos>": 1, "<|eot_id|>": 2, "<b>": 3}, unk_token="a"))
    made.add_special_tokens(["<eos>", "<|eot_id|>"])
    made.add_tokens(["<b>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")
    assert stops_of(tokenizer, ["a", "<|eot_id|>", "<b>"]) == ([2], ["a", "<b>"])


def test_a_file_of_answers_is_gone_on_with(answer, monkeypatch):
    monkeypatch.setattr(batches, "WINDOW", 1)
    flags = ("--do_sample", "--num_return_sequences=2", "--seed=1")
    code, said, err = answer(*flags)
    assert code == 0 and "5 prompts answered" in said, err
    whole = answer.output.read_bytes()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [row["id"] for row in rows] == [0, 1, 2, 3, 4] and [row["prompt"] for row in rows] == PROMPTS
    assert all(len(row[name]) == 2 for row in rows for name in ("continuations", "scores", "tokens"))
    assert all(score < 0 for row in rows for score in row["scores"])

    lines = whole.splitlines(keepends=True)
    answer.output.write_bytes(b"".join(lines[:3]) + lines[3][:-7])  # killed while it wrote the fourth
    code, said, _ = answer(*flags)
    # whole batches of two, as they were
    assert code == 0 and "3 prompts answered, 2 were there" in said and answer.output.read_bytes() == whole
    code, said, _ = answer(*flags)
    assert code == 0 and "0 prompts answered" in said and answer.output.read_bytes() == whole

    code, _, err = answer("--do_sample", "--num_return_sequences=2", "--seed=2")
    assert code == 2 and len(err) == 1 and "seed was 1, is 2" in err[0]
    code, _, err = answer(*flags, prompts=PROMPTS[::-1])
    assert code == 2 and "input was" in err[0] and answer.output.read_bytes() == whole
    code, _, err = answer(*flags, "--batch_size=3")
    assert code == 2 and "batch_size was 2, is 3" in err[0]


def test_a_file_without_a_record_is_not_begun(answer):
    for wrong in (["--top_k=3"], ["--stop=x", "--num_beams=2"], ["--stop_id=257"], ["--seed=3000000000"]):
        code, _, err = answer(*wrong)
        assert code == 2 and len(err) == 1 and not list(answer.output.parent.glob("out*")), err
    answer.output.write_text('{"prompt": "abc", "i')
    answer.said.write_text('{"seed": 7}')
    assert answer()[0] == 0 and json.loads(answer.said.read_text())["seed"] == 0
    answer.said.write_text("[]")
    code, _, err = answer()
    assert code == 2 and "not a JSON object" in err[0]


def test_what_json_cannot_say(answer, run, tmp_path):
    rows = ['{"prompt": "abc", "score": NaN, "half": "\\ud800", "in": [Infinity]}', '{"prompt": "\u00e9"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    flags = (f"--input={tmp_path / 'rows.jsonl'}", f"--output={answer.output}", "--batch_size=2")
    assert run(*flags)[0] == 0
    first, second = map(json.loads, answer.output.read_text().splitlines())
    assert (first["score"], first["half"], first["in"], second["prompt"]) == (None, "\ud800", [None], "\u00e9")


def test_a_file_is_one_process_s(answer, monkeypatch):
    with appending(answer.output, {}, total=5, together=2):
        code, _, err = answer()
        assert code == 2 and len(err) == 1 and "another process" in err[0]

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, _, err = answer()
    assert code == 2 and len(err) == 1 and "cannot write to" in err[0] and "No space left" in err[0]


def test_spaces_of_sentencepiece(directory, answer, run, tmp_path):
    words = {f"\u2581w{i}": i for i in range(257)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="\u2581w0"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    shutil.copytree(directory, tmp_path / "model")
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    model, prompt = f"--model={tmp_path / 'model'}", "w97 w98 w99"
    assert answer(model, prompts=[prompt])[0] == 0
    row = json.loads(answer.output.read_text())
    expected = "".join(f" w{token}" for token in row["tokens"][0])
    assert row["continuations"] == [expected]
    for flags in ([], ["--stream"]):
        assert run(model, f"--prompt={prompt}", *flags)[1] == f"{prompt}{expected}\n"
    assert run(model, f"--prompt={prompt}", "--stop= ")[1] == f"{prompt}\n"


def test_beams_of_a_file(answer):
    code, _, err = answer("--num_beams=3", "--num_return_sequences=3", "--beam_rule=lora", prompts=PROMPTS[:2])
    assert code == 0, err
    for line in answer.output.read_text().splitlines():
        scores = json.loads(line)["scores"]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("flags, words", [
    ([], ["--prompt", "--input"]),
    (["--prompt=a", "--input=x.jsonl"], ["either"]),
    (["--input=x.jsonl"], ["--output"]),
    (["--input=nowhere.jsonl", "--output=out.jsonl"], ["nowhere.jsonl"]),
    (["--prompt=a", "--prompt=b", "--stream"], ["one --prompt"]),
    (["--prompt=a", "--stream", "--num_beams=2"], ["only one sequence"]),
    (["--prompt=a", "--stop=x", "--num_beams=2"], ["stop ids"]),
    (["--prompt=a", "--stop=<|endoftext|>", "--num_beams=2", "--stop_id=257"], ["257"]),  # it is no string
    (["--prompt=a", "--stop="], ["empty"]),
    (["--prompt=a", "--stop=x<|endoftext|>"], ["--stop='x<|endoftext|>'", "<|endoftext|> is a special token"]),
    (["--prompt="], ["--prompt=''", "bos"]),
    (["--prompt=a", "--chat"], ["no chat template", "--chat_template"]),
    (["--prompt=a", "--system=b"], ["--chat"]),
    (["--prompt=" + "a" * 60, "--chat", "--chat_template=plain"], [f"{60 + len(PLAIN)} tokens"]),
    (["--prompt=" + "a" * 60, "--chat", "--chat_template=plain", "--system=Hi"], [f"{60 + len(PLAIN) + 14} tokens"]),
    (["--prompt=" + "a" * 60], ["60 tokens", "room for 58"]),
    (["--prompt=a", "--num_beams=2", "--do_sample"], ["num_beams=2"]),
    (["--prompt=a", "--num_return_sequences=2"], ["num_return_sequences=2"]),
])  # fmt: skip
def test_bad_input(run, flags, words):
    code, _, err = run(*flags)
    assert code == 2 and len(err) == 1 and all(word in err[0] for word in words), err


@pytest.mark.parametrize("row, word", [
    ('{"text": "a"}', "no text under 'prompt'"),
    ('{"prompt": 3}', "no text under 'prompt'"),
    ('{"prompt": "a", "scores": 1}', "has scores already"),
    ('{"prompt": ""}', "bos"),
    (json.dumps({"prompt": "a" * 60}), "60 tokens"),
    ('{"prompt": "a\\ud800"}', "character 2 of the prompt is half a surrogate pair"),
    ('{"prompt": ', "not JSON"),
])  # fmt: skip
def test_bad_rows_are_named(run, tmp_path, row, word):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n' + row + "\n")
    code, _, err = run(f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.jsonl'}")
    assert code == 2 and len(err) == 1 and "in.jsonl:2" in err[0] and word in err[0], err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_file_of_others_is_left_alone(answer):
    answer.output.write_text("notes\n")
    code, _, err = answer()
    assert code == 2 and "exists" in err[0] and answer.output.read_text() == "notes\n"
