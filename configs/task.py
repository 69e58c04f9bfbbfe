"""Tasks: where the data are, and the sizes that suit the shipped models."""

from typing import Any

from ml_collections import ConfigDict

NAMES = dict(columns=dict(name=""), train_size=20000, validation_size=500, test_size=500, seed=0, max_length=64)
SINGLE, PAIR = ("text", "label"), ("text", "text_pair", "label")
PROMPTED = dict(template="", label_words=())  # a sentence with {text}, {text_pair}, {mask}; a word for each class
FOUND = dict(classes=())  # found in the training rows where empty


def _columns(*roles: str, **more: Any) -> dict[str, Any]:
    return dict(columns=dict.fromkeys(roles, ""), **more)


TASKS = {
    "reverse": NAMES,
    "vowels": NAMES | PROMPTED,
    "e2e": _columns("context", "completion", max_length=512),
    "webnlg": _columns("context", "completion", "category", max_length=512, categories=()),  # names, seen, unseen
    "dart": _columns("context", "completion", max_length=512),
    "wikisql": _columns("question", "header", "sql", max_length=384),
    "multi30k": _columns("source", "target", source="en", target="de", test_set="test_2016_flickr", max_length=256),
    "summarisation": _columns("document", "summary", max_length=1024),
    "lm": _columns("prompt", "completion", max_length=512),
    "instructions": _columns("instruction", "input", "output", max_length=512),
    "chat": _columns("messages", max_length=1024),
    "text": _columns("text", max_length=256, validation_files=""),
    "sst2": _columns(*SINGLE, **PROMPTED, max_length=128),
    "cola": _columns(*SINGLE, **PROMPTED, max_length=128),
    "agnews": _columns(*SINGLE, **PROMPTED, max_length=256),
    "trec": _columns(*SINGLE, **PROMPTED, max_length=128),
    "subj": _columns(*SINGLE, **PROMPTED, max_length=128),
    "mrpc": _columns(*PAIR, **PROMPTED, max_length=128),
    "qqp": _columns(*PAIR, **PROMPTED, max_length=256),
    "mnli": _columns(*PAIR, **PROMPTED, max_length=256, genre="matched"),  # mismatched
    "qnli": _columns(*PAIR, **PROMPTED, max_length=256),
    "rte": _columns(*PAIR, **PROMPTED, max_length=256),
    "sick": _columns(*PAIR, **PROMPTED, max_length=128),
    "classification": _columns(*PAIR, **PROMPTED, **FOUND, max_length=256),
    "stsb": _columns("text", "text_pair", "score", max_length=128),
    "regression": _columns("text", "text_pair", "score", max_length=256),
    "conll2003": _columns("words", "tags", scheme="iob1", max_length=256),  # of the files' tags; bio, none
    "wnut17": _columns("words", "tags", scheme="bio", max_length=256),
    "ud": _columns("words", "tags", scheme="none", max_length=256),
    "tagging": _columns("words", "tags", scheme="bio", **FOUND, max_length=256),
    "squad": _columns("id", "question", "context", "answers", max_length=384),
    "qa": _columns("id", "question", "context", "answers", max_length=384),
    "copa": _columns("premise", "first", "second", "question", "label", max_length=128),
    "choice": _columns("prompt", "options", "label", max_length=256),
    "lama": _columns(
        "subject", "object", relation="", template="", relations_file="", vocab_file="", max_length=64
    ),
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {name: {"epochs": 1.0} for name in TASKS}  # of the rest of the config
DEFAULTS |= {
    "reverse": {"epochs": 8.0, "batch_size": 64},
    "vowels": {"epochs": 2.0, "batch_size": 64},
    "text": {"epochs": 1.0, "batch_size": 8},
    **{name: {"epochs": 1.0, "batch_size": 8, "data.overlong": "drop"} for name in ("e2e", "webnlg", "dart")},
    **{name: {"epochs": 3.0} for name in ("mrpc", "cola", "rte", "stsb", "conll2003", "wnut17")},
}


def get(name: str) -> ConfigDict:
    """Fields of the task axis; ValueError lists what exists."""
    if name not in TASKS:
        raise ValueError(f"config axis task={name!r} is unknown; there are {', '.join(TASKS)}")
    common = dict(
        name=name,
        objective="",  # lm, classification, ...: the task's own where empty
        data="",  # a directory or a hub id
        files=dict(train="", validation="", test=""),  # jsonl, csv, tsv, gz; columns.<role> names a column
        max_train_rows=0,  # 0: all
        max_eval_rows=0,
        eval_split="validation",
    )
    return ConfigDict(common | TASKS[name])
