"""Methods, and the learning rates that suit them on the shipped models."""

from ml_collections import ConfigDict

METHODS = {
    "full": dict(),
    "head": dict(),
    "lora": dict(rank=8, alpha=16.0, targets=("attention",), dropout=0.0),
}
DEFAULTS = {  # of the rest of the config
    "full": {"optimizer.learning_rate": 1e-3},
    "head": {"optimizer.learning_rate": 1e-2},
    "lora": {"optimizer.learning_rate": 3e-3},
}


def get(name: str) -> ConfigDict:
    """Fields of the method axis; ValueError lists what exists."""
    if name not in METHODS:
        raise ValueError(f"config axis method={name!r} is unknown; there are {', '.join(METHODS)}")
    return ConfigDict(dict(name=name, **METHODS[name]))
