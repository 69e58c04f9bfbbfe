"""P-tuning: soft prompts from a small encoder, placed by a template among anchor words (Liu et al. 2021,
https://arxiv.org/abs/2103.10385).

`template` says where: `{3}{text} is located in{3}` puts three virtual tokens before the text, and three after the
anchor words. For masked models `{before}{mask}{after}` is the text at its gap, so that tokens go next to the mask too:
the paper's (3, 3, 3) for BERT, [CLS] P3 [MASK] P3 head P3 [SEP], is `{3}{before}{mask}{3}{after}{3}` of the texts that
`task.template=[Y] [X]` makes. The encoder runs over all of them in order and folds into plain vectors for inference
(P D parameters).

`definition = 'paper'` (section 3.2 and the authors' code): embeddings [P, D] -> two layers of bidirectional LSTM, D/2 a
direction -> D -> ReLU -> D. `'peft'`: D -> hidden -> ReLU -> hidden -> ReLU -> D, and it only prepends.
"""

import re
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ftjax import tree
from ftjax.errors import UserError
from ftjax.methods.base import Context, Found, Method, Template, choose, hooked, place, positive, replace, unmergeable
from ftjax.methods.prompt import SoftPrompt
from ftjax.nn.config import Config

GAP = ["{before}", "{mask}", "{after}"]
TEMPLATES = {"paper": "{3}{text}{3}", "peft": "{20}{text}"}


@flax.struct.dataclass
class PromptEncoder:
    """The trained form: what makes the prompt's rows."""

    embedding: jax.Array  # [P, D]
    lstm: list[dict[str, dict[str, jax.Array]]]  # a layer: {forward, backward: {input, hidden, bias_i, bias_h}}
    mlp: list[dict[str, jax.Array]]  # kernel, bias
    vocab: int = flax.struct.field(pytree_node=False)

    def fold(self) -> SoftPrompt:
        """The rows that it stands for."""
        x = self.embedding
        for layer in self.lstm:
            x = jnp.concatenate([_lstm(layer["forward"], x), _lstm(layer["backward"], x[::-1])[::-1]], -1)
        for i, linear in enumerate(self.mlp):
            x = (jax.nn.relu(x) if i else x) @ linear["kernel"] + linear["bias"]
        return SoftPrompt(x, self.vocab)


def _lstm(weights: dict[str, jax.Array], xs: jax.Array) -> jax.Array:
    """One direction of torch's LSTM: gates input, forget, cell, output; `[P, in]` -> `[P, h]`."""

    def step(state: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, c = state
        gates = x @ weights["input"] + weights["bias_i"] + h @ weights["hidden"] + weights["bias_h"]
        i, f, g, o = jnp.split(gates, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros(weights["hidden"].shape[0])
    return jax.lax.scan(step, (zero, zero), xs)[1]


def pieces(cfg: Any) -> list[int | str]:
    """The template's pieces: a number of virtual tokens, anchor words, `{text}`, or the three of `GAP`.

    Raises:
      UserError: no `{text}` or more than one (or the three in another order), no virtual token, or, for PEFT's
        definition, more than a prefix.
    """
    choose("definition", cfg.definition, ("paper", "peft"))
    template = TEMPLATES[cfg.definition] if cfg.template is None else cfg.template
    found: list[int | str] = []
    for piece in filter(None, re.split(r"(\{\d+\}|\{text\}|\{before\}|\{mask\}|\{after\})", template)):
        number = re.fullmatch(r"\{(\d+)\}", piece)
        found.append(int(number[1]) if number else piece)
    wrong, texts = None, [piece for piece in found if piece in ("{text}", *GAP)]
    if texts not in (["{text}"], GAP):
        wrong = "needs one {text}, where the example goes, or {before}, {mask} and {after}, in this order"
    elif not sum(p for p in found if isinstance(p, int)):
        wrong = "has no slot for virtual tokens, as {3}"
    elif any(isinstance(p, str) and re.search(r"[{}]", p) for p in found if p not in texts):
        wrong = "has a brace that is none of {text}, {before}, {mask}, {after} and a number of virtual tokens"
    elif cfg.definition == "peft" and (len(found) != 2 or found[1] != "{text}"):
        wrong = "of definition='peft' only prepends: write {n}{text}"
    if wrong:
        raise UserError(f"method.template={template!r} {wrong}")
    return found


def init(ctx: Context, cfg: Any, key: jax.Array) -> dict:
    """The encoder for the template's virtual tokens, initialised as torch does its layers.

    Raises:
      UserError: a template without its slots, an unknown definition, an odd width for the LSTM.
    """
    length = sum(p for p in pieces(cfg) if isinstance(p, int))
    site = "encoder/embed" if ctx.cfg.encoder else "embed"
    vocab, width = hooked(ctx, "embed")[site]
    key, sub = jax.random.split(key)
    embedding = jax.random.normal(sub, (length, width))
    if cfg.definition == "peft":
        hidden = width if cfg.hidden is None else cfg.hidden
        positive("hidden", hidden)
        sizes, lstm = [(width, hidden), (hidden, hidden), (hidden, width)], []
    else:
        if width % 2:
            raise UserError(f"method.name='p_tuning': the BiLSTM halves the model's width, which is odd ({width})")
        sizes, lstm = [(width, width), (width, width)], [{}, {}]
    mlp = []
    for size_in, size_out in sizes:
        key, k, b = jax.random.split(key, 3)
        mlp.append({"kernel": _uniform(k, size_in, size_in, size_out), "bias": _uniform(b, size_in, size_out)})
    for layer in lstm:
        for direction in ("forward", "backward"):
            key, *keys = jax.random.split(key, 5)
            half = width // 2
            shapes = {
                "input": (width, 4 * half),
                "hidden": (half, 4 * half),
                "bias_i": (4 * half,),
                "bias_h": (4 * half,),
            }
            layer[direction] = {n: _uniform(k, half, *shape) for k, (n, shape) in zip(keys, shapes.items())}
    return place({site: PromptEncoder(embedding, lstm, mlp, vocab)}, "p_tuning")


def _uniform(key: jax.Array, fan: int, *shape: int) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-(fan**-0.5), maxval=fan**-0.5)


def labels(variables: Any, cfg: Any) -> Any:
    """The encoder trains."""
    return tree.label(variables, [(r"^adapters/(encoder/)?embed/p_tuning/", "p_tuning"), ("", tree.FREEZE)])


def expand(adapters: Any, params: Any) -> Any:
    """The encoder folded into the prompt's rows."""

    def fold(found: Found) -> dict[str, Any]:
        return {found.path: found.adapter.fold()}

    return replace(adapters, PromptEncoder, fold)


def template(cfg: Any, model: Config) -> Template:
    """The template with its virtual tokens numbered from V on.

    Raises:
      UserError: a gap's pieces for a model that reads no mask.
    """
    sides: list[list[str | int]] = [[]]
    at = model.vocab_size
    for piece in pieces(cfg):
        if isinstance(piece, int):
            sides[-1] += range(at, at + piece)
            at += piece
        elif piece in ("{text}", *GAP):
            sides.append([])
        else:
            sides[-1].append(piece)
    inside = cfg.definition == "paper" or not model.causal
    before, *gap, after = map(tuple, sides)
    if gap and (model.causal or model.encoder is not None):
        raise UserError(f"method.template={cfg.template!r}: this model reads no {{mask}}; write {{text}}")
    return Template(before, after, inside, *gap)


METHOD = Method(
    init=init,
    labels=labels,
    merge=unmergeable("soft prompts are inputs, not weights; keep the adapter"),
    expand=expand,
    template=template,
    paper="Liu et al. 2021",
    at_start="another model",
)
