"""The word in a gap: what is asked, among which words it is sought, and P-tuning's form of it."""

from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from configs.default import get_config
from ftjax.errors import UserError
from ftjax.kinds import cloze
from ftjax.train.build import build, load_data
from ftjax.train.evaluate import evaluate_split
from ftjax.train.fields import Fields
from ftjax.train.loop import train

SHARED = Path(__file__).parents[2].parent / "shared"
ROWS = [{"sub_label": a, "obj_label": b} for a, b in (("the cat", "Rome"), ("Bob", "Oslo"), ("a mat", "home"))]
FIELDS = {"task.relation": "P17", "task.template": "[X] sat in [Y] ."}


@pytest.fixture
def vocabulary(tmp_path):
    (tmp_path / "words.txt").write_text("Rome\nOslo\nhome\nsea\nSmithson\n\n")
    return {"task.vocab_file": str(tmp_path / "words.txt")}


@pytest.fixture
def asked(prepare, bert, gpt):
    """asked(model, method, field=value, ...) -> (fields, parts) of ROWS."""
    folders = {"bert": bert, "gpt": gpt}
    return lambda model, method="full", rows=ROWS, **fields: prepare(
        "lama", method, rows, rows, **FIELDS | {"model.path": str(folders[model])} | fields
    )


@pytest.mark.parametrize(("model", "side"), [("bert", "right"), ("gpt", "right"), ("gpt", "left")])
def test_the_word_is_sought_among_those_of_the_file(asked, forward, vocabulary, model, side):
    f, parts = asked(model, **vocabulary, **{"data.pad_side": side})
    encoded = load_data(f, parts, "validation", training=False).encoded
    text = "the cat sat in [MASK] ." if model == "bert" else "the cat sat in"
    assert encoded[0].tokens.tolist() == parts.tokenizer(text)["input_ids"]
    token = {
        w: parts.tokenizer(" " + w, add_special_tokens=False)["input_ids"] for w in ("Rome", "Oslo", "home", "sea")
    }
    assert encoded.labels.tolist() == [token[row["obj_label"]][0] for row in ROWS]
    result, rows = evaluate_split(f, parts, "validation")
    nll, words = [], []
    for i in range(3):
        ids = encoded[i].tokens.tolist()
        at = ids.index(parts.tokenizer.mask_token_id) if model == "bert" else len(ids) - 1
        log_p = log_softmax(forward(parts, ids, "logits")[at])
        nll.append(-log_p[encoded.labels[i]])
        words.append(max(token, key=lambda word, log_p=log_p: log_p[token[word][0]]))
    np.testing.assert_allclose(result["loss"], np.mean(nll), rtol=1e-4)  # over the whole vocabulary
    assert [row["prediction"] for row in rows] == words
    assert result["hit@1"] == np.mean([word == row["obj_label"] for word, row in zip(words, ROWS)])
    assert rows[1] == {
        "text": "Bob sat in {mask} .", "prediction": words[1], "reference": "Oslo",
        "correct": float(words[1] == "Oslo"),
    }  # fmt: skip


def test_without_a_file_every_token_may_be_it(asked):
    rows = evaluate_split(*asked("bert"), "validation")[1]
    assert all(isinstance(row["prediction"], str) for row in rows)


def test_p_tuning_asks_after_its_last_token(asked, forward):
    """The GPT's form of Liu et al.: [P]*3 head [P]*3 -> target."""
    fields = {"task.template": "[X] [Y]", "method.template": "{3}{text}{3}"}
    f, parts = asked("gpt", "p_tuning", **fields)
    data = load_data(f, parts, "validation", training=False)
    size, head = parts.model.cfg.vocab_size, parts.tokenizer("the cat")["input_ids"]
    ids = [size, size + 1, size + 2, *head, size + 3, size + 4, size + 5]
    assert data.encoded[0].tokens.tolist() == ids
    log_p = log_softmax(forward(parts, ids, "logits")[len(ids) - 1])
    batch = {name: x for name, x in next(iter(data.batches)).items() if name != "example"}
    nll = jax.device_get(jax.jit(parts.objective.outputs)(parts.variables, batch))["nll"][0]
    np.testing.assert_allclose(nll, -log_p[data.encoded.labels[0]], rtol=1e-4)


def test_p_tuning_around_a_masked_text(asked):
    fields = {"task.template": "[Y] [X]", "method.template": "{3}{text}{3}"}
    f, parts = asked("bert", "p_tuning", **fields)
    encoded, size = load_data(f, parts, "validation", training=False).encoded, parts.model.cfg.vocab_size
    opening, mask, *head, closing = parts.tokenizer("[MASK] the cat")["input_ids"]
    soft = [*range(size, size + 6)]
    assert encoded[0].tokens.tolist() == [opening, *soft[:3], mask, *head, *soft[3:], closing]
    assert encoded.extras["answer"][: len(encoded[0].tokens)].tolist() == [0, 0, 0, 0, 1, *[0] * (len(head) + 4)]


def test_p_tuning_next_to_the_mask(asked, forward):
    """The BERT's form of Liu et al.: [CLS] [P]*3 [MASK] [P]*3 head [P]*3 [SEP]."""
    fields = {"task.template": "[Y] [X]", "method.template": "{3}{before}{mask}{3}{after}{3}"}
    f, parts = asked("bert", "p_tuning", **fields)
    data, size = load_data(f, parts, "validation", training=False), parts.model.cfg.vocab_size
    encoded = data.encoded
    opening, mask, *head, closing = parts.tokenizer("[MASK] the cat")["input_ids"]
    soft = [*range(size, size + 9)]
    ids = [opening, *soft[:3], mask, *soft[3:6], *head, *soft[6:], closing]
    assert encoded[0].tokens.tolist() == ids and parts.around.closed([opening, mask, *head, closing]) == ids
    assert encoded.extras["answer"][: len(ids)].tolist() == [0, 0, 0, 0, 1, *[0] * (len(head) + 7)]
    log_p = log_softmax(forward(parts, ids, "logits")[4])
    batch = next(b for b in data.batches if 0 in b["example"])
    at = batch.pop("example").tolist().index(0)
    nll = jax.device_get(jax.jit(parts.objective.outputs)(parts.variables, batch))["nll"][at]
    np.testing.assert_allclose(nll, -log_p[encoded.labels[0]], rtol=1e-4)


def test_a_gap_s_template_wants_a_gap(asked, prepare):
    gap = {"method.template": "{3}{before}{mask}{1}{after}"}
    with pytest.raises(UserError, match=r"method.template='\{3\}.*: this model reads no \{mask\}; write \{text\}"):
        asked("gpt", "p_tuning", **gap | {"task.template": "[X] [Y]"})
    texts = [{"text": "the cat", "label": "a"}, {"text": "Bob ran", "label": "b"}]
    f, parts = prepare("classification", "p_tuning", texts, texts, **gap)
    with pytest.raises(
        UserError, match=r"method.template: there is not one gap in this text for \{mask\}; write \{text\}"
    ):
        load_data(f, parts, "train", training=True)
    for wrong in ("{3}{mask}{before}{after}", "{3}{text}{mask}", "{3}{before}{after}"):
        with pytest.raises(UserError, match=r"needs one \{text\}, where the example goes, or \{before\}, \{mask\} and"):
            asked("bert", "p_tuning", **{"method.template": wrong, "task.template": "[X] [Y]"})


ODD = [{"sub_label": "Anna", "obj_label": "Smithson"}]
WRONG = [
    ("bert", ROWS + ODD, {}, r"jsonl:4: the answer 'Smithson' is \d+ tokens, not one; leave it out"),
    ("bert", [*ROWS, {"sub_label": "a", "obj_label": "é"}], {}, "jsonl:4: the answer 'é' is unknown to the tokenizer"),
    ("bert", [*ROWS, {"sub_label": "[MASK]", "obj_label": "Rome"}], {}, r"jsonl:4: the text holds \[MASK\]"),
    ("gpt", ROWS, {"task.template": "[Y] has [X]"}, "a causal model reads what is before {mask} only; end with {mask}"),
]


@pytest.mark.parametrize(("model", "rows", "fields", "message"), WRONG)
def test_what_cannot_be_asked(asked, model, rows, fields, message):
    with pytest.raises(UserError, match=message):
        load_data(*asked(model, rows=rows, **fields), "validation", training=False)
    if rows is not ROWS:
        f, parts = asked(model, rows=rows, **fields | {"data.on_bad_row": "skip"})
        data = load_data(f, parts, "validation", training=False)
        assert data.encoded.rows.tolist() == [0, 1, 2] and len(data.bad.messages) == 1


def test_a_bad_text_of_a_causal_model_is_skipped(asked):
    rows = [{"sub_label": text, "obj_label": "Rome"} for text in ("?", "the cat", "!")]
    fields = {"task.template": "it is [Y] [X]"}
    with pytest.raises(UserError, match=r"jsonl:2: text='it is \{mask\} the cat': a causal model reads what is before"):
        load_data(*asked("gpt", rows=rows, **fields), "validation", training=False)
    f, parts = asked("gpt", rows=rows, **fields | {"data.on_bad_row": "skip"})
    data = load_data(f, parts, "validation", training=False)
    assert data.encoded.rows.tolist() == [0, 2] and len(data.bad.messages) == 1


def test_the_words_of_the_file_are_tokenised_once(asked, vocabulary, monkeypatch):
    seen, tokens_of = [], cloze.tokens_of
    monkeypatch.setattr(cloze, "tokens_of", lambda words, *more: seen.append(tuple(words)) or tokens_of(words, *more))
    f, parts = asked("bert", **vocabulary)
    evaluate_split(f, parts, "validation")
    assert seen.count(parts.setting.classes) == 1


def test_a_text_over_the_length_is_left_out(asked):
    rows = [*ROWS, {"sub_label": "the cat on a mat by the sea", "obj_label": "Rome"}]
    for overlong in ("drop", "truncate"):
        f, parts = asked("bert", rows=rows, **{"task.max_length": 10, "data.overlong": overlong})
        encoded = load_data(f, parts, "validation", training=False).encoded
        assert (len(encoded), encoded.dropped, encoded.truncated) == (3, 1, 0)


@pytest.mark.parametrize(("model", "method"), [("bert", "p_tuning"), ("gpt", "full")])
def test_a_run(configure, prepare, request, vocabulary, tmp_path, model, method):
    fields = FIELDS | vocabulary | {"model.path": str(request.getfixturevalue(model)), "steps": 40, "eval_every": 40}
    before = evaluate_split(*prepare("lama", method, ROWS, ROWS, **fields), "validation")[0]["loss"]
    result = train(*configure("lama", method, ROWS, ROWS, **fields), tmp_path / "run")
    assert result["best"]["metric"] == "hit@1" and result["metrics"]["loss"] < before - 0.5


def test_countries_of_places():
    model, data = SHARED / "models" / "all-MiniLM-L6-v2", SHARED / "data" / "lama_trex"
    if not (model.is_dir() and data.is_dir()):
        pytest.skip(f"all-MiniLM-L6-v2 or lama_trex is not at {SHARED}")
    config = get_config(f"model={model},task=lama")
    config.update_from_flattened_dict({
        "task.data": str(data / "pararel_trex_lms_vocab"), "task.relation": "P17", "data.on_bad_row": "skip",
        "task.template": "[X] is located in [Y] .", "task.vocab_file": str(data / "common_vocab_cased.txt"),
        "task.max_eval_rows": 200, "data.buckets": 1, "model.layers": (0,),
    })  # fmt: skip
    f = Fields(config)
    result, rows = evaluate_split(f, build(f), "validation")
    assert len(rows) > 80 and {row["reference"] for row in rows} > {"Italy"} and 0 <= result["hit@1"] < 0.5
