"""Questions, choices, texts to write, conversations, gaps."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from configs import task as configs
from ftjax.data.bad import BadRows
from ftjax.data.encode import encode_lm
from ftjax.data.encoded import IGNORED, Collector
from ftjax.data.tasks import TASKS, Text
from ftjax.data.tasks.task import Chat, Choices, Cloze, Question
from ftjax.errors import UserError
from ftjax.metrics.sql import canonical


def load(task, path, split="train", bad=None, **changes):
    cfg = configs.get(task)
    where = {"data": str(path)} if path.is_dir() else {f"files.{name}": str(path) for name in ("train", split)}
    cfg.update_from_flattened_dict(where | changes)
    rows = TASKS[task].load(cfg, split, bad or BadRows())
    return [TASKS[task].example(row, "<e>") for row in rows]


def write(path, *rows):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows[0]))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def squad(*questions, context="Kim sees Ada. Ada sleeps.", version="1.1"):
    return {"version": version, "data": [{"title": "T", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def question(name, *answers, **more):
    found = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": "Who?", "answers": found, **more}


def test_squad_of_both_versions(tmp_path):
    one, two = question("1", ("Kim", 0), ("Kim sees", 0)), question("2", ("Ada", 14), is_impossible=False)
    none = question("3", is_impossible=True, plausible_answers=[{"text": "Kim", "answer_start": 0}])
    write(tmp_path / "train-v1.1.json", squad(one, two))
    context = "Kim sees Ada. Ada sleeps."
    wanted = [
        Question("1", "Who?", context, (("Kim", 0), ("Kim sees", 0))),
        Question("2", "Who?", context, (("Ada", 14),)),
    ]
    assert load("squad", tmp_path) == wanted
    path = write(tmp_path / "x.json", squad(one, two, none, version="v2.0"))
    assert load("squad", path) == [*wanted, Question("3", "Who?", context, ())]
    hub = [{"id": "1", "context": context, "question": "Who?",
            "answers": {"text": ["Kim", "Kim sees"], "answer_start": [0, 0]}},
           {"id": "3", "context": context, "question": "Who?",
            "answers": {"text": [], "answer_start": []}}]  # fmt: skip
    assert load("squad", write(tmp_path / "x.jsonl", *hub)) == [wanted[0], Question("3", "Who?", context, ())]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (question("2"), "no answers, and is_impossible is not true"),
        (question("2", ("Ada", 10)), "at character 10 the context has 'da.', not 'Ada'"),
        (question("2", ("Ada", 99)), "at character 99 the context has '', not 'Ada'"),
        (question("2", ("Ada", -12)), "at character -12 the context has 'Kim', not 'Ada'"),
        (question("2", ("Ada", "9")), "column 'answers' is .*first character"),
        (question("2", ("Ada", None)), "the answer 'Ada' is 2 times in the context; set answer_start"),
        (question("2", ("", 0)), "the answer '' is 0 times"),
        (question("1", ("Ada", 9)), "the id '1' is that of .*x.json:1 already"),
        ({"id": "2", "answers": [{"text": "Ada", "answer_start": 9}]}, "no column 'question'"),
        (3, "no question with a context"),
    ],
)
def test_bad_questions_are_named_or_left_out(tmp_path, wrong, says):
    path = write(tmp_path / "x.json", squad(question("1", ("Kim", 0)), wrong, question("4", ("Ada", 9))))
    with pytest.raises(UserError, match=rf"x\.json:2: {says}"):
        load("squad", path)
    bad = BadRows("skip")
    assert [found.id for found in load("squad", path, bad=bad)] == ["1", "4"] and len(bad.messages) == 1


def test_what_is_not_squad_is_an_error(tmp_path):
    for value in ({"data": [{"qas": []}]}, {"data": 3}, {"version": "1.1"}):
        with pytest.raises(UserError, match=r"x\.json: not SQuAD's format"):
            load("squad", write(tmp_path / "x.json", value), bad=BadRows("skip"))


def test_questions_of_ones_own(tmp_path):
    path = write(tmp_path / "x.jsonl", {"question": "Who?", "context": "Kim sees Ada.", "answer": "Ada"})
    assert load("qa", path) == [Question(f"{path}:1", "Who?", "Kim sees Ada.", (("Ada", 9),))]


def test_choices(tmp_path):
    copa = {"premise": "My body cast a shadow. ", "choice1": "The sun was up.", "choice2": "I slept.", "label": 1}
    path = write(tmp_path / "x.jsonl", copa | {"question": "cause"}, copa | {"question": "effect", "label": "0"})
    options = (" the sun was up.", " I slept.")
    assert load("copa", path) == [
        Choices("My body cast a shadow because", options, 1), Choices("My body cast a shadow so", options, 0),
    ]  # fmt: skip
    rows = [{"ctx": "2 + 2 =", "endings": ["5", " 4"], "label": 1}, {"ctx": "1 +", "endings": ["x", "y"], "label": "x"}]
    assert load("choice", write(tmp_path / "x.jsonl", *rows)) == [
        Choices("2 + 2 =", (" 5", " 4"), 1), Choices("1 +", (" x", " y"), 0),
    ]  # fmt: skip


def test_facts_to_texts(tmp_path):
    triples = [["A_B", "isIn", "C"], ["C", "size", '"9"']]
    refs = [
        {"text": "A is in C.", "comment": "good"},
        {"text": "no", "comment": "bad"},
        {"text": "C!", "comment": "good"},
    ]
    path = write(tmp_path / "x.jsonl", {"category": "Airport", "triples": triples, "refs": refs})
    context = 'A_B : isIn : C | C : size : "9"<e>'
    wanted = [Text(context, " A is in C.<e>", "seen"), Text(context, " C!<e>", "seen")]
    assert load("webnlg", path) == wanted
    named = [dict(zip(("subject", "property", "object"), triple)) for triple in triples]
    lexical = [{"lex": ref["text"], "comment": ref["comment"]} for ref in refs]
    entry = {"category": "Airport", "modifiedtripleset": named, "lexicalisations": lexical}
    assert load("webnlg", write(tmp_path / "x.json", {"entries": [{"1": entry}]})) == wanted
    hub = {"category": "Airport", "modified_triple_sets": {"mtriple_set": [["A_B | isIn | C", 'C | size | "9"']]},
           "lex": {"text": [r["text"] for r in refs], "comment": [r["comment"] for r in refs]}}  # fmt: skip
    assert load("webnlg", write(tmp_path / "x.jsonl", hub)) == wanted
    dart = {"tripleset": [["A_B", "IS IN", "C"]], "annotations": [{"source": "x", "text": "A is in C."}]}
    assert load("dart", write(tmp_path / "dart-v1.1.1-full-train.json", [dart]).parent) == [
        Text("A_B : is in : C<e>", " A is in C.<e>")
    ]
    path = write(tmp_path / "x.jsonl", {"category": "Airport", "triples": [["a", "b"]], "refs": refs})
    with pytest.raises(UserError, match=r"x\.jsonl:1: the triples are .*: a triple has a subject, a property"):
        load("webnlg", path)
    with pytest.raises(UserError, match=r"x\.jsonl:1: no list of texts"):
        load("webnlg", write(path, {"category": "Airport", "triples": triples}))
    with pytest.raises(UserError, match="not WebNLG's format"):
        load("webnlg", write(tmp_path / "x.json", {"data": []}))


def test_an_empty_text_of_webnlg_is_left_out_and_counted(tmp_path):
    refs = [{"text": text, "comment": "good"} for text in ("One.", " ", "Two.")]
    entry = {"category": "Airport", "triples": [["a", "b", "c"]], "refs": refs}
    path, bad = write(tmp_path / "x.jsonl", entry, entry | {"refs": refs[:1]}), BadRows()
    assert [text.completion for text in load("webnlg", path, bad=bad)] == [" One.<e>", " Two.<e>", " One.<e>"]
    assert bad.messages == [f"{path}:1: the completion is empty; give it text"]
    with pytest.raises(UserError, match=r"x\.jsonl: all 1 rows are bad; the first: .*:1: the completion is empty"):
        load("webnlg", write(path, entry | {"refs": refs[1:2]}))
    with pytest.raises(UserError, match=r"x\.jsonl:1: column 'completion' is \[3\]"):
        load("webnlg", write(path, entry | {"refs": [{"text": [3], "comment": "good"}]}))


def test_categories_of_webnlg(tmp_path):
    rows = [{"context": name, "completion": "x", "category": name} for name in ("Food", "Artist", "Food", "Athlete")]
    path = write(tmp_path / "x.jsonl", *rows)

    def chosen(*names, **changes):
        return [text.prompt.removesuffix("<e>") for text in load("webnlg", path, categories=names, **changes)]

    assert chosen() == ["Food", "Artist", "Food", "Athlete"]
    assert [text.part for text in load("webnlg", path)] == ["seen", "unseen", "seen", "unseen"]
    assert chosen("seen") == ["Food", "Food"] and chosen("unseen") == ["Artist", "Athlete"]
    assert chosen("seen", "Athlete") == ["Food", "Food", "Athlete"]
    assert chosen("unseen", max_train_rows=2) == ["Artist", "Athlete"]
    with pytest.raises(UserError, match=r"categories=\('City',\): the train split has none of them, but Artist, Athl"):
        chosen("City")


def test_translation(tmp_path):
    for language, text in (("en", "A boy.\nA girl.\n"), ("de", "Ein Junge.\nEin Mädchen.\n"), ("fr", "Un.\nUne.\n")):
        (tmp_path / f"train.{language}").write_text(text)
        (tmp_path / f"test_2017.{language}").write_text(text.split("\n")[0] + "\n")
    assert load("multi30k", tmp_path)[1] == Text("A girl.\nTranslation:", " Ein Mädchen.<e>")
    assert load("multi30k", tmp_path, source="de", target="fr")[0] == Text("Ein Junge.\nTranslation:", " Un.<e>")
    assert len(load("multi30k", tmp_path, "test", test_set="test_2017")) == 1
    assert len(load("multi30k", tmp_path / "train.en")) == 2
    table = write(tmp_path / "x.jsonl", {"translation": {"en": "a", "de": "b"}}, {"en": "c", "de": "d"})
    assert load("multi30k", table) == [Text("a\nTranslation:", " b<e>"), Text("c\nTranslation:", " d<e>")]
    with pytest.raises(UserError, match=r"give the source language's file, with the suffix \.en"):
        load("multi30k", tmp_path / "train.de")
    with pytest.raises(UserError, match="give two languages"):
        load("multi30k", tmp_path, target="en")
    (tmp_path / "train.de").write_text("Ein Junge.\n")
    with pytest.raises(UserError, match="do not belong together"):
        load("multi30k", tmp_path)


SQL = (
    "SELECT COUNT TABLEalias0.NAME_FIELD FROM TABLE AS TABLEalias0 "
    'WHERE NO._FIELD = 21 AND TABLEalias0.X/Y_FIELD = "a b" ;'
)


def test_wikisql(tmp_path):
    wanted = Text("How many?\nSQL:", ' SELECT COUNT NAME FROM table WHERE NO. = 21 AND X/Y = "a b"<e>')
    assert load("wikisql", write(tmp_path / "x.jsonl", {"question": "How many? ", "sql": SQL})) == [wanted]
    sql = {"sel": 0, "agg": 3, "conds": [[1, 0, 21], [2, 1, "a b"]]}
    header = ["Name", "No.", "X/Y"]
    wanted = Text(
        "How many?\nColumns: Name, No., X/Y\nSQL:", " SELECT COUNT Name FROM table WHERE No. = 21 AND X/Y > a b<e>"
    )
    path = write(tmp_path / "train.jsonl", {"question": "How many?", "table_id": "t", "sql": sql})
    write(tmp_path / "train.tables.jsonl", {"id": "t", "header": header})
    assert load("wikisql", tmp_path) == [wanted]
    conditions = {"column_index": [1, 2], "operator_index": [0, 1], "condition": ["21", "a b"]}
    hub = {"question": "How many?", "table": {"header": header}, "sql": sql | {"conds": conditions}}
    assert load("wikisql", write(tmp_path / "hub.jsonl", hub)) == [wanted]
    with pytest.raises(UserError, match=r"train\.jsonl:1: sql does not fit the header"):
        load("wikisql", write(path, {"question": "?", "table_id": "t", "sql": sql | {"sel": 3}}))
    with pytest.raises(UserError, match=r"train\.jsonl:1: sql does not fit the header None"):
        load("wikisql", write(path, {"question": "?", "table_id": "u", "sql": sql}))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (
            'SELECT COUNT a b FROM TABLE AS t WHERE x = 21 AND y/z = "A b" ;',
            "select COUNT(a b) from table where y/z = a B AND x = 21",
            True,
        ),
        ("SELECT a FROM table WHERE b = x and c = y", "SELECT a FROM table WHERE c = y and b = x", False),  # a value
        ("SELECT a FROM table", "select A from TABLE;", True),
        ("SELECT a FROM table WHERE b = 1 AND c > x y", 'SELECT a FROM table WHERE c > "X  y" AND b = 1 ;', True),
        ("SELECT COUNT a FROM table", "SELECT COUNT(a) FROM table", True),
        ("SELECT COUNT a FROM table", "SELECT a FROM table", False),
        ("SELECT Max speed FROM table", "SELECT MAX speed FROM table", False),
        ("SELECT MAX speed (km) FROM table", "SELECT MAX speed (mi) FROM table", False),
        ("SELECT a FROM table WHERE b = 1", "SELECT a FROM table WHERE b > 1", False),
        ("SELECT a FROM table WHERE b = 1", "SELECT a FROM table WHERE b = 1 AND c = 2", False),
        ("SELECT a FROM table WHERE b = x AND y", "SELECT a FROM table WHERE b = y AND x", False),
        ("SELECT a FROM table WHERE b", "SELECT a FROM table", False),
        ("no query", "No  query", True),
        ("no query", "SELECT a FROM table", False),
        ("", "SELECT a FROM table", False),
    ],
)
def test_logical_forms(one, other, same):
    assert (canonical(one) == canonical(other)) == same and canonical(one) == canonical(f" {one} ")


def test_summaries_and_plain_prompts(tmp_path):
    path = write(tmp_path / "x.jsonl", {"id": "1", "dialogue": "A: Hi\n", "summary": " They met. "})
    assert load("summarisation", path) == [Text("A: Hi\nSummary:", " They met.<e>")]
    path = write(tmp_path / "x.jsonl", {"prompt": "a ", "completion": " b \n"})
    assert load("lm", path) == [Text("a ", " b \n<e>")]
    path = write(tmp_path / "x.jsonl", {"mr": "name[X]", "ref": "X. "})
    assert load("e2e", path) == [Text("name[X]<e>", " X.<e>")]
    for split, name in (("train", "trainset"), ("validation", "devset"), ("test", "testset_w_refs")):
        (tmp_path / f"{name}.csv").write_text(f'mr,ref\n"name[X], food[{split}]","X, a pub."\n')
        assert load("e2e", tmp_path, split) == [Text(f"name[X], food[{split}]<e>", " X, a pub.<e>")]


@pytest.mark.parametrize(("task", "row", "roles"), [
    ("e2e", {"mr": "name[X]", "ref": "X."}, {"mr": "context", "ref": "completion"}),
    ("webnlg", {"context": "a", "completion": "b"}, {"context": "context", "completion": "completion"}),
    ("dart", {"tripleset": [["a", "b", "c"]], "annotations": [{"text": "X."}]}, {"annotations": "completion"}),
    ("multi30k", {"en": "a", "de": "b"}, {"en": "source", "de": "target"}),
    ("summarisation", {"document": "a", "summary": "b"}, {"document": "document", "summary": "summary"}),
    ("wikisql", {"question": "a", "sql": "SELECT b FROM table"}, {"sql": "query"}),
    ("instructions", {"instruction": "a", "output": "b"}, {"output": "output"}),
])  # fmt: skip
def test_empty_texts_are_bad_rows(tmp_path, task, row, roles):
    for column, role in roles.items():
        old = row[column]
        empty = " \n" if isinstance(old, str) else [{**old[0], "text": " "}]
        path = write(tmp_path / "x.jsonl", row, {**row, column: empty}, row)
        with pytest.raises(UserError, match=rf"x\.jsonl:2: the {role} is empty"):
            load(task, path)
        bad = BadRows("skip")
        assert len(load(task, path, bad=bad)) == 2 and len(bad.messages) == 1 and "x.jsonl:2: " in bad.messages[0]


def test_instructions(tmp_path):
    path = write(
        tmp_path / "x.jsonl",
        {"instruction": "Add {1}.", "input": "1 2", "output": "3"},
        {"instruction": "Say hi.", "output": "\nhi "},
        {"instruction": "Say so.", "input": None, "output": "so"},
        {"instruction": "Again.", "instances": [{"input": "a", "output": "b"}, {"input": "", "output": "d"}]},
    )
    found = load("instructions", path)
    assert found[0].prompt.endswith("### Instruction:\nAdd {1}.\n\n### Input:\n1 2\n\n### Response:\n")
    assert found[0].prompt.startswith("Below is an instruction that describes a task, paired with an input that")
    assert found[0].completion == "3<e>"
    assert [("### Input" in text.prompt, text.completion) for text in found[1:]] == [
        (False, "hi<e>"), (False, "so<e>"), (True, "b<e>"), (False, "d<e>"),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"x\.jsonl:1: the output is empty"):
        load("instructions", write(path, {"instruction": "a", "output": " "}))
    with pytest.raises(UserError, match=r"x\.jsonl:1: instances must be a list"):
        load("instructions", write(path, {"instruction": "a", "instances": 3}))


def test_an_answer_is_no_part_of_its_prompts_last_token(tmp_path):
    vocab = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<e>", ':"', ":-", "\u010a\u010a"]  # two line ends
    merges = [(":", '"'), (":", "-"), ("\u010a", "\u010a")]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<e>")
    answers = ['"Yes"', "- a\n- b", "\n\nNo"]
    path = write(tmp_path / "x.jsonl", *({"instruction": "Say.", "output": answer} for answer in answers))
    encoded = encode_lm(load("instructions", path), tokenizer, Collector(999))
    learned = [encoded[i].labels[encoded[i].labels != IGNORED] for i in range(len(answers))]
    assert tokenizer.batch_decode(learned) == [f"{answer.strip()}<e>" for answer in answers]


def test_chat(tmp_path):
    ours = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u\n"},
                         {"role": "assistant", "content": " a"}]}  # fmt: skip
    theirs = {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}
    assert load("chat", write(tmp_path / "x.jsonl", ours, theirs)) == [
        Chat((("system", "s"), ("user", "u\n"), ("assistant", " a"))), Chat((("user", "u"), ("assistant", "a"))),
    ]  # fmt: skip
    for wrong, says in (
        ([{"role": "user", "content": "u"}], "no message is the assistant's"),
        ([{"role": "tool", "content": "u"}], "message 1 is of 'tool', none of system"),
        ([{"role": "assistant", "content": None}], "message 1 has no text"),
        ([{"role": "assistant", "content": "\ud800"}], "half a surrogate"),
        ([], "no message"), ("hi", "it must be a list"), (["hi"], "it must be a list"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"x\.jsonl:1: column 'messages' is .*{says}"):
            load("chat", write(tmp_path / "x.jsonl", {"messages": wrong}))


def test_gaps(tmp_path):
    rows = [{"sub_label": name, "obj_label": "Germany"} for name in ("Eibenstock", "Bonn")]
    fields = {"relation": "P17", "template": "[X], in [Y] ."}
    write(tmp_path / "P17" / "train.jsonl", *rows)
    assert load("lama", tmp_path, **fields) == [
        Cloze("Eibenstock, in {mask} .", "Germany"), Cloze("Bonn, in {mask} .", "Germany"),
    ]  # fmt: skip
    relations = write(tmp_path / "relations.jsonl", {"relation": "P17", "template": "[Y] has [X]"})
    found = load("lama", tmp_path, relation="P17", relations_file=str(relations))
    assert found[0] == Cloze("{mask} has Eibenstock", "Germany")
    (tmp_path / "vocab.txt").write_text("France\nGermany\n")
    vocabulary = {"vocab_file": str(tmp_path / "vocab.txt")}
    cfg = configs.get("lama")
    cfg.update(vocabulary)
    assert TASKS["lama"].classes(cfg) == ("France", "Germany")
    assert len(load("lama", tmp_path, **fields, **vocabulary)) == 2
    write(tmp_path / "P30.jsonl", *({"sub_label": f"s{i}", "obj_label": "France"} for i in range(10)))
    parts = [load("lama", tmp_path, split, **fields | {"relation": "P30"}) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [8, 1, 1] and len(set().union(*parts)) == 10
    path = write(tmp_path / "x.jsonl", {"sub_label": "a", "obj_label": "Spain"})
    for changes, says in (
        (vocabulary, r"x\.jsonl:1: the answer 'Spain' is not in task\.vocab_file"),
        ({"relation": ""}, r"task\.relation is empty"),
        ({"template": "[X]"}, r"task\.template='\[X\]': write \[X\] and \[Y\] once"),
        ({"template": "", "relation": "P1", "relations_file": str(relations)}, "no template of relation P1"),
    ):
        with pytest.raises(UserError, match=says):
            load("lama", path, **fields | changes)
    with pytest.raises(UserError, match=r"x\.jsonl:1: the subject holds '{mask}'"):
        load("lama", write(path, {"sub_label": "{mask}", "obj_label": "Spain"}), **fields)
