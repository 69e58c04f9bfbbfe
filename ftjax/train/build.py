"""From a config to the parts of a run: data, model, method, objective. Everything a user can get wrong is found here,
before anything compiles and before anything is written."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from ftjax import hub, methods, tree
from ftjax.data.around import Around, around, insert
from ftjax.data.bad import BadRows
from ftjax.data.encoded import Collector, Encoded
from ftjax.data.loader import Loader
from ftjax.data.sources import place
from ftjax.data.tasks import TASKS
from ftjax.data.tasks.task import Split, Task
from ftjax.distill.match import student_of
from ftjax.distill.sequence import read_corpus
from ftjax.errors import UserError
from ftjax.kinds import KINDS, Kind, Setting, require
from ftjax.kinds.demonstrations import few
from ftjax.methods import Context, Method, Template, tokens
from ftjax.models.transformer import Transformer, keys_values, room, sites
from ftjax.nn import kernels
from ftjax.nn.config import DROPOUTS
from ftjax.objectives.base import Objective
from ftjax.parallel.mesh import make_mesh, rows_here, rows_multiple, spec
from ftjax.train.fields import Fields

Tree = Any
TEXT, STUDENT_WRITES = ("token", "sequence"), ("on_policy", "policy")  # values of the distill axis


class Data(NamedTuple):
    """One split."""

    examples: list[Any]
    encoded: Encoded
    loader: Loader
    batches: grain.IterDataset  # the loader, or what is derived from it
    bad: BadRows
    plain: Encoded  # before the method put anything into the texts


class Parts(NamedTuple):
    """A run before it is placed on devices.

    variables: params (the stack cut where the method trains some of its rows) and adapters in trained form.
    labels: a group name per leaf of `variables`.
    around: what the method puts around every text.
    fresh: paths in `params` of what is newly initialised, for neither the base's files nor another run give it.
    """

    setting: Setting
    kind: Kind
    method: Method
    objective: Objective
    variables: Tree
    labels: Tree
    around: Around | None
    fresh: tuple[str, ...]

    @property
    def task(self) -> Task:
        """Where the examples are from."""
        return self.setting.task

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        return self.setting.tokenizer

    @property
    def model(self) -> Transformer:
        """With the head that the task needs."""
        return self.setting.model

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those that matter; the first chooses the best checkpoint."""
        return self.kind.metrics or self.task.metrics


def get_task(f: Fields) -> Task:
    """The config's task."""
    if f.task.name not in TASKS:
        raise UserError(f"task.name={f.task.name!r} is unknown; there are {', '.join(TASKS)}")
    return TASKS[f.task.name]


def get_kind(f: Fields, task: Task) -> Kind:
    """The config's objective, the task's own where none is named."""
    name = f.task.objective or task.objectives[0]
    if name not in task.objectives:
        raise UserError(f"task.objective={name!r}: task {f.task.name} can do {', '.join(task.objectives)}")
    return KINDS[name]


def read_examples(f: Any, task: Task, split: Split, eos: str) -> tuple[list[Any], list[str], BadRows]:
    """The examples of a split, where each is from, and what became of bad rows."""
    bad = BadRows(f.data.on_bad_row)
    examples, where = [], []
    require("task.per_class", f.task.per_class, f.task.per_class >= 0, "0 (all) or more")
    few_shot = f.task.per_class and split != "test"
    for row in task.load(f.task, "train" if few_shot else split, bad):
        with bad:
            examples.append(task.example(row, eos))
            where.append(place(row))
    if few_shot:
        chosen = few(f, examples, split)
        examples, where = [examples[i] for i in chosen], [where[i] for i in chosen]
    return examples, where, bad


def load_data(f: Fields, parts: Parts, split: str, *, training: bool) -> Data:
    """Rows, examples, token ids and batches of one split.

    Raises:
      UserError: as `ftjax.data` says; an empty split after dropping.
    """
    cfg, data, kind = f.task, f.data, parts.kind
    size, name = (f.batch_size, "batch_size") if training else (f.eval_batch_size, "eval_batch_size")
    require(name, size, size >= 1, "1 or more")
    require("task.eval_split", split, split in ("train", "validation", "test"), "train, validation or test")
    require("seed", f.seed, f.seed >= 0, "0 or more")
    require("task.max_length", cfg.max_length, cfg.max_length >= 1, "1 or more")
    eos = parts.tokenizer.eos_token or ""
    if training and (corpus := _corpus(f, parts)):
        bad = BadRows(data.on_bad_row)
        examples, where = read_corpus(corpus, eos, cfg.max_train_rows, bad)
    else:
        examples, where, bad = read_examples(f, parts.task, split, eos)  # type: ignore[arg-type]
    for example, place_of in zip(examples, where):
        if not isinstance(example, kind.accepts):
            raise UserError(f"{place_of}: this objective takes no {type(example).__name__} examples")
    out = Collector(cfg.max_length, "error" if parts.task.chunked or kind.cuts else data.overlong, where, bad)
    plain = kind.encode(parts.setting, examples, out, training)
    encoded = insert(plain, parts.around, parts.task.chunked) if parts.around else plain
    layout, packs = data.layout, kind.packs and not (training and f.distill.name in STUDENT_WRITES)
    if layout == "auto":
        layout = "packed" if packs else "buckets"
    require("data.pad_side", data.pad_side, data.pad_side in ("left", "right"), "left or right")
    if f.distill.name in STUDENT_WRITES:
        require(
            "data.shared_prompts", data.shared_prompts, data.shared_prompts == 1, "1: the student's rows share none"
        )
    if layout == "packed" and kind.packs and not packs:
        raise UserError(f"data.layout=packed: with distill={f.distill.name} a row is one prompt; give auto or buckets")
    if layout not in ("packed", "buckets") or (layout == "packed" and not packs):
        raise UserError(f"data.layout={data.layout!r}: give auto, buckets, or, where labels belong to tokens, packed")
    mesh = make_mesh(f.mesh)
    loader = Loader(
        encoded, layout, size, f.seed, training, here=partial(rows_here, mesh),
        multiple=rows_multiple(mesh) * (f.micro_batches if training else 1),
        max_length=cfg.max_length + (parts.around.size if parts.around else 0), pad_side=data.pad_side, window=50,
        **({"buckets": data.buckets} if layout == "buckets" else _of_packed(f, parts, encoded)),
    )  # fmt: skip
    return Data(examples, encoded, loader, loader, bad, plain)


def _corpus(f: Fields, parts: Parts) -> str:
    """The file of a teacher's text that is trained on in place of the task's training rows; '' for none."""
    name = f.distill.name
    require("distill.name", name, name in (*TEXT, *STUDENT_WRITES, "none"), ", ".join(("none", *TEXT, *STUDENT_WRITES)))
    if name not in TEXT:
        return ""
    path = f.distill.corpus
    if name == "sequence":
        require("distill.corpus", path, bool(path), "the file that ftjax teach --sequences wrote")
    require("distill.corpus", path, not path or path != f.task.files.train, "another file than task.files.train")
    if path and (parts.task.chunked or not parts.kind.writes):
        raise UserError(
            f"distill.corpus={path}: prompts and completions are for a language model's task; task.name={f.task.name}"
            " has no prompts and answers here"
        )
    return path


def _of_packed(f: Fields, parts: Parts, encoded: Encoded) -> dict[str, int]:
    """The loader's options of packed rows.

    Raises:
      UserError: a row shorter than an example; prompts to be shared where there are none.
    """
    length, shared = f.data.row_length, f.data.shared_prompts
    longest = int(encoded.lengths.max()) - (encoded.by == "next")
    require("data.row_length", length, length == 0 or length >= longest, f"0, or {longest} (the longest) or more")
    has_prompts = encoded.by == "next" and encoded.source is None and not parts.task.chunked
    require(
        "data.shared_prompts", shared, shared == 1 or (shared > 1 and has_prompts),
        "1, or more for a decoder that continues prompts",
    )  # fmt: skip
    return {"row_length": length, "shared_prompts": shared}


def build(
    f: Fields, trained: Callable[[Tree, int], Tree] = lambda params, rows: params, mesh: Mesh | None = None
) -> Parts:
    """The model with the task's head, the method's adapters and labels, and the objective.

    Args:
      trained: (params, layers) -> the params that the method starts from, where they are not the base's.
      mesh: where the base's parameters go as they are read; None for the first device.

    Raises:
      UserError: a model that does not do the task, and whatever the model's files and the method find wrong.
    """
    task, method, cfg = get_task(f), methods.get(f.method.name), f.model
    kind, classes = get_kind(f, task), task.classes(f.task)
    fresh: list[str] = []
    model, params = load_model(f, kind, classes, mesh, fresh)
    tokenizer = hub.tokenizer(cfg.path, model.cfg.vocab_size, task.languages and task.languages(f.task))
    start = None if model.cfg.encoder is None else hub.decoder_start(cfg.path, tokenizer)
    demonstrations = lambda: read_examples(f, task, "train", tokenizer.eos_token or "")[0]  # noqa: E731
    ends, forced = hub.ends(cfg.path, tokenizer), hub.forced(cfg.path, tokenizer)
    setting = Setting(f, task, tokenizer, model, classes, start, demonstrations, ends, forced)
    params = kind.params(setting, params, jax.random.fold_in(jax.random.key(f.seed), 2))
    dtypes = jax.tree.map(lambda x: x.dtype, params)
    params = jax.tree.map(lambda x, dtype: x.astype(dtype), trained(params, model.cfg.rows), dtypes)
    context = Context(
        model.cfg, params, sites(model), partial(keys_values, model, params),
        encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        unknown=tokenizer.unk_token_id, classes=classes,
    )  # fmt: skip
    adapters = method.init(context, f.method, jax.random.fold_in(jax.random.key(f.seed), 1))
    pieces = _around(method.template(f.method, model.cfg), context, tokenizer)
    check_length(f, model, method.expand(adapters, params), pieces.size if pieces else 0)
    variables = methods.variables(method, f.method, params, adapters, model.cfg.rows)
    labels = methods.labels(method, variables, f.method, model.cfg, fresh)
    objective = with_expand(kind.objective(setting), method)
    return Parts(setting, kind, method, objective, variables, labels, pieces, tuple(fresh))


def _around(template: Template | None, context: Context, tokenizer: Any) -> Around | None:
    if template is None:
        return None
    encode = lambda text: tokens(context, "method.template", text)  # noqa: E731
    ids = lambda pieces: [i for p in pieces for i in ([p] if isinstance(p, int) else encode(p))]  # noqa: E731
    sides = {side: ids(getattr(template, side)) for side in ("before", "after", "left", "right")}
    return around(inside=template.inside, tokenizer=tokenizer, **sides)


def check_length(f: Fields, model: Transformer, adapters: Tree, inserted: int) -> None:
    """UserError where the task's texts, with what the method adds, are over the model's positions."""
    most, wanted = model.cfg.room, f.task.max_length
    added = most - room_of_text(model, adapters, inserted)
    if added >= most:
        raise UserError(f"method: its {added} tokens alone fill the {most} positions of {f.model.path}; take fewer")
    if wanted + added > most:
        more = f" and the method's {added}" if added else ""
        raise UserError(
            f"task.max_length={wanted}{more} are over the {most} positions of {f.model.path};"
            f" set task.max_length={most - added}"
        )


def room_of_text(model: Transformer, adapters: Tree, inserted: int) -> int:
    """How many tokens a text may have, of an encoder-decoder either one, beside those inserted around it."""
    if model.cfg.encoder is None:
        return room(model, adapters) - inserted
    return min(room(model, adapters), room(model, adapters, encoder=True) - inserted)  # the encoder reads them


def load_model(
    f: Fields, kind: Kind, classes: tuple[str, ...], mesh: Mesh | None = None, fresh: list[str] | None = None
) -> tuple[Transformer, Tree]:
    """The config's model with the head of the task, its parameters read to where they live on a mesh; `fresh` as for
    `hub.load`.

    Raises:
      UserError: a dropout outside [0, 1), layers of a random start, or as `hub.load` and `student_of`.
    """
    cfg = f.model
    require("model.init", cfg.init, cfg.init in ("checkpoint", "random"), "checkpoint or random")
    if cfg.layers and cfg.init == "random":
        raise UserError(f"model.layers={cfg.layers}: a random start has no layers to keep; set model.init=checkpoint")
    options: dict[str, Any] = dict(dtype=_dtype("param_dtype", cfg.param_dtype), seed=f.seed, remat=cfg.remat)
    options["compute_dtype"] = _dtype("dtype", cfg.dtype)
    options["attention"] = cfg.attention  # `hub.load` refuses a name that is none
    if f.data.layout == "buckets" or not kind.packs:  # a row is one example
        options["max_segments"] = int(f.data.pad_side == "left")
    if mesh is not None and mesh.size > 1:
        options["sharding"] = lambda path, shape: NamedSharding(mesh, spec(f"params/{path}", shape, mesh))
    if cfg.dropout is not None:
        if not 0 <= cfg.dropout < 1:
            raise UserError(f"model.dropout={cfg.dropout}: give 0 or more, below 1")
        options |= dict.fromkeys(
            ("embed_dropout", "attention_dropout", "hidden_dropout", "classifier_dropout"), cfg.dropout
        )
    model, params = hub.load(cfg.path, init=cfg.init, fresh=fresh, **options, **kind.head(f, classes))
    if cfg.layers:
        model, params = _kept(model, params, cfg.layers, options.get("sharding"))
    if cfg.dropout is not None:  # where the model has some
        rates = [name for name in ("pooler_dropout", "ffn_dropout", "final_dropout") if getattr(model.cfg, name)]
        model = model.clone(cfg=model.cfg.replace(**dict.fromkeys(rates, cfg.dropout)))
    rows = unroll(model.cfg.num_layers) if cfg.scan_unroll is None else cfg.scan_unroll
    return model.clone(cfg=model.cfg.replace(scan_unroll=rows)), params


def unroll(layers: int) -> int:
    """How many layers a scan iteration runs by default; -1: no scan, by which XLA's CPU backend gains, as measured in
    experiments/speed.py."""
    return -1 if kernels.backend() == "cpu" and layers <= 12 else 1


def _kept(model: Transformer, params: Tree, layers: tuple[int, ...], sharding: Any) -> tuple[Transformer, Tree]:
    """The model with some of its layers, on the devices that it was on."""
    try:
        model, params = student_of(model, params, layers)
    except UserError as error:
        raise UserError(f"model.{error}") from None
    if sharding:
        params = tree.map_paths(lambda path, x: jax.device_put(x, sharding(path, x.shape)), params)
    return model, params


def _dtype(field: str, name: str) -> Any:
    require(f"model.{field}", name, name in ("float32", "bfloat16"), "float32 or bfloat16")
    return jnp.dtype(name)


def with_expand(objective: Objective, method: Method) -> Objective:
    """The objective over trained-form adapters: they are brought to site form inside the loss."""

    def site_form(variables: Tree) -> Tree:
        return {**variables, "adapters": method.expand(variables["adapters"], variables["params"])}

    def of(f: Any) -> Any:
        return f and (lambda variables, *rest: f(site_form(variables), *rest))

    head = objective.head and with_expand(objective.head, method)
    return Objective(of(objective.loss), of(objective.outputs), of(objective.features), head)


def features_are_fixed(parts: Parts) -> bool:
    """Whether the loss sees only fixed vectors of the body: all of it is frozen, and none of its dropouts is on."""
    cfg = parts.model.cfg
    body = [label for path, label in tree.flatten(parts.labels).items() if not re.match(methods.TASK_HEAD, path)]
    dropout = any(getattr(cfg, name) for name in DROPOUTS)
    return parts.objective.features is not None and not dropout and set(body) == {tree.FREEZE}
