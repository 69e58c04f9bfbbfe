"""The config of every run.

    ftjax train --config=configs/default.py:model=nano-gpt,task=reverse,method=lora --workdir=runs/x \\
        --config.method.rank=8

Axes after the colon, each a file beside this one: `model` (a name, a hub id or a local Hugging Face directory), `task`,
`method`, `optimizer`, `distill`, `mesh`. Any field can then be set with `--config.field=value`.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import distill, mesh, method, model, optimizer, task

AXES = {
    "model": (model.get, "nano-gpt"),
    "task": (task.get, "reverse"),
    "method": (method.get, "lora"),
    "optimizer": (optimizer.get, "adamw"),
    "distill": (distill.get, "none"),
    "mesh": (mesh.get, "single"),
}


def get_config(axes: str = "") -> Any:  # a ConfigDict, of whose fields a type checker knows nothing
    """The config for `axis=value,axis=value`; ValueError lists what exists."""
    chosen = {name: default for name, (_, default) in AXES.items()}
    for item in filter(None, axes.split(",")):
        name, equals, value = item.partition("=")
        if name not in AXES or not equals or not value:
            raise ValueError(f"config axis {item!r}: write axis=value with an axis of {', '.join(AXES)}")
        chosen[name] = value
    config = ConfigDict(
        dict(
            seed=0,
            steps=placeholder(int),  # or epochs
            epochs=placeholder(float),
            batch_size=32,  # examples a step
            micro_batches=1,  # gradient accumulation: the batch in so many parts
            eval_every=placeholder(int),  # steps; once an epoch where not given
            eval_batch_size=64,
            early_stopping=0,  # evaluations without a better main metric before the run ends; 0: never
            log_every=20,
            warm_start="",  # a run's workdir: start from its best trained leaves
            profile_steps=0,  # so many steps from the third on are traced by jax.profiler into the workdir
            wandb_project="",
            data=dict(
                layout="auto",  # packed (lm, choice, tagging, mlm, rtd), buckets (the rest)
                overlong="error",  # or drop, truncate (keeps the start), truncate_left (keeps the end)
                on_bad_row="error",  # or skip, counted
                pad_side="right",
                buckets=6,
                row_length=0,  # of packed rows; 0: the shortest that holds every example, or group that shares a prompt
                shared_prompts=1,  # of packed rows: so many examples of one prompt, at most, behind one copy of it
            ),
            loss=dict(label_smoothing=0.0, z_loss=0.0, reduction="token", chunk=2048),
            generate=dict(
                max_new_tokens=placeholder(int),
                examples=placeholder(int),
                num_beams=1,  # over 1: the metrics of text by beam search too, as <metric>_beam<n>
                samples=0,  # over 0: of so many answers drawn at temperature 1, together, too, as <metric>_sampled<n>
            ),
        )
    )
    for name, (get, _) in AXES.items():
        config[name] = get(chosen[name])
    config.update_from_flattened_dict(task.DEFAULTS[chosen["task"]] | method.defaults(chosen["method"]))
    return config
