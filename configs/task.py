"""Tasks: where the data are, and the sizes that suit the shipped models."""

from ml_collections import ConfigDict

NAMES = dict(data="", columns=dict(name=""), train_size=20000, validation_size=500, test_size=500, seed=0)
TASKS = {
    "reverse": dict(**NAMES, max_length=64),
    "vowels": dict(**NAMES, max_length=64),
    "e2e": dict(data="", columns=dict(context="", completion=""), max_length=512),
    "sst2": dict(data="", columns=dict(text="", label=""), max_length=128),
    "mrpc": dict(data="", columns=dict(first="", second="", label=""), max_length=128),
    "text": dict(data="", columns=dict(text=""), max_length=256, validation_files=""),
}
DEFAULTS = {  # of the rest of the config
    "reverse": {"epochs": 8.0, "batch_size": 64},
    "vowels": {"epochs": 2.0, "batch_size": 64},
    "e2e": {"epochs": 1.0, "batch_size": 8, "data.overlong": "drop"},
    "sst2": {"epochs": 1.0},
    "mrpc": {"epochs": 3.0},
    "text": {"epochs": 1.0, "batch_size": 8},
}


def get(name: str) -> ConfigDict:
    """Fields of the task axis; ValueError lists what exists."""
    if name not in TASKS:
        raise ValueError(f"config axis task={name!r} is unknown; there are {', '.join(TASKS)}")
    common = dict(
        name=name,
        files=dict(train="", validation="", test=""),  # jsonl, csv, tsv, gz; columns.<role> names a column
        max_train_rows=0,  # 0: all
        max_eval_rows=0,
        eval_split="validation",
    )
    return ConfigDict(common | TASKS[name])
