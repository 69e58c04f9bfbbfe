"""Options by their likelihood: known ones, transformers', and what length, layout and padding may not change."""

import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers as hf
from scipy.special import log_softmax

import ftjax
from configs.default import get_config
from ftjax.data.encoded import IGNORED
from ftjax.errors import UserError
from ftjax.train.build import build, load_data
from ftjax.train.evaluate import evaluate_split
from ftjax.train.fields import Fields
from ftjax.train.loop import train

SHARED = Path(__file__).parents[2].parent / "shared"
ROWS = [
    {"prompt": "the cat sat on", "options": ["a mat", "the sea", "Rome"], "label": 0},
    {"prompt": "Anna ran home to", "options": ["Rome", "a mat by the sea"], "label": 0},
    {"prompt": "who", "options": ["sat ?", "cat"], "label": 1},
]
CLASSES = {
    "task.objective": "choice", "task.classes": ("bad", "good"), "task.template": "{text} was {mask} again.",
    "task.label_words": ("home", "Rome by the sea"),
}  # fmt: skip
TEXTS = [
    {"text": t, "label": s} for t, s in (("the cat", "good"), ("a mat", "bad"), ("Bob ran", "good"), ("a", "good"))
]


@pytest.fixture
def asked(prepare, gpt):
    """asked(field=value, ...) -> (fields, parts) of ROWS."""
    return lambda rows=ROWS, **fields: prepare("choice", "full", rows, rows, **{"model.path": str(gpt)} | fields)


@functools.cache
def read(folder):
    return hf.AutoTokenizer.from_pretrained(folder), hf.AutoModelForCausalLM.from_pretrained(folder).eval()


def of_torch(folder, prompt, option):
    """Log-likelihoods of an option's tokens."""
    tokenizer, model = read(folder)
    ids, first = tokenizer(prompt + option)["input_ids"], len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return np.asarray([log_p[i - 1, ids[i]] for i in range(first, len(ids))])


@pytest.mark.parametrize("by", ["tokens", "characters", "none"])
def test_scores_are_those_of_transformers(asked, gpt, by):
    result, rows = evaluate_split(*asked(**{"task.normalise": by}), "validation")
    right = []
    for row, found in zip(ROWS, rows):
        log_p = [of_torch(gpt, row["prompt"], " " + option) for option in row["options"]]
        over = {"tokens": map(len, log_p), "characters": map(len, row["options"]), "none": [1] * len(log_p)}[by]
        expected = [x.sum() / n for x, n in zip(log_p, over)]
        np.testing.assert_allclose(found["scores"], expected, rtol=1e-4)
        assert found["prediction"] == row["options"][int(np.argmax(expected))]
        assert found["reference"] == row["options"][row["label"]] and found["options"] == row["options"]
        right.append(log_p[row["label"]])
    assert result["accuracy"] == np.mean([row["correct"] for row in rows])
    np.testing.assert_allclose(result["loss"], -np.concatenate(right).mean(), rtol=1e-4)


def test_a_uniform_model(asked):
    """Each token has 1 / V: of the sums the fewest tokens win, over characters the longest tokens do."""
    scores = {}
    for by in ("none", "characters", "tokens"):
        f, parts = asked(**{"task.normalise": by})
        zero = jax.tree.map(np.zeros_like, parts.variables)
        scores[by] = [row["scores"] for row in evaluate_split(f, parts._replace(variables=zero), "validation")[1]]
    unit, tokenize = np.log(len(parts.tokenizer)), parts.tokenizer.tokenize
    for i, row in enumerate(ROWS):
        tokens = np.asarray([len(tokenize(" " + option)) for option in row["options"]])
        np.testing.assert_allclose(scores["none"][i], -unit * tokens, rtol=1e-5)
        np.testing.assert_allclose(scores["tokens"][i], [-unit] * len(tokens), rtol=1e-5)
        np.testing.assert_allclose(scores["characters"][i], -unit * tokens / [*map(len, row["options"])], rtol=1e-5)


LAYOUTS = [("packed", "right"), ("buckets", "right"), ("buckets", "left"), ("packed", "left")]


def test_packing_and_padding_change_nothing(asked):
    found = [
        evaluate_split(*asked(**{"data.layout": layout, "data.pad_side": side}), "validation")
        for layout, side in LAYOUTS
    ]
    for result, rows in found[1:]:
        np.testing.assert_allclose(result["loss"], found[0][0]["loss"], rtol=1e-5)
        for row, first in zip(rows, found[0][1], strict=True):
            np.testing.assert_allclose(row.pop("scores"), first["scores"], rtol=1e-4)
            assert row == {name: value for name, value in first.items() if name != "scores"}


def test_training_sees_the_right_options(asked):
    f, parts = asked()
    encoded = load_data(f, parts, "train", training=True).encoded
    assert [parts.tokenizer.decode(encoded[i].tokens) for i in range(3)] == [
        "the cat sat on a mat", "Anna ran home to Rome", "who cat",
    ]  # fmt: skip
    for i, row in enumerate(ROWS):
        labels = encoded[i].labels
        assert parts.tokenizer.decode(labels[labels != IGNORED]) == f" {row['options'][row['label']]}"


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_an_option_that_is_too_long_takes_its_example_along(asked, overlong):
    f, parts = asked(**{"task.max_length": 6, "data.overlong": overlong})
    encoded = load_data(f, parts, "validation", training=False).encoded
    assert encoded.rows.tolist() == [0, 0, 0, 2, 2] and (encoded.dropped, encoded.truncated) == (1, 0)
    assert [row["prompt"] for row in evaluate_split(f, parts, "validation")[1]] == ["the cat sat on", "who"]
    with pytest.raises(UserError, match=r"validation.jsonl:2: 10 tokens, more than max_length 6"):
        load_data(*asked(**{"task.max_length": 6}), "validation", training=False)


def test_truncate_left_takes_the_same_from_each_option_s_prompt(asked):
    f, parts = asked(**{"task.max_length": 7, "data.overlong": "truncate_left"})
    encoded = load_data(f, parts, "validation", training=False).encoded
    assert (encoded.dropped, encoded.truncated) == (0, 1)
    mine = [encoded[i] for i in np.flatnonzero(encoded.rows == 1).tolist()]
    assert [parts.tokenizer.decode(tokens) for tokens, _ in mine] == [" home to Rome", " home to a mat by the sea"]
    for (_, labels), option in zip(mine, ROWS[1]["options"]):
        assert parts.tokenizer.decode(labels[labels != IGNORED]) == f" {option}"
    f, parts = asked(**{"task.max_length": 5, "data.overlong": "truncate_left"})
    encoded = load_data(f, parts, "validation", training=False).encoded
    assert 1 not in encoded.rows and encoded.dropped == 1  # its prompt would be gone


def test_classes_by_what_follows_the_gap(prepare, gpt):
    f, parts = prepare("classification", "full", TEXTS, TEXTS, **CLASSES | {"model.path": str(gpt)})
    result, rows = evaluate_split(f, parts, "validation")
    for row, found in zip(TEXTS, rows):
        expected = [
            of_torch(gpt, row["text"] + " was", f" {word} again.").mean() for word in CLASSES["task.label_words"]
        ]
        np.testing.assert_allclose(found["scores"], expected, rtol=1e-4)
        assert found["prediction"] == ("bad", "good")[int(np.argmax(expected))] and found["text"] == row["text"]
    guess, gold = ([("bad", "good").index(row[name]) for row in rows] for name in ("prediction", "reference"))
    assert result["accuracy"] == np.mean(np.equal(guess, gold)) and "macro_f1" in result


@pytest.fixture
def begins(prepare, gpt, tmp_path):
    """begins(rows, tokens) -> (fields, parts) of options that no text precedes, by a tokenizer with these tokens."""

    def get(rows, **tokens):
        shutil.copytree(gpt, tmp_path / "model")
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
        config = {name: value for name, value in config.items() if name not in names} | tokens
        (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config))
        (tmp_path / "model" / "special_tokens_map.json").unlink(missing_ok=True)
        fields = CLASSES | {"model.path": str(tmp_path / "model"), "task.template": "{mask}: {text}"}
        return prepare("classification", "full", rows, rows, **fields)

    return get


@pytest.mark.parametrize("name", ["bos_token", "eos_token"])
def test_where_no_text_precedes_bos_does(begins, gpt, name):
    f, parts = begins(TEXTS, **{name: "<|endoftext|>"})
    encoded = load_data(f, parts, "validation", training=False).encoded
    first = parts.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert encoded[0].tokens.tolist() == [first, *parts.tokenizer("home: the cat")["input_ids"]]
    assert (encoded[0].labels != IGNORED).tolist() == [False] + [True] * (len(encoded[0].tokens) - 1)
    row = evaluate_split(f, parts, "validation")[1][0]
    expected = of_torch(gpt, "<|endoftext|>", "Rome by the sea: the cat").mean()
    np.testing.assert_allclose(row["scores"][1], expected, rtol=1e-4)


def test_where_neither_text_nor_bos_precedes(begins):
    with pytest.raises(UserError, match=r"^task.template='\{mask\}: \{text\}': no text before \{mask\}, and the tok"):
        load_data(*begins(TEXTS), "validation", training=False)


def test_where_all_rows_are_bad(prepare, gpt):
    rows = [{"text": "the c", "label": "good"}]
    fields = {"task.template": "{text}{mask}", "task.label_words": ("at", "at home"), "data.on_bad_row": "skip"}
    fields = CLASSES | {"model.path": str(gpt)} | fields
    with pytest.raises(UserError, match=r"^no example left: the first bad row is \S+jsonl:1: token '.*cat' spans"):
        load_data(*prepare("classification", "full", rows, rows, **fields), "validation", training=False)


def test_an_encoder_decoder(make, prepare, gpt, tmp_path):
    tokenizer = hf.AutoTokenizer.from_pretrained(gpt)
    tokenizer.save_pretrained(tmp_path / "t5")
    encoder = make("t5").cfg.encoder.replace(vocab_size=len(tokenizer), num_layers=1)
    made = make("t5", vocab_size=len(tokenizer), num_layers=1, encoder=encoder)
    ftjax.save(tmp_path / "t5", made.model, made.params, extra={"pad_token_id": 0, "decoder_start_token_id": 0})
    f, parts = prepare("choice", "full", ROWS, ROWS[:1], **{"model.path": str(tmp_path / "t5")})
    [row] = evaluate_split(f, parts, "validation")[1]
    source = np.asarray([tokenizer(ROWS[0]["prompt"])["input_ids"]])
    target = tokenizer("a mat")["input_ids"]
    start = np.asarray([[0, *target[:-1]]])
    logits = jax.jit(made.model.apply)({"params": made.params}, start, encoder_input_ids=source).logits[0]
    log_p = log_softmax(np.asarray(logits), -1)[np.arange(len(target)), target]
    np.testing.assert_allclose(row["scores"][0], log_p.mean(), rtol=1e-4)
    assert len(row["scores"]) == 3
    fields = CLASSES | {"model.path": str(tmp_path / "t5"), "task.template": "{mask}: {text}"}
    f, parts = prepare("classification", "full", TEXTS, TEXTS, **fields)
    encoded = load_data(f, parts, "validation", training=False).encoded
    assert len(encoded) == 8 and encoded.source is not None and encoded.source.lengths.tolist() == [1] * 8


def test_what_cannot_be_done(asked, prepare, bert):
    with pytest.raises(UserError, match=r"task\.normalise='length': give tokens, characters, none"):
        load_data(*asked(**{"task.normalise": "length"}), "validation", training=False)
    with pytest.raises(UserError, match="head='lm' is none of a bert model"):
        prepare("choice", "full", ROWS, ROWS)


@pytest.mark.parametrize("method", ["full", "prompt"])
def test_a_run(configure, gpt, tmp_path, method):
    config, default = configure("choice", method, ROWS, ROWS, **{"model.path": str(gpt), "steps": 25, "eval_every": 25})
    result = train(config, default, tmp_path / "run")
    assert result["best"]["metric"] == "accuracy" and result["metrics"]["loss"] < 5


def test_copa_by_a_trained_model():
    model, data = SHARED / "models" / "stories260K", SHARED / "data" / "fewglue_32dev" / "COPA"
    if not (model.is_dir() and data.is_dir()):
        pytest.skip(f"stories260K or COPA is not at {SHARED}")
    config = get_config(f"model={model},task=copa")
    config.update_from_flattened_dict({"task.data": str(data)})
    f = Fields(config)
    result, rows = evaluate_split(f, build(f), "validation")
    assert len(rows) == 100 and 0.45 < result["accuracy"] < 0.7 and result["loss"] < 3.5
