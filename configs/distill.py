"""Distillation: by a teacher's probabilities (`token`), its text (`sequence`), or both (`token` with a `corpus`)."""

from typing import Any

from ml_collections import ConfigDict

TEXT = dict(
    teacher="",  # a directory, a hub id or a run's folder
    corpus="",  # a file of prompt and completion (ftjax teach --sequences), trained on in place of the task's rows
)
AXES: dict[str, dict[str, Any]] = {
    "none": {},
    "token": dict(
        **TEXT,
        cache="",  # in place of the teacher: a folder of ftjax teach
        kind="forward_kl",  # cross_entropy, reverse_kl, jsd, tv
        temperature=1.0,
        t_squared=True,  # the loss times temperature^2, so that its gradient keeps its size
        beta=0.5,  # jsd: 0 is forward_kl, 1 reverse_kl
        estimator="tail_bucket",  # of a cache: truncated, renormalised
        alpha=0.5,  # of the teacher; 1 - alpha of the labels
        layers="",  # matched layers, student:teacher, as in 2:4,4:8; 0 is the embedding; by height where empty
        hidden=0.0,  # weight of their hidden states
        attention=0.0,  # of their attention
    ),
    "sequence": TEXT,  # the teacher: for ftjax teach
}


def get(name: str) -> ConfigDict:
    """Fields of the distill axis; ValueError lists what exists."""
    if name not in AXES:
        raise ValueError(f"config axis distill={name!r} is unknown; there are {', '.join(AXES)}")
    return ConfigDict(dict(name=name, **AXES[name]))
