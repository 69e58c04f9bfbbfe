"""Mixtures of data sets as instructions."""

import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import task as configs
from ftjax.cli.main import main
from ftjax.data.bad import BadRows
from ftjax.data.flan import INSTRUCTIONS, drawn
from ftjax.data.tasks import TASKS, Text
from ftjax.data.tasks.mixture import PARTS, quotas
from ftjax.errors import UserError

PAIR = {"sentence1": "A b.", "sentence2": "C d."}
ROWS = {  # a row or two of each part, by the first class and the last
    "sst2": [{"sentence": "fine {x}", "label": label} for label in ("negative", "positive")],
    "mrpc": [{"#1 String": "A b.", "#2 String": "C d.", "Quality": label} for label in (0, 1)],
    "qqp": [{"question1": "A?", "question2": "B?", "is_duplicate": label} for label in (0, 1)],
    "stsb": [{**PAIR, "score": score} for score in (0.4, 4.5)],
    "rte": [{**PAIR, "label": label} for label in ("entailment", "not_entailment")],
    "sick": [{**PAIR, "label": label} for label in ("entailment", "contradiction")],
    "mnli": [{**PAIR, "gold_label": label} for label in ("entailment", "neutral")],
    "cola": [{"sentence": "Him goes.", "label": label} for label in (0, 1)],
    "agnews": [{"text": "Shares fall.", "label": label} for label in ("World", "Sci/Tech")],
    "copa": [{"premise": "It rained.", "choice1": "I ran.", "choice2": "I sat.", "question": "effect", "label": 1}],
    "e2e": [{"mr": "name[X]", "ref": "X is nice."}],
    "multi30k": [{"en": "A dog.", "de": "Ein Hund."}],
    "squad": [{"id": "1", "question": "Who?", "context": "Kim saw.", "answers": [{"text": "Kim", "answer_start": 0}]},
              {"id": "2", "question": "When?", "context": "Kim saw.", "answers": []}],
}  # fmt: skip


@pytest.fixture
def mixture(tmp_path):
    """mixture(part=rows a split, ..., field=value) -> the config, its files written."""

    def get(parts, **fields):
        cfg = configs.get("mixture")
        cfg.update_from_flattened_dict(fields)
        for name, count in parts.items():
            for split in ("train", "validation"):
                path = tmp_path / f"{name}-{split}.jsonl"
                rows = [dict(ROWS[name][i % len(ROWS[name])]) for i in range(count)]
                for i, row in enumerate(rows):
                    row.update({"id": f"{i}"} if name == "squad" else {})
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                cfg.parts[name].files[split] = str(path)
        return cfg

    return get


def load(cfg, split="train"):
    return TASKS["mixture"].load(cfg, split, BadRows())


def test_every_wording_of_every_part(tmp_path):
    assert set(INSTRUCTIONS) == set(PARTS) == set(configs.MIXED) == set(ROWS)
    for name, sort in INSTRUCTIONS.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
        cfg = configs.get("mixture").parts[name]
        cfg.files.train = str(path)
        assert len(sort.asked) >= 4 and len(sort.turned) == 2
        forward, answers = set(), set()
        for row in PARTS[name].load(cfg, "train", BadRows()):
            slots = sort.slots(cfg, row, PARTS[name].example(row, ""), PARTS[name].classes(cfg))
            for number in range(len(sort.asked) + 2):
                text, answer = sort.text(number, slots)
                assert answer and text.endswith("\n") and "  " not in text
                options = text.partition("OPTIONS:\n- ")[2].strip().split("\n- ")
                asked = number < len(sort.asked)
                assert ("options" in slots and asked) == (options != [""])
                if options != [""]:
                    assert options == slots["options"] and answer in options
                (forward if asked else answers).add(text)
                assert asked == (answer == slots["answer"].strip())
        assert len(forward) >= len(sort.asked) and answers


def test_the_form(tmp_path):
    sort = INSTRUCTIONS["sst2"]
    slots = {"text": "fine {x}", "answer": "positive", "options": ["negative", "positive"]}
    text, answer = sort.text(1, slots)
    assert text.endswith("\nfine {x}\nOPTIONS:\n- negative\n- positive\n") and answer == "positive"
    assert sort.text(len(sort.asked), slots) == ("Write a line of a positive film review.\n", "fine {x}")


def test_shares():
    # of 100, 5000 and 40000 rows with a cap of 3000: 100 + 3000 + 3000
    counts = {"a": 100, "b": 5000, "c": 40000}
    assert quotas(counts, 3000, 0) == {"a": 100, "b": 3000, "c": 3000}
    assert quotas(counts, 3000, 61) == {"a": 1, "b": 30, "c": 30}
    assert quotas(counts, 10**6, 0) == counts
    assert quotas({"a": 1, "b": 1, "c": 1}, 5, 4) == {"a": 2, "b": 1, "c": 1}


@given(st.lists(st.integers(1, 500), min_size=1, max_size=6), st.integers(1, 300), st.integers(0, 1000))
def test_shares_are_whole(counts, cap, size):
    found = list(quotas(dict(enumerate(counts)), cap, size).values())
    rates = [min(count, cap) for count in counts]
    assert sum(found) == (size or sum(rates))
    assert all(abs(n - (size or sum(rates)) * rate / sum(rates)) < 1 for n, rate in zip(found, rates))


def test_a_mixture(mixture):
    cfg = mixture({"sst2": 40, "mrpc": 6, "e2e": 10}, cap=12)
    rows = load(cfg)
    assert Counter(row["part"] for row in rows) == {"sst2": 12, "mrpc": 6, "e2e": 10}
    assert rows == load(cfg) and [row.where for row in rows] == [row.where for row in load(cfg)]
    assert [row["part"] for row in rows] != sorted(row["part"] for row in rows)
    assert len({row.where for row in rows}) == 28  # none twice
    other = load(mixture({"sst2": 40, "mrpc": 6, "e2e": 10}, cap=12, seed=1))
    assert {row.where for row in other} != {row.where for row in rows}
    assert TASKS["mixture"].example({"prompt": "a\n", "completion": "b", "part": "rte"}, "<e>") == Text(
        "a\n", "b<e>", "rte"
    )
    cfg.max_train_rows = 5
    assert load(cfg) == rows[:5]


def test_a_row_has_its_wording_whatever_else_there_is(mixture):
    alone = load(mixture({"mrpc": 6}))
    among = [row for row in load(mixture({"mrpc": 6, "sst2": 9})) if row["part"] == "mrpc"]
    assert {row.where: row["prompt"] for row in alone} == {row.where: row["prompt"] for row in among}
    assert len({drawn("mrpc", 0, times, 0, True) for times in range(60)}) == 7  # again, with another


def test_small_parts_come_again(mixture):
    rows = load(mixture({"sst2": 4, "mrpc": 2}, size=60))
    assert Counter(row["part"] for row in rows) == {"sst2": 40, "mrpc": 20}
    assert set(Counter(row.where for row in rows).values()) == {10}
    assert len({row["prompt"] for row in rows if row["part"] == "mrpc"}) > 4


def test_what_is_held_out(mixture):
    cfg = mixture({"sst2": 4, "rte": 4, "sick": 4}, held_out="nli", cap=2)
    assert Counter(row["part"] for row in load(cfg)) == {"sst2": 2}
    held = load(cfg, "validation")
    assert Counter(row["part"] for row in held) == {"rte": 4, "sick": 4}  # all of them
    assert all("OPTIONS" in row["prompt"] for row in held)  # none turned around
    for wrong, parts in (("news", {"sst2": 1, "rte": 1}), ("nli", {"sst2": 1}), ("nli", {"rte": 1})):
        with pytest.raises(UserError, match=rf"task\.held_out='{wrong}': the parts are of the clusters"):
            load(mixture({**dict.fromkeys(parts, 1)}, held_out=wrong))
        for name in PARTS:
            cfg.parts[name].files.train = ""


def test_what_is_wrong(mixture):
    with pytest.raises(UserError, match=r"task\.parts: none has data; set task\.parts\.<name>\.data, of sst2"):
        load(configs.get("mixture"))
    missing = {"parts.sst2.data": "nowhere/at/all"}
    with pytest.raises(UserError, match=r"nowhere/at/all: no such directory; set task\.parts\.sst2\.data to"):
        load(mixture({}, **missing))
    with pytest.raises(UserError, match=r"no column 'words' .*; set task\.parts\.rte\.columns\.text"):
        load(mixture({"sst2": 1, "rte": 1}, **{"parts.rte.columns.text": "words"}))
    cfg, bad = mixture({"sst2": 2}), BadRows("skip")
    with open(cfg.parts.sst2.files.train, "a") as file:
        file.write('{"label": 1}\n')
    assert len(TASKS["mixture"].load(cfg, "train", bad)) == 2
    assert re.search(r"train.jsonl:3: no column .*; set task\.parts\.sst2\.columns\.text$", bad.messages[0])
    cfg = mixture({"sst2": 2, "mrpc": 2})
    with open(cfg.parts.mrpc.files.train, "w") as file:
        file.write(json.dumps(ROWS["mrpc"][0] | {"Quality": "maybe"}) + "\n")
    with pytest.raises(UserError, match=r"mrpc.*: all 1 rows are bad; the first: .*train\.jsonl:1: label 'maybe'"):
        TASKS["mixture"].load(cfg, "train", BadRows("skip"))
    for field in ({"cap": 0}, {"size": -1}):
        with pytest.raises(UserError, match=r"task\.cap=.* task\.size="):
            load(mixture({"sst2": 1}, **field))


def test_of_real_data(shared):
    cfg = configs.get("mixture")
    cfg.held_out, cfg.cap = "nli", 50
    for name, folder in (("sst2", "sst2"), ("mrpc", "mrpc"), ("sick", "sick_nli"), ("multi30k", "multi30k")):
        cfg.parts[name].data = str(shared(folder))
    assert Counter(row["part"] for row in load(cfg)) == {"sst2": 50, "mrpc": 50, "multi30k": 50}
    assert Counter(row["part"] for row in load(cfg, "validation")) == {"sick": 500}


def test_a_run(mixture, tmp_path, capsys):
    cfg = mixture({"sst2": 8, "rte": 4, "copa": 4})
    files = {f"task.parts.{name}.files.{split}": cfg.parts[name].files[split]
             for name in ("sst2", "rte", "copa") for split in ("train", "validation")}  # fmt: skip
    fields = {**files, "task.held_out": "nli", "steps": 2, "batch_size": 4, "task.max_length": 256, "eval_every": 2,
              "generate.max_new_tokens": 4, "eval_batch_size": 4, "model.layers": (0,)}  # fmt: skip
    flags = ["--config=configs/default.py:model=nano-gpt,task=mixture,method=lora", f"--workdir={tmp_path / 'run'}"]
    assert main(["train", *flags, *(f"--config.{field}={value}" for field, value in fields.items())]) == 0
    said = capsys.readouterr().err
    assert re.search(r"data .* 12 examples.*; of copa 4, sst2 8", said)
    assert "held out 4 examples; of rte 4" in said
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {reference for row in samples for reference in row["references"]} == {"yes", "no"}


def test_evaluation_by_parts(mixture, tmp_path, capsys):
    cfg = mixture({"sst2": 3, "copa": 2})
    files = {f"task.parts.{name}.files.{split}": cfg.parts[name].files[split]
             for name in ("sst2", "copa") for split in ("train", "validation")}  # fmt: skip
    fields = {**files, "task.max_length": 256, "generate.max_new_tokens": 4, "eval_batch_size": 4, "model.layers": (0,)}
    flags = ["--config=configs/default.py:model=nano-gpt,task=mixture", f"--output={tmp_path / 'rows.jsonl'}"]
    assert main(["eval", *flags, *(f"--config.{field}={value}" for field, value in fields.items())]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert not {"sst2/token_accuracy", "copa/bits_per_byte"} & found.keys() and found["copa/loss_interval"]
    for part in ("sst2", "copa"):
        mine = [row["rougeL"] for row in rows if row["part"] == part]
        assert found[f"{part}/rougeL"] == pytest.approx(sum(mine) / len(mine))
        alone = {name: value for name, value in fields.items() if not name.startswith("task.parts") or part in name}
        assert main(["eval", flags[0], *(f"--config.{field}={value}" for field, value in alone.items())]) == 0
        one = json.loads(capsys.readouterr().out)
        assert found[f"{part}/loss"] == pytest.approx(one["loss"], rel=1e-4) and not any("/" in name for name in one)


def test_parts_of_ones_own_rows(tmp_path, capsys):
    asked = {"one": ("a", "the"), "two": ("he", "she")}
    rows = [{"prompt": x, "completion": " went away", "part": part} for part in asked for x in asked[part]]
    rows[2]["completion"] = " had an old house"
    path = tmp_path / "rows.jsonl"

    def evaluate(rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        flags = [f"--config.task.files.{split}={path}" for split in ("train", "validation")]
        axes = "--config=configs/default.py:model=nano-gpt,task=lm"
        small = ("model.layers=(0,)", "task.max_length=32", "generate.max_new_tokens=2", "eval_batch_size=4")
        assert main(["eval", axes, *flags, *(f"--config.{field}" for field in small)]) == 0
        return json.loads(capsys.readouterr().out)

    found, alone = evaluate(rows), evaluate(rows[2:])
    assert found["two/bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=1e-4) != found["bits_per_byte"]
    assert found["one/exact_match"] == 0 and not any("/" in name for name in alone)
