"""Tasks: where the data are, and the sizes that suit the shipped models."""

from typing import Any

from ml_collections import ConfigDict

NAMES = dict(columns=dict(name=""), train_size=20000, validation_size=500, test_size=500, seed=0, max_length=64)
SINGLE, PAIR = ("text", "label"), ("text", "text_pair", "label")
NEAR = dict(  # similarity
    loss="",  # softmax of classes, cosine of numbers, triplet or in_batch of texts; by the examples where empty
    margin=1.0,  # of triplet
    scale=20.0,  # of in_batch
)
GAP = dict(  # words: a sentence with {text}, {text_pair}, {mask}; a word for each class
    template="",
    label_words=(),
    demonstrations=0,  # 1: a solved example of each class after the text
    demonstration_encoder="",  # a model: only the half of each class that is nearest to the text
    train_draws=16,  # of demonstrations, each an example of its own
    test_draws=16,  # averaged
)
OPTIONS = dict(normalise="tokens")  # choice: by what an option's log-likelihood is divided; characters, none
PROMPTED = GAP | OPTIONS
HIDDEN = dict(  # of raw text: objective=mlm, nsp, rtd, spans
    mask_rate=0.15,
    whole_words=False,
    mean_span=3.0,  # tokens, spans
    generator_size=0.25,  # of the model's heads and widths, rtd
    detection_weight=50.0,  # of the detector's loss beside the generator's, rtd
)
FOUND = dict(classes=())  # found in the training rows where empty
PAIRED = PROMPTED | NEAR
SPAN = dict(doc_stride=128, max_answer=30, null_threshold=0.0)  # tokens; of "no answer" over the best answer


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
    "summarisation": _columns("document", "summary", max_length=512),
    "lm": _columns("prompt", "completion", "part", max_length=512),
    "instructions": _columns("instruction", "input", "output", max_length=512),
    "chat": _columns(
        "messages", chat_template="", system="", learn="all", max_length=512
    ),  # the tokenizer's, plain, chatml, a file; said first where nothing is; all turns, last
    "text": _columns("text", **HIDDEN, max_length=256, validation_files=""),
    "sst2": _columns(*SINGLE, **PROMPTED, max_length=128),
    "cola": _columns(*SINGLE, **PROMPTED, max_length=128),
    "agnews": _columns(*SINGLE, **PROMPTED, max_length=256),
    "trec": _columns(*SINGLE, **PROMPTED, max_length=128),
    "subj": _columns(*SINGLE, **PROMPTED, max_length=128),
    "mrpc": _columns(*PAIR, **PAIRED, max_length=128),
    "qqp": _columns(*PAIR, **PAIRED, max_length=256),
    "mnli": _columns(*PAIR, **PAIRED, max_length=256, genre="matched"),  # mismatched
    "qnli": _columns(*PAIR, **PAIRED, max_length=256),
    "rte": _columns(*PAIR, **PAIRED, max_length=256),
    "sick": _columns(*PAIR, **PAIRED, max_length=128),
    "classification": _columns(*PAIR, **PAIRED, **FOUND, max_length=256),
    "stsb": _columns("text", "text_pair", "score", **NEAR, bounds=(0.0, 5.0), **GAP, max_length=128),
    "regression": _columns("text", "text_pair", "score", **NEAR, bounds=(0.0, 1.0), **GAP, max_length=256),
    "similarity": _columns("first", "second", "third", **NEAR, max_length=128),
    "conll2003": _columns("words", "tags", scheme="iob1", max_length=256),  # of the files' tags; bio, none
    "wnut17": _columns("words", "tags", scheme="bio", max_length=256),
    "ud": _columns("words", "tags", scheme="none", max_length=256),
    "tagging": _columns("words", "tags", scheme="bio", **FOUND, max_length=256),
    "squad": _columns("id", "question", "context", "answers", **SPAN, max_length=384),
    "qa": _columns("id", "question", "context", "answers", **SPAN, max_length=384),
    "copa": _columns("premise", "first", "second", "question", "label", **OPTIONS, max_length=128),
    "choice": _columns("prompt", "options", "label", **OPTIONS, max_length=256),
    "lama": _columns(
        "subject", "object", relation="", template="", relations_file="", vocab_file="", max_length=64
    ),
}  # fmt: skip
MIXED = (
    "sst2", "mrpc", "qqp", "stsb", "rte", "sick", "mnli", "cola", "agnews", "copa", "e2e", "multi30k", "squad"
)  # fmt: skip


def _part(name: str) -> dict[str, Any]:
    own = {field: TASKS[name][field] for field in ("columns", "genre", "source", "target", "test_set")
           if field in TASKS[name]}  # fmt: skip
    files = dict(train="", validation="", test="")
    return dict(data="", files=files, max_train_rows=30000, max_eval_rows=0, **own)


TASKS["mixture"] = _columns(
    parts={name: _part(name) for name in MIXED},
    held_out="",  # a cluster, such as nli: evaluated, and not trained on
    cap=3000,  # rows that a part counts for at most
    size=0,  # rows of an epoch; 0: the parts' sizes up to the cap
    seed=0,
    max_length=512,
)
DEFAULTS: dict[str, dict[str, Any]] = {name: {"epochs": 1.0} for name in TASKS}  # of the rest of the config
DEFAULTS |= {
    "reverse": {"epochs": 8.0, "batch_size": 64},
    "vowels": {"epochs": 2.0, "batch_size": 64},
    "text": {"epochs": 1.0, "batch_size": 8},
    "mixture": {"epochs": 1.0, "data.overlong": "drop"},
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
        per_class=0,  # few-shot: so many training examples a class, as many others for validation; 0: all
        shots=0,  # solved examples before each prompt (lm, choice, words of causal models)
        separator="\n\n",  # after each of them
        eval_split="validation",
    )
    return ConfigDict(common | TASKS[name])
