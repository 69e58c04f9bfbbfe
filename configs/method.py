"""Methods, and the learning rates that suit them on the shipped models. Several at once: `method=prefix+lora`."""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def _fields() -> dict[str, dict[str, Any]]:
    """All methods' fields, made anew: a placeholder is a reference, which all configs that hold it would see set."""
    return {
        "full": dict(),
        "head": dict(),
        "top_layers": dict(count=2),  # layers from the top
        "gradual": dict(),
        "bitfit": dict(norms=False),  # the norms' scales as well
        "lora": dict(
            rank=8,
            alpha=16.0,
            targets=("attention",),  # attention, mlp, all_linear, embed, qkv, head, or ends of paths (^: all of one)
            dropout=0.0,
            layers=(),  # numbers from 0; all where empty
            rank_pattern="",  # attn/q:4,mlp:16
            alpha_pattern="",
            rslora=False,
            dora=False,
            pissa=False,
        ),
        "ia3": dict(definition="paper", layers=()),
        "adapter": dict(kind="houlsby", size=16, init_std=0.01, layers=()),  # houlsby, lin, pfeiffer
        "prompt": dict(
            length=20,
            init="vocab",  # random, vocab, classes, text
            text="",
            inside=placeholder(bool),  # after an opening special token; on encoders where not given
        ),
        "prefix": dict(definition="paper", length=10, hidden=512, init="random", text=""),  # init: random, words
        "p_tuning": dict(
            definition="paper",
            template=placeholder(str),  # {3}{text} anchor words{3}; of a masked text {3}{before}{mask}{3}{after}{3}
            hidden=placeholder(int),  # of PEFT's MLP; the model's width where not given
        ),
        "llama_adapter": dict(
            definition="paper",
            length=10,
            count=0,  # layers from the top; 0: all
            gate=placeholder(str),  # head, scalar; by the definition where not given
            tanh=placeholder(bool),
        ),
    }


METHODS = tuple(_fields())
RATES = {
    "full": 1e-3,
    "head": 1e-2,
    "top_layers": 1e-3,
    "gradual": 1e-3,
    "bitfit": 3e-3,
    "lora": 3e-3,
    "ia3": 1e-2,
    "adapter": 3e-3,
    "prompt": 3e-2,
    "prefix": 6e-4,
    "p_tuning": 5e-3,
    "llama_adapter": 1e-2,
}


def defaults(name: str) -> dict[str, Any]:
    """What a method changes in the rest of the config."""
    names = name.split("+")
    gradual = {"optimizer.unfreeze_every": 1.0} if "gradual" in names else {}
    return {"optimizer.learning_rate": min(RATES[one] for one in names), **gradual}


def get(name: str) -> ConfigDict:
    """Fields of the method axis, of a composition one section a method; ValueError lists what exists."""
    names = name.split("+")
    for one in names:
        if one not in METHODS:
            raise ValueError(f"config axis method={name!r}: {one!r} is unknown; there are {', '.join(METHODS)}")
    fields = {one: values for one, values in _fields().items() if one in names}
    return ConfigDict(dict(name=name, **(fields[name] if len(names) == 1 else fields)))
