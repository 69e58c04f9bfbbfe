"""A run's teacher: where it comes from, and what it changes of the run's variables, loss and batches.

Evaluation is without it: what a student scores is its own objective's.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import psutil
from jax.sharding import Mesh, NamedSharding

from ftjax import hub, tree
from ftjax.data.encoded import Encoded
from ftjax.distill import (
    Divergence,
    Match,
    check_vocabularies,
    data_key,
    distillation,
    open_cache,
    tokenizer_key,
    uniform,
)
from ftjax.distill.forward import VOCABULARY
from ftjax.distill.match import Pairs
from ftjax.distill.sequence import verifier
from ftjax.errors import UserError
from ftjax.files import as_path, read_text
from ftjax.hub import files
from ftjax.kinds import require
from ftjax.kinds.base import label_smoothing
from ftjax.kinds.masks import masks
from ftjax.models.transformer import Transformer
from ftjax.nn.config import DROPOUTS, Config
from ftjax.objectives.mlm import masking
from ftjax.objectives.policy import policy_gradient
from ftjax.parallel.mesh import spec
from ftjax.train.build import Data, Parts, room_of_text, unroll, with_expand
from ftjax.train.checkpoint import read_config
from ftjax.train.fields import Fields
from ftjax.train.restore import load_run
from ftjax.train.rollout import Rollout

Tree = Any
COMPARED = ("lm", "mlm", "tagging", "classification")  # objectives whose scores a teacher has too


class Teacher(NamedTuple):
    """What teaches by its probabilities; `variables` are params and adapters, these in site form."""

    model: Transformer
    variables: Tree


class Lesson(NamedTuple):
    """A run with what its teacher adds: to `variables` and `labels`, to the loss, to the training batches.

    teacher: the config of the one in memory; about: a line that says what it is.
    rollout: what makes each step's batch of the data's, where the student writes it.
    """

    parts: Parts
    data: Data
    teacher: Config | None = None
    about: str = ""
    rollout: Rollout | None = None


def taught(f: Fields, parts: Parts, data: Data, mesh: Mesh) -> Lesson:
    """The run's parts and training data as `distill` changes them.

    Raises:
      UserError: not one of teacher and cache, whatever is wrong with it (see `load_teacher`, `open_cache`,
        `distillation`), or an objective without scores that a teacher could have.
    """
    d = f.distill
    if d.name == "policy":
        return _rewarded(f, parts, data)
    if d.name not in ("token", "on_policy"):
        return Lesson(parts, data)
    cached = d.name == "token" and bool(d.cache)
    rollout, alpha = None, 1.0
    if d.name == "token":
        require("distill.teacher", d.teacher, bool(d.teacher) != cached, "a teacher or a distill.cache, one of them")
        alpha = d.alpha
    else:
        require("distill.teacher", d.teacher, bool(d.teacher), "the teacher, a run or a model")
        require("distill.share", d.share, 0 <= d.share <= 1, "0 (never the student's batches) to 1 (always)")
        rollout = Rollout(f, parts, data, share=d.share)
    objective = compared(f, parts)
    divergence = Divergence(
        d.kind, d.temperature, d.t_squared,
        **({"beta": d.beta} if d.kind == "jsd" else {}), **({"estimator": d.estimator} if cached else {}),
    )  # fmt: skip
    variables, teacher = dict(parts.variables), None
    if not cached:
        teacher = load_teacher(f, parts, mesh)
        variables["teacher"] = teacher.variables
        about = f"teacher  {d.teacher}: {teacher.model.cfg.num_layers} layers of {teacher.model.cfg.hidden_size}"
        about += f", {tree.count(teacher.variables['params']):,} parameters"
    else:
        if objective == "mlm":
            raise UserError(f"distill.cache={d.cache}: masked words are drawn anew each step; give distill.teacher")
        cache = open_cache(Path(d.cache), data_keys(parts, data.plain), label_counts(data.plain), d.temperature)
        data = data._replace(batches=data.loader.map(cache.attach))
        about = f"teacher  the {cache.k} likeliest tokens at each of {cache.counts.sum():,} labels, from {d.cache}"
    match = _match(f, parts.model.cfg, teacher and teacher.model.cfg)
    if match and teacher:
        added = match.init(parts.model.cfg, teacher.model.cfg, jax.random.fold_in(jax.random.key(f.seed), 3))
        variables |= {"distill": added} if added else {}
    new = {"teacher": tree.FREEZE, "distill": "distill"}
    labels = {name: jax.tree.map(lambda _, to=to: to, variables[name]) for name, to in new.items() if name in variables}
    loss = distillation(
        parts.model, divergence, teacher and teacher.model, alpha=alpha, match=match,
        virtual=parts.around is not None, **_options(f, parts, objective),
    )  # fmt: skip
    parts = parts._replace(
        objective=with_expand(loss, parts.method), variables=variables, labels={**parts.labels, **labels}
    )
    return Lesson(parts, data, teacher and teacher.model.cfg, about, rollout)


def _rewarded(f: Fields, parts: Parts, data: Data) -> Lesson:
    """Policy gradient: what teaches is a verifier of the student's answers."""
    d = f.distill
    require("distill.samples", d.samples, d.samples >= 2, "2 or more: an answer is measured by its prompt's others")
    right = verifier(d.reward, "distill.reward")
    rollout = Rollout(f, parts, data, samples=d.samples, reward=lambda record: float(right(record)))
    adapted = any(path.endswith("/lora/rate") for path in tree.flatten(parts.variables["adapters"]))
    if adapted or any(getattr(parts.model.cfg, name) for name in DROPOUTS):
        raise UserError(
            "distill=policy: answers are drawn without dropout, so what they teach has to be without it too; set"
            f" {'the dropout of LoRA' if adapted else 'model.dropout'} to 0"
        )
    loss = policy_gradient(parts.model, temperature=d.sampling_temperature, chunk=f.loss.chunk)
    loss = with_expand(loss, parts.method)
    about = f"reward   {d.reward}, of {d.samples} answers to each of {f.batch_size} prompts a step"
    return Lesson(parts._replace(objective=loss), data, about=about, rollout=rollout)


def compared(f: Fields, parts: Parts) -> str:
    """The name of the run's objective; UserError where it has no scores that a teacher could have."""
    name = f.task.objective or parts.task.objectives[0]
    if name not in COMPARED:
        raise UserError(
            f"distill={f.distill.name}: objective {name} has no scores to compare; {', '.join(COMPARED)} do"
        )
    return name


def _options(f: Fields, parts: Parts, objective: str) -> dict[str, Any]:
    """Of `distillation`: what the objective itself is made with."""
    if objective == "mlm":
        hidden = masks(parts.setting)
        return dict(chunk=hidden.pop("chunk"), mask=masking(parts.model, **hidden))
    if objective != "lm":
        return dict(label_smoothing=label_smoothing(f))
    loss = f.loss
    return dict(
        label_smoothing=label_smoothing(f), z_loss=loss.z_loss, reduction=loss.reduction, chunk=loss.chunk
    )  # fmt: skip


def _match(f: Fields, student: Config, teacher: Config | None) -> Match | None:
    d = f.distill
    if d.name != "token":
        return None
    for name, weight in (("hidden", d.hidden), ("attention", d.attention)):
        require(f"distill.{name}", weight, weight >= 0, "a weight, 0 or more")
    if not (d.hidden or d.attention):
        return None
    pairs = uniform(student.num_layers, teacher.num_layers) if teacher else ()
    return Match(_pairs(d.layers) if d.layers else pairs, d.hidden, d.attention)


def _pairs(text: str) -> Pairs:
    try:
        pairs = [tuple(map(int, item.split(":"))) for item in text.split(",")]
        return tuple((student, teacher) for student, teacher in pairs)
    except ValueError:
        raise UserError(f"distill.layers={text!r}: write student:teacher pairs, as in 2:4,4:8") from None


def is_run(name: str) -> bool:
    """Whether a folder is a run's, and not a model's."""
    config = as_path(name) / "config.json"
    return config.is_file() and "method" in json.loads(read_text(config))


def load_teacher(f: Fields, parts: Parts, mesh: Mesh) -> Teacher:
    """`distill.teacher`, a run or a model with the student's head, on the student's mesh.

    Raises:
      UserError: none there; larger than the memory that is free (before it is read); another vocabulary or order of
        classes; fewer positions than the texts need; a run whose method puts tokens of its own into the text.
    """
    name, student = f.distill.teacher, parts.model.cfg
    run = is_run(name)
    config: Any = read_config(as_path(name)) if run else None
    base = config.model.path if run else name
    check_memory(name, files.resolve(base), mesh)
    if run:
        _, its = load_run(as_path(name), mesh)
        if its.around is not None:
            raise UserError(
                f"distill.teacher={name}: its method puts tokens of its own into the text, which the student's batches"
                " have not; take distill=sequence, which needs the teacher's text only"
            )
        model, params, tokenizer, classes = its.model, its.variables["params"], its.tokenizer, its.setting.classes
        adapters = its.method.expand(its.variables["adapters"], params)
    else:
        sharding = lambda path, shape: NamedSharding(mesh, spec(f"params/{path}", shape, mesh))  # noqa: E731
        model, params = hub.load(
            name, head=student.head if student.head in VOCABULARY else None, compute_dtype=student.dtype,
            sharding=sharding if mesh.size > 1 else None,
        )  # fmt: skip
        tokenizer, adapters = hub.tokenizer(name), {}
        model = model.clone(cfg=model.cfg.replace(scan_unroll=unroll(model.cfg.num_layers)))
        named = files.read_json(files.resolve(name) / "config.json").get("id2label", {})
        classes = tuple(named[number] for number in sorted(named, key=int))
    check_vocabularies(parts.tokenizer, tokenizer, name)
    ours = parts.setting.classes
    if classes != ours and sorted(classes) == sorted(ours):
        raise UserError(f"distill.teacher={name}: its classes are {', '.join(classes)}, the task's {', '.join(ours)}")
    words = [i for i in parts.around.added if i < student.vocab_size] if parts.around else []
    room = room_of_text(model, adapters, len(words))
    if f.task.max_length > room:
        raise UserError(
            f"task.max_length={f.task.max_length} is over the {room} positions of distill.teacher={name}; set"
            f" task.max_length={room}"
        )
    cfg = model.cfg.replace(max_segments=student.max_segments, attention=student.attention, remat=False)
    return Teacher(model.clone(cfg=cfg), {"params": params, "adapters": adapters})


def check_memory(name: str, folder: Path, mesh: Mesh) -> None:
    """UserError where the weights' files are larger than what is free of memory: of each device its share, on a CPU of
    the whole machine."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    stats = mesh.devices.flat[0].memory_stats() or {}
    if "bytes_limit" in stats:
        size //= mesh.shape["fsdp"] * mesh.shape["tensor"]
    free = stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else psutil.virtual_memory().available
    if size > free:
        raise UserError(
            f"distill.teacher={name}: {size / 1e9:.3g} GB of parameters, and {free / 1e9:.3g} GB of memory are free;"
            " write a cache on a larger machine (ftjax teach), cut it over more devices (mesh=fsdp...), or take a"
            " smaller one"
        )


def data_keys(parts: Parts, plain: Encoded) -> dict[str, str]:
    """What a cache depends on beside the teacher: the tokenizer and the texts, before a method puts anything into
    them."""
    arrays = [plain.tokens, plain.offsets, plain.labels, *plain.extras.values()]
    arrays += [plain.source.tokens, plain.source.offsets] if plain.source else []
    return {"tokenizer": tokenizer_key(parts.tokenizer), "data": data_key(*arrays)}


def label_counts(encoded: Encoded) -> np.ndarray:
    """Labels of each example, `[n]`."""
    return np.ones(len(encoded), np.int64) if encoded.by == "row" else encoded.label_counts
