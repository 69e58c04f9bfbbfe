"""A critic: a classifier of pairs of a prompt and an answer, by which a teacher's answers are rated (West et al. 2022,
section 3.3)."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ftjax import hub
from ftjax.data.around import Around, insert
from ftjax.data.encode import encode_classification
from ftjax.data.encoded import Collector, Overlong
from ftjax.data.loader import Loader
from ftjax.data.tasks.task import Labelled
from ftjax.distill import teacher_key
from ftjax.errors import UserError
from ftjax.files import as_path
from ftjax.hub import files
from ftjax.kinds import KINDS, require
from ftjax.objectives.classification import classification
from ftjax.parallel.mesh import place, rows_here, rows_multiple
from ftjax.train.build import unroll
from ftjax.train.evaluate import device_batches, gather
from ftjax.train.restore import load_run
from ftjax.train.teacher import is_run

Tree = Any


class Critic(NamedTuple):
    """A classifier, and which of its classes is the acceptable one; on longer pairs than it takes `overlong` says what
    is done."""

    name: str
    outputs: Any  # (variables, batch) -> {'logits': [B, C]}
    variables: Tree
    tokenizer: Any
    classes: tuple[str, ...]
    acceptable: int
    around: Around | None
    max_length: int
    overlong: Overlong
    pad_side: Literal["left", "right"]
    key: str  # of its weights


def load_critic(name: str, acceptable: str, mesh: Mesh) -> Critic:
    """The critic in a run's folder, of a task of pairs trained as classification, or in a model directory or hub id of
    a classifier, read onto a mesh; `acceptable` names the class of the answers that are wanted.

    Raises:
      UserError: none there, no classifier of pairs, or no class of that name.
    """
    if is_run(name):
        f, parts = load_run(as_path(name), mesh)
        if parts.kind is not KINDS["classification"] or "text_pair" not in parts.task.columns:
            kind = f.task.objective or parts.task.objectives[0]
            raise UserError(
                f"--critic={name}: trained on {f.task.name} as {kind}; a critic is of pairs, by task=classification"
            )
        model, classes, variables = parts.model, parts.setting.classes, parts.variables
        its = (parts.objective.outputs, variables, parts.tokenizer, classes)
        overlong = "error" if f.data.overlong == "drop" else f.data.overlong  # none may be dropped
        limits = (parts.around, f.task.max_length, overlong, f.data.pad_side)
    else:
        model, params = hub.load(name, max_segments=0)  # a row is one example
        if model.cfg.head != "classification":
            raise UserError(f"--critic={name}: its head is {model.cfg.head}; a critic is a classifier of pairs")
        model = model.clone(cfg=model.cfg.replace(scan_unroll=unroll(model.cfg.num_layers)))
        named = files.read_json(files.resolve(name) / "config.json").get("id2label", {})
        classes = tuple(named[number] for number in sorted(named, key=int))
        variables = {"params": params, "adapters": {}}
        its = (classification(model).outputs, variables, hub.tokenizer(name, model.cfg.vocab_size), classes)
        limits = (None, model.cfg.room, "error", "right")
    require("--acceptable", acceptable, acceptable in classes, f"one of the critic's classes: {', '.join(classes)}")
    return Critic(name, *its, classes.index(acceptable), *limits, teacher_key(model, variables))


def rate(critic: Critic, pairs: Sequence[tuple[str, str]], batch_size: int, mesh: Mesh) -> list[float]:
    """A(x, y), the probability of the acceptable class, of each (prompt, answer), in their order; the same one is
    asked for once. Texts are encoded, laid in batches and run as an evaluation's.

    Raises:
      UserError: a pair longer than the critic takes, where its run did not truncate.
    """
    different = list(dict.fromkeys(pairs))
    examples = [Labelled(prompt.strip(), critic.acceptable, answer.strip()) for prompt, answer in different]
    places = [f"--critic={critic.name}: the answer to {prompt!r:.60}" for prompt, _ in different]
    out = Collector(critic.max_length, critic.overlong, places)
    encoded = encode_classification(examples, critic.tokenizer, critic.classes, out)
    encoded = insert(encoded, critic.around, False) if critic.around else encoded
    batches = Loader(
        encoded, "buckets", batch_size, shuffle=False, pad_side=critic.pad_side, multiple=rows_multiple(mesh),
        here=partial(rows_here, mesh),
        max_length=critic.max_length + (critic.around.size if critic.around else 0),
    )  # fmt: skip
    run = jax.jit(
        lambda variables, batch: (batch["example"], critic.outputs(variables, batch)),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    with jax.set_mesh(mesh):
        variables = place(critic.variables, mesh)
        found = [jax.tree.map(np.asarray, run(variables, batch)) for _, batch in device_batches(batches, mesh)]
    logits = np.stack(gather(found, len(encoded))["logits"]).astype(np.float64)
    likely = np.exp(logits - logits.max(-1, keepdims=True))
    ratings = dict(zip(different, (likely[:, critic.acceptable] / likely.sum(-1)).tolist(), strict=True))
    return [ratings[pair] for pair in pairs]
