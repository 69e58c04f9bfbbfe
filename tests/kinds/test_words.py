"""Classes and numbers by the word in a gap: what is encoded, what is shown beside it, and whole runs."""

from pathlib import Path

import numpy as np
import pytest
from scipy import special
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from configs.default import get_config
from ftjax.data.tasks.task import Labelled, Scored
from ftjax.errors import UserError
from ftjax.kinds import demonstrations
from ftjax.kinds.gap import Filled, shorter, tokens_of, up_to_gap
from ftjax.train.build import build, load_data
from ftjax.train.evaluate import evaluate_split
from ftjax.train.fields import Fields
from ftjax.train.loop import train

SST2 = Path(__file__).parents[2].parent / "shared" / "data" / "sst2"
TRAIN = [
    {"text": "the cat sat", "label": "good"}, {"text": "Bob ran home", "label": "bad"},
    {"text": "who ran", "label": "good"}, {"text": "the sea", "label": "bad"},
    {"text": "Anna sat in Rome", "label": "good"}, {"text": "a mat", "label": "bad"},
]  # fmt: skip
VALID = [
    {"text": "a cat by the sea", "label": "bad"},
    {"text": "Anna", "label": "good"},
    {"text": "on", "label": "bad"},
]
FIELDS = {"task.objective": "words", "task.classes": ("bad", "good"), "task.template": "{text} and {mask} ."}
SHORT = FIELDS | {"task.label_words": ("home", "again")}  # of one token
LONG = FIELDS | {"task.label_words": ("home", "Smithson")}
SHOWN = SHORT | {"task.demonstrations": 1, "task.test_draws": 3, "task.train_draws": 2, "task.max_length": 40}
PAIRS = [
    {"sentence1": "the cat", "sentence2": f"The {word}", "score": score}
    for word, score in (("mat", 0.0), ("cat", 5.0), ("sea", 2.0), ("home", 4.5))
]


def log_softmax(x):
    return special.log_softmax(np.asarray(x, np.float64), -1)


@pytest.fixture
def gap_logits(forward):
    """gap_logits(parts, ids) -> logits [V] at each mask of a sequence, [M, V]."""

    def get(parts, ids):
        return forward(parts, ids, "logits")[np.flatnonzero(np.asarray(ids) == parts.tokenizer.mask_token_id)]

    return get


def ids(parts, *words):
    return [parts.tokenizer.convert_tokens_to_ids(word) for word in words]


def test_the_template_is_filled_and_the_mask_is_marked(prepare, gap_logits):
    f, parts = prepare("classification", "full", TRAIN, VALID, **SHORT)
    assert parts.model.cfg.head == "mlm"
    encoded = load_data(f, parts, "validation", training=False).encoded
    expected = parts.tokenizer("a cat by the sea and [MASK] .")["input_ids"]
    assert encoded[0].tokens.tolist() == expected and encoded.labels.tolist() == [0, 1, 0]
    marks = np.asarray(encoded.tokens) == parts.tokenizer.mask_token_id
    assert encoded.extras["answer"].tolist() == marks.astype(int).tolist() and marks.sum() == 3

    result, rows = evaluate_split(f, parts, "validation")
    logits = np.stack([gap_logits(parts, encoded[i].tokens)[0, ids(parts, "home", "again")] for i in range(3)])
    nll = -log_softmax(logits)[range(3), encoded.labels]
    np.testing.assert_allclose(result["loss"], nll.mean(), rtol=1e-4)
    assert [row["prediction"] for row in rows] == [("bad", "good")[i] for i in logits.argmax(1)]
    assert result["accuracy"] == (logits.argmax(1) == encoded.labels).mean() and rows[0]["text"] == VALID[0]["text"]


@pytest.mark.parametrize("fields", [SHORT, LONG, SHOWN], ids=["words", "phrases", "demonstrations"])
def test_the_side_of_the_padding_changes_nothing(prepare, fields):
    sides = [
        prepare("classification", "full", TRAIN, VALID, **fields | {"data.pad_side": s}) for s in ("left", "right")
    ]
    left, right = (evaluate_split(f, parts, "validation") for f, parts in sides)
    np.testing.assert_allclose(left[0]["loss"], right[0]["loss"], rtol=1e-5)
    assert left[1] == right[1]


def test_phrases_are_a_sequence_for_each_class(prepare, gap_logits):
    f, parts = prepare("classification", "full", TRAIN, VALID, **LONG)
    encoded = load_data(f, parts, "validation", training=False).encoded
    long = parts.tokenizer("Smithson", add_special_tokens=False)["input_ids"]
    assert encoded.group == 2 and len(long) > 2
    sequences = np.split(encoded.tokens, encoded.offsets[1:-1])
    text = f"Anna and {'[MASK]' * len(long)} ."
    assert sequences[3].tolist() == parts.tokenizer(text)["input_ids"]
    marks = np.split(encoded.extras["answer"], encoded.offsets[1:-1])[3]
    assert marks[marks > 0].tolist() == [token + 1 for token in long]

    scores = []
    for i, sequence in enumerate(sequences):
        log_p = log_softmax(gap_logits(parts, sequence))
        words = ids(parts, "home") if i % 2 == 0 else long
        scores.append(log_p[range(len(words)), words].mean())
    nll = -log_softmax(np.reshape(scores, (3, 2)))[range(3), encoded.labels]
    np.testing.assert_allclose(evaluate_split(f, parts, "validation")[0]["loss"], nll.mean(), rtol=1e-4)


def test_demonstrations_follow_and_their_draws_are_averaged(prepare, gap_logits):
    f, parts = prepare("classification", "full", TRAIN, VALID, **SHOWN)
    encoded = load_data(f, parts, "validation", training=False).encoded
    assert encoded.rows.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    texts = [parts.tokenizer.decode(encoded[i].tokens) for i in range(9)]
    word = {"bad": "home", "good": "again"}
    shown = {label: [f"{r['text']} and {word[label]}." for r in TRAIN if r["label"] == label] for label in word}
    seen = set()
    for text in texts[:3]:
        query, bad, good, end = text.split(" [SEP]")
        assert query == "[CLS] a cat by the sea and [MASK]." and end == ""
        assert bad.strip() in shown["bad"] and good.strip() in shown["good"]
        seen.add((bad, good))
    assert len(seen) > 1
    logits = np.stack([gap_logits(parts, encoded[i].tokens)[0, ids(parts, "home", "again")] for i in range(9)])
    mean = logits.reshape(3, 3, 2).mean(1)
    result, rows = evaluate_split(f, parts, "validation")
    np.testing.assert_allclose(result["loss"], -log_softmax(mean)[range(3), [0, 1, 0]].mean(), rtol=1e-4)
    assert len(rows) == 3 and [row["prediction"] for row in rows] == [("bad", "good")[i] for i in mean.argmax(1)]


def test_no_example_is_shown_to_itself(prepare):
    f, parts = prepare("classification", "full", TRAIN, VALID, **SHOWN | {"task.train_draws": 20})
    encoded = load_data(f, parts, "train", training=True).encoded
    assert len(encoded) == 6 * 20
    for i, row in enumerate(encoded.rows):
        query, *shown = parts.tokenizer.decode(encoded[i].tokens, skip_special_tokens=False).split("[SEP]")[:3]
        own = TRAIN[row]["text"]
        assert own in query and all(not s.strip().startswith(own) for s in shown)
    again = load_data(f, parts, "train", training=True).encoded
    np.testing.assert_array_equal(again.tokens, encoded.tokens)
    f2, parts2 = prepare("classification", "full", TRAIN[:2], VALID, **SHOWN)
    with pytest.raises(UserError, match="class 'good' has no other example to show"):
        load_data(f2, parts2, "train", training=True)


def test_vectors_are_mean_hidden_states(bert, forward, prepare):
    _, parts = prepare("classification", "full", TRAIN, VALID, **SHORT)
    texts = ["the cat sat", "a", "who ran home to Rome by the sea ?"]
    found = demonstrations.vectors(str(bert), texts)
    for text, vector in zip(texts, found):
        ids = parts.tokenizer(text)["input_ids"]
        mean = forward(parts, ids)[: len(ids)].mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=1e-3, atol=1e-5)


def test_only_the_nearest_half_of_a_class_is_shown(prepare, monkeypatch, bert):
    rows = [{"text": f"the {w}", "label": label} for label in ("bad", "good") for w in ("cat", "mat", "sea", "home")]
    angles = {row["text"]: i for row, i in zip(rows, [0, 1, 2, 3] * 2)} | {"on": 0.2}

    def vectors(path, texts):
        assert path == str(bert)
        return np.asarray([(np.cos(angles[t]), np.sin(angles[t])) for t in texts])

    monkeypatch.setattr(demonstrations, "vectors", vectors)
    fields = SHOWN | {"task.demonstration_encoder": str(bert), "task.test_draws": 30, "task.train_draws": 30}
    f, parts = prepare("classification", "full", rows, [VALID[2]], **fields)
    encoded = load_data(f, parts, "validation", training=False).encoded
    seen = {s.strip() for i in range(30) for s in parts.tokenizer.decode(encoded[i].tokens).split("[SEP]")[1:3]}
    assert seen == {f"the {w} and {a}." for w in ("cat", "mat") for a in ("home", "again")}  # int(8 // 2 * 0.5) = 2
    encoded = load_data(f, parts, "train", training=True).encoded
    seen = {parts.tokenizer.decode(encoded[i].tokens).split("[SEP]")[1].strip() for i in range(30)}
    assert seen == {"the mat and home.", "the sea and home."}  # 'the cat' itself aside


def test_numbers_between_two_words(prepare, gap_logits):
    fields = {"task.objective": "words", "task.label_words": ("home", "again")}
    f, parts = prepare("stsb", "full", PAIRS, PAIRS, **fields)
    encoded = load_data(f, parts, "validation", training=False).encoded
    assert encoded[0].tokens.tolist() == parts.tokenizer("the cat [MASK], the mat")["input_ids"]
    assert encoded.labels.dtype == np.float32
    values = []
    for i in range(4):
        p = np.exp(log_softmax(gap_logits(parts, encoded[i].tokens)[0, ids(parts, "home", "again")]))
        values.append(5 * p[1])
    result, rows = evaluate_split(f, parts, "validation")
    np.testing.assert_allclose([row["prediction"] for row in rows], values, rtol=1e-4)
    np.testing.assert_allclose(result["loss"], np.square(values - encoded.labels).mean(), rtol=1e-4)
    f, parts = prepare("stsb", "full", PAIRS, PAIRS, **fields | {"task.demonstrations": 1, "task.max_length": 48})
    first = parts.tokenizer.decode(load_data(f, parts, "validation", training=False).encoded[0].tokens)
    assert [s.split(",")[0].split()[-1] for s in first.split("[SEP]")[1:3]] == ["home", "again"]
    with pytest.raises(UserError, match=r"score 5.0 is outside task.bounds=\(0.0, 4.0\)"):
        load_data(
            *prepare("stsb", "full", PAIRS, PAIRS, **fields | {"task.bounds": (0.0, 4.0)}), "train", training=True
        )


@pytest.mark.parametrize("fields", [SHORT, LONG, SHOWN], ids=["words", "phrases", "demonstrations"])
def test_truncation_keeps_the_template(prepare, fields):
    long = [{"text": "the cat sat on a mat by the sea and ran home " * 3, "label": "good"}, *VALID]
    f, parts = prepare("classification", "full", TRAIN, long, **fields | {"data.overlong": "truncate"})
    encoded = load_data(f, parts, "validation", training=False).encoded
    assert encoded.truncated == 1 and encoded.dropped == 0 and encoded.lengths.max() <= f.task.max_length
    text = parts.tokenizer.decode(encoded[0].tokens)
    assert text.startswith("[CLS] the cat sat on a") and "and [MASK]" in text and "." in text.split("[SEP]")[0]
    f, parts = prepare("classification", "full", TRAIN, long, **fields | {"data.overlong": "truncate_left"})
    encoded = load_data(f, parts, "validation", training=False).encoded
    text = parts.tokenizer.decode(encoded[0].tokens).split("[SEP]")[0]
    assert encoded.truncated == 1 and encoded.lengths.max() <= f.task.max_length
    assert "cat" not in text[:12] and "the sea and ran home and [MASK]" in text
    f, parts = prepare("classification", "full", TRAIN, long, **fields | {"data.overlong": "drop"})
    encoded = load_data(f, parts, "validation", training=False).encoded
    assert encoded.dropped == 1 and set(encoded.rows.tolist()) == {1, 2, 3}


def test_a_causal_model_gives_the_next_word(prepare, gpt, forward):
    fields = FIELDS | {
        "model.path": str(gpt),
        "task.label_words": ("home", "Rome"),
        "task.template": "{text} to {mask}.",
    }
    f, parts = prepare("classification", "full", TRAIN, VALID, **fields)
    encoded = load_data(f, parts, "validation", training=False).encoded
    assert encoded[0].tokens.tolist() == parts.tokenizer("a cat by the sea to")["input_ids"] and not encoded.extras
    words = [parts.tokenizer(" " + word)["input_ids"][0] for word in ("home", "Rome")]
    logits = []
    for i in range(3):
        logits.append(forward(parts, encoded[i].tokens, "logits")[len(encoded[i].tokens) - 1, words])
    result, _ = evaluate_split(f, parts, "validation")
    np.testing.assert_allclose(result["loss"], -log_softmax(logits)[range(3), [0, 1, 0]].mean(), rtol=1e-4)
    short = fields | {"task.max_length": 4, "data.overlong": "truncate_left"}
    f, parts = prepare("classification", "full", TRAIN, VALID, **short)
    cut = load_data(f, parts, "validation", training=False).encoded
    assert parts.tokenizer.decode(cut[0].tokens) == "by the sea to" and cut.truncated > 0
    f, parts = prepare(
        "classification", "full", TRAIN, VALID,
        **fields | {"task.shots": 2, "task.separator": "\n", "task.max_length": 80},
    )  # fmt: skip
    first, second, query = parts.tokenizer.decode(
        load_data(f, parts, "validation", training=False).encoded[0].tokens
    ).split("\n")
    assert query == "a cat by the sea to"
    assert {first, second} <= {f"{r['text']} to {'Rome' if r['label'] == 'good' else 'home'}." for r in TRAIN}
    assert first.endswith("Rome.") != second.endswith("Rome.")


CAUSAL = {"task.template": "{text} to {mask}."}
WRONG = [
    ("bert", {"task.label_words": ("home", "home é")}, "'home é' is unknown to the tokenizer of"),
    ("bert", {"task.label_words": ("home", "home ")}, "'home ' has the tokens of 'home'"),
    ("bert", {"task.shots": 2}, "task.shots=2: a masked model takes task.demonstrations"),
    ("bert", {"task.demonstrations": 2}, "task.demonstrations=2: give 0 or 1"),
    ("bert", {"task.demonstrations": 1, "task.test_draws": 0}, "task.test_draws=0: give 1 or more"),
    ("bert", {"data.overlong": "error", "task.max_length": 6}, "jsonl:1: 10 tokens, more than max_length 6"),
    ("gpt", {}, "a causal model reads what is before {mask} only; end with {mask}, after some text, or take obj"),
    ("gpt", CAUSAL | {"task.label_words": ("home", "great")}, "'great' is 4 tokens, and a causal model gives one"),
    ("gpt", CAUSAL | {"task.demonstrations": 1, "task.label_words": ("home", "Rome")}, "causal model takes task.shots"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "fields", "message"), WRONG)
def test_what_cannot_be_done(prepare, request, model, fields, message):
    fields = (
        {"model.path": str(request.getfixturevalue(model))} | SHORT | {"task.template": "{text} {mask} and a"} | fields
    )
    with pytest.raises(UserError, match=message.replace("{", r"\{")):
        f, parts = prepare("classification", "full", TRAIN, VALID, **fields)
        load_data(f, parts, "validation", training=False)


def test_a_text_with_a_mask(prepare):
    rows = [*VALID, {"text": "a [MASK] sat", "label": "good"}]
    f, parts = prepare("classification", "full", TRAIN, rows, **SHORT)
    with pytest.raises(UserError, match=r"jsonl:4: the text holds \[MASK\]; leave it out"):
        load_data(f, parts, "validation", training=False)
    f, parts = prepare("classification", "full", TRAIN, rows, **SHORT | {"data.on_bad_row": "skip"})
    assert load_data(f, parts, "validation", training=False).encoded.rows.tolist() == [0, 1, 2]


def test_few_of_each_class(prepare):
    f, parts = prepare("classification", "full", TRAIN * 2, VALID, **SHORT | {"task.per_class": 2, "seed": 3})
    train, dev = (load_data(f, parts, split, training=False).examples for split in ("train", "validation"))
    assert sorted(x.label for x in train) == sorted(x.label for x in dev) == ["bad", "bad", "good", "good"]
    rows = [Labelled(str(i), i % 2) for i in range(12)]
    first, second = (demonstrations.few(f, rows, split) for split in ("train", "validation"))
    assert not set(first) & set(second) and [sum(rows[i].label for i in s) for s in (first, second)] == [2, 2]
    f, _ = prepare("classification", "full", TRAIN, VALID, **SHORT | {"task.per_class": 4})
    with pytest.raises(UserError, match=r"class '[01]' has 6 training examples, the validation split needs 8"):
        demonstrations.few(f, rows, "validation")
    f, _ = prepare("stsb", "full", PAIRS, PAIRS, **{"task.per_class": 1})
    chosen = [PAIRS[i]["score"] for i in demonstrations.few(f, [Scored("", row["score"]) for row in PAIRS], "train")]
    assert sorted(score > 2.5 for score in chosen) == [False, True]
    with pytest.raises(UserError, match="tuple examples have no class"):
        demonstrations.few(f, [()], "train")


@pytest.mark.parametrize("pair", ["the cat sat on a mat " * 40, None])
def test_long_texts_are_cut_at_once(prepare, pair):
    tokenizer = prepare("classification", "full", TRAIN, VALID, **SHORT)[1].tokenizer
    sizes = []

    def size(one):
        sizes.append(sum(len(tokenizer.tokenize(text)) for text in (one.text, one.text_pair or "")))
        return sizes[-1]

    short = shorter(Filled("who ran home by the sea " * 50, pair, ""), 31, size, tokenizer)
    assert len(sizes) < 5 and sizes[-1] == 31
    assert short is not None and short.text.startswith("who ran home") and (short.text_pair is None) == (pair is None)
    if pair:
        assert len(tokenizer.tokenize(short.text)) == 16 and str(short.text_pair).startswith("the cat sat on")
    assert shorter(Filled("who ran", pair, ""), 1 if pair else 0, size, tokenizer) is None


# as Llama 3 splits text: a sign goes to the letters after it
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def test_a_word_after_a_sign_that_the_tokenizer_joins_to_it():
    merges = [("(", "g"), ("r", "e"), ("re", "a"), ("rea", "t"), ("g", "reat"), ("Ġ", "great")]
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet()) + [a + b for a, b in merges]
    made = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence([  # type: ignore[assignment]
        pre_tokenizers.Split(Regex(LETTERS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False),
    ])  # fmt: skip
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    assert tokenizer.tokenize("(great") == ["(g", "reat"]
    found = [tokenizer.convert_ids_to_tokens(ids) for ids in tokens_of(["great", "at"], "", tokenizer)]
    assert found == [["great"], ["a", "t"]]
    assert tokenizer.convert_ids_to_tokens(tokens_of(["great"], " ", tokenizer)[0]) == ["Ġgreat"]


def test_a_bad_text_of_a_causal_model_is_skipped(prepare, gpt):
    fields = FIELDS | {"model.path": str(gpt), "task.label_words": ("home", "Rome"), "task.template": "{text} {mask}"}
    rows = [VALID[0], {"text": "", "label": "good"}, VALID[1]]
    f, parts = prepare("classification", "full", TRAIN, rows, **fields)
    with pytest.raises(UserError, match="jsonl:2: no text before the gap; give it some"):
        load_data(f, parts, "validation", training=False)
    data = load_data(*prepare("classification", "full", TRAIN, rows, **fields | {"data.on_bad_row": "skip"}),
                     "validation", training=False)  # fmt: skip
    assert data.encoded.rows.tolist() == [0, 2] and len(data.bad.messages) == 1


def test_a_prompt_that_reaches_into_its_word(prepare, gpt):
    tokenizer = prepare("lm", "full", [], [], **{"model.path": str(gpt)})[1].tokenizer
    first, second, third = up_to_gap(["the c", "the cat", ""], "at", tokenizer, ["x:1", "x:2", "x:3"])
    assert str(first) == "x:1: token 'Ġcat' reaches into the word in the gap; put a space before it"
    assert second == tokenizer("the cat")["input_ids"]
    assert str(third) == "x:3: no text before the gap; give it some"


@pytest.mark.parametrize("near", [False, True])
def test_draws_do_not_depend_on_the_order_of_the_rows(prepare, bert, near):
    fields = SHOWN | {"task.demonstration_encoder": str(bert) if near else ""}
    seen = []
    for rows in (VALID, VALID[::-1]):
        f, parts = prepare("classification", "full", TRAIN, rows, **fields)
        encoded = load_data(f, parts, "validation", training=False).encoded
        draws = [tuple(encoded[i].tokens.tolist()) for i in range(len(encoded))]
        seen.append({rows[row]["text"]: draws[3 * row : 3 * row + 3] for row in range(3)})
    assert seen[0] == seen[1]


def test_each_text_is_given_a_vector_once(prepare, bert, monkeypatch):
    asked, vectors = [], demonstrations.vectors
    monkeypatch.setattr(demonstrations, "vectors", lambda path, texts: asked.append(texts) or vectors(path, texts))
    f, parts = prepare("classification", "full", TRAIN, VALID, **SHOWN | {"task.demonstration_encoder": str(bert)})
    load_data(f, parts, "train", training=True)
    for _ in range(2):
        load_data(f, parts, "validation", training=False)
    assert asked == [[row["text"] for row in TRAIN], [row["text"] for row in VALID]]


@pytest.mark.parametrize(
    ("method", "fields"), [("full", SHORT), ("lora", LONG), ("p_tuning", SHOWN)], ids=["full", "lora", "p_tuning"]
)
def test_a_run(configure, prepare, tmp_path, method, fields):
    fields = fields | {"steps": 12, "eval_every": 12}
    before = evaluate_split(*prepare("classification", method, TRAIN, TRAIN, **fields), "validation")[0]["loss"]
    result = train(*configure("classification", method, TRAIN, TRAIN, **fields), tmp_path / "run")
    assert result["best"]["metric"] == "accuracy" and result["metrics"]["loss"] < before


def test_sst2_without_training():
    if not SST2.is_dir():
        pytest.skip(f"SST-2 is not at {SST2}")
    config = get_config("model=nano-bert,task=sst2")
    config.update_from_flattened_dict(
        {"task.objective": "words", "task.data": str(SST2), "task.max_eval_rows": 64, "data.overlong": "drop"}
    )
    f = Fields(config)
    result, rows = evaluate_split(f, build(f), "validation")
    assert len(rows) == 64 and 0.2 < result["accuracy"] < 0.8 and 0 < result["loss"] < 3
