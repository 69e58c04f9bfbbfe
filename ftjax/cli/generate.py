"""ftjax generate --workdir=RUN --prompt="..." [--prompt="..."]: continues prompts with a run's best checkpoint.

ftjax generate --model=nano-gpt --prompt="..." uses a model as it is: a shipped one, a hub id or a local directory.

ftjax generate --workdir=RUN --input=FILE.jsonl --output=OUT.jsonl continues every row's `prompt` (any other format of
--config.task.files will do). A line of OUT.jsonl is the row with `continuations` (texts, the best first), their
`scores` (a beam's; else log-probabilities) and `tokens`. The same command goes on where a killed one stopped.

With --chat a prompt is what a user says: it is put into the chat template of the run, or of the model's tokenizer, or
into --chat_template=plain|chatml|FILE.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from ftjax.data.chat import Format, chat_format
from ftjax.data.encode import eos_of, prompt_ids
from ftjax.data.tasks.task import Chat
from ftjax.decode.options import Options
from ftjax.errors import UserError
from ftjax.files import as_path, local

ADDED = ("continuations", "scores", "tokens")
HELP = {
    "do_sample": "sample rather than take the likeliest token",
    "temperature": "of sampling",
    "top_k": "sample from the k likeliest; 0: from all",
    "top_p": "sample from the likeliest that hold this share",
    "min_p": "sample from what has this share of the likeliest one's probability",
    "repetition_penalty": "scores of tokens that were seen are divided by it",
    "no_repeat_ngram_size": "no so many tokens in a row twice; 0: no such rule",
    "min_new_tokens": "no end before so many tokens",
    "num_return_sequences": "sequences for each prompt: draws, or the best beams",
    "num_beams": "beams to search",
    "length_penalty": "a beam's score is its log-probability / length ** this",
}
FORCED = {"forced_bos_token_id": "first", "forced_eos_token_id": "last"}
CHOICES = {"false": False, "true": True, "never": "never"}


class Start(NamedTuple):
    """What continues prompts."""

    model: Any
    params: Any
    adapters: Any
    stored: Any  # the weights as they were read, whatever the machine
    tokenizer: Any
    wrap: Callable[[list[int]], list[int]]  # puts a method's tokens around a prompt's
    decoder_start: int | None  # the first token of an encoder-decoder's decoder
    chat: dict[str, str]  # the template and the system's message of what is said to it
    ends: tuple[int, ...] = ()  # the tokens that end an answer
    forced: Mapping[str, Any] = {}  # the first and the last token of an answer
    form: Format | None = None  # where a prompt is said, and not gone on with


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", None, "a run's folder", flag_values=values)
    flags.DEFINE_string("model", None, "a model, in place of a run", flag_values=values)
    flags.DEFINE_multi_string("prompt", [], "text to continue; repeat for more", flag_values=values)
    flags.DEFINE_string("input", None, "a file of rows with a prompt each, in place of --prompt", flag_values=values)
    flags.DEFINE_string("output", None, "where the answers to --input go, as JSON lines", flag_values=values)
    flags.DEFINE_bool(
        "chat", False, "a prompt is what a user says, and an answer what the model says", flag_values=values
    )
    flags.DEFINE_string(
        "chat_template", None, "of --chat: plain, chatml or a Jinja file, in place of the run's or the tokenizer's",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("system", None, "of --chat: what the system says first", flag_values=values)
    flags.DEFINE_bool("stream", False, "print the text as it comes, for one --prompt", flag_values=values)
    flags.DEFINE_integer("max_new_tokens", 64, "tokens to generate at most", lower_bound=1, flag_values=values)
    flags.DEFINE_multi_integer("stop_id", [], "a token that ends an answer, beside the model's", flag_values=values)
    flags.DEFINE_integer(
        "decoder_start_token_id", None, "of an encoder-decoder; by default as the model's files say", flag_values=values
    )
    for name, which in FORCED.items():
        flags.DEFINE_integer(
            name, None, f"the {which} token, whatever the model says, -1: none; by default as its files say",
            flag_values=values,
        )  # fmt: skip
    define_decoding(values)


def define_decoding(values: flags.FlagValues, names: Iterable[str] = HELP) -> None:
    """The flags of how answers are decoded: those of `HELP` that are named, and what every command has."""
    flags.DEFINE_integer("batch_size", 8, "prompts decoded together", lower_bound=1, flag_values=values)
    flags.DEFINE_multi_string(
        "stop", [], "text, or a special token, that ends an answer, and is not in it; repeatable", flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "of sampling", flag_values=values)
    flags.DEFINE_enum("early_stopping", "false", [*CHOICES], "when beams are done", flag_values=values)
    flags.DEFINE_enum("beam_rule", "transformers", ["transformers", "lora"], "whose search", flag_values=values)
    kinds: dict[type, Any] = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    for name in names:
        default = Options._field_defaults[name]
        kinds[type(default)](name, default, HELP[name], flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints each prompt with its continuations, or writes them to a file."""
    get: Any = lambda name: values[name].value  # noqa: E731
    if bool(get("workdir")) == bool(get("model")):
        raise UserError("give either --workdir=RUN or --model=NAME")
    if bool(get("prompt")) == bool(get("input")):
        raise UserError("give either --prompt=TEXT or --input=FILE")
    if bool(get("input")) != bool(get("output")):
        raise UserError("--input=FILE and --output=FILE go together")
    files = {name: local(get(name), f"--{name}") for name in ("input", "output") if get(name)}
    if get("stream") and len(get("prompt")) != 1:
        raise UserError("--stream is for one --prompt")
    given = {"template": get("chat_template"), "system": get("system")}
    chat = {name: text for name, text in given.items() if text is not None}
    if chat and not get("chat"):
        raise UserError("--chat_template and --system are of --chat; give it too")
    from ftjax.decode.batches import continue_batches
    from ftjax.decode.stream import stream
    from ftjax.decode.text import Stops

    start = load(get("workdir") or get("model"), bool(get("workdir")))
    tokenizer = start.tokenizer
    special, strings = stops_of(tokenizer, get("stop"))
    ends = [*start.ends, *special, *get("stop_id")]
    forced = {name: {None: start.forced[name], -1: None}.get(get(name), get(name)) for name in FORCED}
    if get("chat"):
        chat = start.chat | chat
        form = chat_format(tokenizer, **chat)
        start, ends = start._replace(form=form, chat=chat), [*ends, tokenizer.convert_tokens_to_ids(form.stop())]
    stops = Stops(strings, lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True))
    options: dict[str, Any] = {
        "max_new_tokens": get("max_new_tokens"), "seed": get("seed"), "early_stopping": CHOICES[get("early_stopping")],
        "beam_rule": get("beam_rule"),
        "decoder_start_token_id": start.decoder_start if get("decoder_start_token_id") is None
        else get("decoder_start_token_id"),
        "eos_token_id": ends, **forced, **{name: get(name) for name in HELP},
    }  # fmt: skip
    if files:
        _answer_file(start, files["input"], files["output"], get("batch_size"), stops, get("stop"), options)
        return
    options |= {"adapters": start.adapters, "stops": stops}
    prompts = [tokens_of(start, text, f"--prompt={text!r}") for text in get("prompt")]
    before = [text if start.model.cfg.encoder is None and not get("chat") else "" for text in get("prompt")]
    if get("stream"):
        parts = stream(start.model, start.params, prompts[0], **options)
        first = next(parts, "")
        print(before[0] + first, end="", flush=True)
        for part in parts:
            print(part, end="", flush=True)
        print()
        return
    answers = continue_batches(
        start.model, start.params, list(enumerate(prompts)), batch_size=min(get("batch_size"), len(prompts)), **options
    )
    for i, found in answers:
        for sequence in found:
            print(before[i] + sequence.text, flush=True)


def load(name: str, is_run: bool, languages: tuple[str, str] | None = None) -> Start:
    """What a run or a model continues prompts with; a run's languages are its own, a model's as `hub.tokenizer`'s."""
    from ftjax import hub
    from ftjax.train.restore import load_run

    if not is_run:
        model, params = hub.load(name, head="lm")
        tokenizer = hub.tokenizer(name, languages=languages)
        start = hub.decoder_start(name, tokenizer) if model.cfg.encoder else None
        ends, forced = hub.ends(name, tokenizer), hub.forced(name, tokenizer)
        return Start(model, params, None, params, tokenizer, lambda tokens: tokens, start, {}, ends, forced)
    f, parts = load_run(as_path(name))
    params = parts.variables["params"]
    adapters = parts.method.expand(parts.variables["adapters"], params)
    around = parts.around
    wrap = list if around is None else around.prompt if parts.model.cfg.encoder is None else around.closed
    setting = parts.setting
    chat = {"template": f.task.chat_template, "system": f.task.system} if f.task.name == "chat" else {}
    return Start(
        parts.model, params, adapters, parts.variables, parts.tokenizer, wrap, setting.decoder_start, chat,
        setting.ends, setting.forced,
    )  # fmt: skip


def stops_of(tokenizer: Any, texts: Iterable[str]) -> tuple[list[int], list[str]]:
    """The ids of stops that are a special token, and the other stops, which are looked for in an answer's text.

    Raises:
      UserError: a special token in one of these: answers are read without.
    """
    known = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    known |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids))
    strings = [text for text in texts if text not in known]
    for text in strings:
        if inside := [token for token in known if token in text]:
            raise UserError(f"--stop={text!r}: {inside[0]} is a special token, which no text has; give it alone")
    return [known[text] for text in texts if text in known], strings


def checksum(start: Start) -> int:
    """Of the weights."""
    import jax
    import numpy as np

    weights = 0
    for x in jax.tree.leaves(start.stored):
        weights = zlib.crc32(np.asarray(x).tobytes(), weights)
    return weights


def tokens_of(start: Start, text: str, where: str) -> list[int]:
    """A prompt's ids, as training encodes it; UserError where it has none, or is no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: character {error.start + 1} of the prompt is half a surrogate pair") from None
    if start.form:
        text = start.form.question(Chat((("user", text),)), where)
    if start.model.cfg.encoder is None:
        tokens = prompt_ids(text, start.tokenizer)
    else:  # an eos that the text ends in is the tokenizer's
        tokens = start.tokenizer(text.removesuffix(eos_of(start.tokenizer)), verbose=False)["input_ids"]
    tokens = tokens or [start.tokenizer.bos_token_id]
    if tokens == [None]:
        raise UserError(f"{where}: an empty prompt, and the tokenizer has no token to begin with (bos)")
    return start.wrap(tokens)


def _answer_file(
    start: Start, source: Path, output: Path, batch_size: int, stops: Any, strings: list[str], options: dict[str, Any]
) -> None:
    from tqdm import tqdm

    from ftjax.data.sources import place, read_rows
    from ftjax.decode.batches import WINDOW, continue_batches
    from ftjax.decode.generate import request, room
    from ftjax.decode.records import appending

    rows, prompts = read_rows(source, ("prompt",)), []
    most = room(start.model, start.adapters, options["max_new_tokens"])
    for row in rows:
        if not isinstance(row.get("prompt"), str):
            raise UserError(f"{place(row)}: no text under 'prompt'")
        if taken := [name for name in ADDED if name in row]:
            raise UserError(f"{place(row)}: has {', '.join(taken)} already, which this command adds; rename them")
        prompts.append(tokens_of(start, row["prompt"], place(row)))
        if len(prompts[-1]) > most:
            raise UserError(
                f"{place(row)}: a prompt of {len(prompts[-1])} tokens; with "
                f"max_new_tokens={options['max_new_tokens']} there is room for {most}"
            )
    how = {"adapters": start.adapters, "stops": stops, **options}
    request(start.model, start.params, prompts[:1], **how)  # a wrong option is told before there is a file
    made = {"input": hashlib.sha256(source.read_bytes()).hexdigest(), "weights": checksum(start)}
    made |= {"stop": strings, "batch_size": batch_size, **({"chat": start.chat} if start.form else {}), **options}
    with appending(output, made, total=len(rows), together=WINDOW * batch_size) as (done, add):
        left = list(enumerate(prompts))[done:]
        answers = continue_batches(start.model, start.params, left, batch_size=batch_size, **how)
        for i, found in tqdm(answers, total=len(rows), initial=done, unit="prompts", disable=None):
            scores, tokens = [sequence.score for sequence in found], [sequence.tokens for sequence in found]
            add({**rows[i], **dict(zip(ADDED, ([sequence.text for sequence in found], scores, tokens)))})
    print(f"{output}: {len(rows) - done} prompts answered, {done} were there")
