"""Distillation: by a teacher's probabilities (`token`), its text (`sequence`), or both (`token` with a `corpus`);
by its probabilities of what the student itself writes (`on_policy`); by a verifier of what it writes (`policy`)."""

from typing import Any

from ml_collections import ConfigDict

TEXT = dict(
    teacher="",  # a directory, a hub id or a run's folder
    corpus="",  # a file of prompt and completion (ftjax teach --sequences), trained on in place of the task's rows
)
APART = dict(
    kind="forward_kl",  # cross_entropy, reverse_kl, jsd, tv
    temperature=1.0,
    t_squared=True,  # the loss times temperature^2, so that its gradient keeps its size
    beta=0.5,  # jsd: 0 is forward_kl, 1 reverse_kl
)
AXES: dict[str, dict[str, Any]] = {
    "none": {},
    "token": dict(
        **TEXT,
        **APART,
        cache="",  # in place of the teacher: a folder of ftjax teach
        estimator="tail_bucket",  # of a cache: truncated, renormalised
        alpha=0.5,  # of the teacher; 1 - alpha of the labels
        layers="",  # matched layers, student:teacher, as in 2:4,4:8; 0 is the embedding; by height where empty
        hidden=0.0,  # weight of their hidden states
        attention=0.0,  # of their attention
    ),
    "sequence": TEXT,  # the teacher: for ftjax teach
    "on_policy": dict(  # GKD
        **{**APART, "kind": "jsd"},
        teacher="",
        share=0.5,  # of steps whose answers the student writes; the data's in the others
        sampling_temperature=1.0,
    ),
    "policy": dict(  # REINFORCE
        reward="reference",  # what an answer must be: reference, sql, json, json:FIELD,FIELD, pattern:REGEX
        samples=8,  # answers a prompt; batch_size counts prompts
        sampling_temperature=1.0,
    ),
}


def get(name: str) -> ConfigDict:
    """Fields of the distill axis; ValueError lists what exists."""
    if name not in AXES:
        raise ValueError(f"config axis distill={name!r} is unknown; there are {', '.join(AXES)}")
    return ConfigDict(dict(name=name, **AXES[name]))
