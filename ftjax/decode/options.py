"""How to continue a prompt: every option with its default, and which go together."""

from typing import Literal, NamedTuple

from ftjax.errors import UserError


class Options(NamedTuple):
    """Hashable, a static argument: each set of options compiles its own loop.

    Names and meanings are those of `transformers`, but for `beam_rule`.
    """

    do_sample: bool = False  # draw each token; otherwise the likeliest
    temperature: float = 1.0  # logits are divided by it
    top_k: int = 0  # draw from the k likeliest; 0: from all
    top_p: float = 1.0  # of those, from the fewest that hold this share of the mass
    min_p: float = 0.0  # of those, from what has at least this share of the likeliest one's probability
    repetition_penalty: float = 1.0  # what was seen: a positive score divided by it, a negative one multiplied
    no_repeat_ngram_size: int = 0  # no n tokens in a row twice; 0: no such rule
    min_new_tokens: int = 0  # no end before so many
    forced_bos_token_id: int | None = None  # the first new token, whatever the scores
    forced_eos_token_id: int | tuple[int, ...] | None = None  # the last of max_new_tokens, one of these
    num_return_sequences: int = 1  # draws of a prompt, or its best beams
    num_beams: int = 1
    length_penalty: float = 1.0  # a beam's score is its log-probability / length ** length_penalty
    early_stopping: bool | Literal["never"] = False  # see ftjax.decode.beam
    beam_rule: Literal["transformers", "lora"] = "transformers"  # see ftjax.decode.beam

    @property
    def beams(self) -> bool:
        """Whether to search beams; LoRA's rule of one beam is not greedy decoding."""
        return self.num_beams > 1 or self.beam_rule == "lora"


def check(options: Options, ends: tuple[int, ...], new: int) -> None:
    """UserError for a value out of range, or one that the others would ignore."""
    o, default = options, Options()
    for name, right, fits in (
        ("temperature", "> 0", o.temperature > 0),
        ("top_k", ">= 0", o.top_k >= 0),
        ("top_p", "in (0, 1]", 0 < o.top_p <= 1),
        ("min_p", "in [0, 1]", 0 <= o.min_p <= 1),
        ("repetition_penalty", "> 0", o.repetition_penalty > 0),
        ("no_repeat_ngram_size", ">= 0", o.no_repeat_ngram_size >= 0),
        ("min_new_tokens", f"in [0, max_new_tokens={new}]", 0 <= o.min_new_tokens <= new),
        ("num_return_sequences", "at least 1", o.num_return_sequences >= 1),
        ("num_beams", "at least 1", o.num_beams >= 1),
        ("early_stopping", "False, True or 'never'", isinstance(o.early_stopping, bool) or o.early_stopping == "never"),
        ("beam_rule", "'transformers' or 'lora'", o.beam_rule in ("transformers", "lora")),
    ):
        if not fits:
            raise UserError(f"{name}={getattr(o, name)!r} must be {right}")

    def changed(*names: str) -> str:
        return ", ".join(name for name in names if getattr(o, name) != getattr(default, name))

    if not o.do_sample and (given := changed("temperature", "top_k", "top_p", "min_p")):
        raise UserError(f"{given} need do_sample=True")
    if not o.beams and (given := changed("length_penalty", "early_stopping")):
        raise UserError(f"{given} need num_beams over 1")
    if o.beam_rule == "lora" and o.early_stopping:
        raise UserError("early_stopping is not for beam_rule='lora', whose result is that of all steps")
    if o.do_sample and o.beams:
        raise UserError(f"do_sample=True goes with neither num_beams={o.num_beams} nor a beam_rule: sample or search")
    if o.beams and o.num_return_sequences > o.num_beams:
        raise UserError(f"num_return_sequences={o.num_return_sequences} is over num_beams={o.num_beams}")
    if not o.do_sample and not o.beams and o.num_return_sequences > 1:
        raise UserError(f"num_return_sequences={o.num_return_sequences} needs do_sample=True or as many num_beams")
    if o.min_new_tokens and not ends:
        raise UserError(f"min_new_tokens={o.min_new_tokens} needs an eos_token_id")
