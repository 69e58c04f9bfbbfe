"""ftjax self-instruct --seeds=FILE --model=NAME --output=OUT.jsonl --num=100: has a model write tasks with examples.

The seeds are rows of `instruction`, `instances` (input, output) and `is_classification`. A line of OUT.jsonl is an
example, `instruction`, `input`, `output`, and how it came to be: it is a file for `task=instructions`. The same command
goes on where a killed one stopped, and with a larger --num where a finished one did. --workdir=RUN takes a run's model.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from absl import flags

from ftjax.errors import UserError
from ftjax.files import local


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string("seeds", None, "a file of tasks that people wrote", flag_values=values)
    flags.DEFINE_string("workdir", None, "a run's folder", flag_values=values)
    flags.DEFINE_string("model", None, "a model, in place of a run", flag_values=values)
    flags.DEFINE_string("output", None, "where the examples go, as JSON lines", flag_values=values)
    flags.DEFINE_integer("num", 100, "tasks to have written", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("batch_size", 8, "prompts for new tasks a round", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("max_new_tokens", 256, "tokens of an answer at most", lower_bound=1, flag_values=values)
    flags.DEFINE_float("temperature", 0.7, "of sampling new tasks", flag_values=values)
    flags.DEFINE_float("top_p", 0.5, "sample new tasks from the likeliest that hold this share", flag_values=values)
    flags.DEFINE_integer(
        "patience", 10, "rounds without a new task to give up after", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "of what is shown, and of sampling", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Writes the file, and prints how many tasks there are and what was left out."""
    get: Any = lambda name: values[name].value  # noqa: E731
    if bool(get("workdir")) == bool(get("model")):
        raise UserError("give either --workdir=RUN or --model=NAME")
    if not get("seeds") or not get("output"):
        raise UserError("give --seeds=FILE and --output=FILE.jsonl")
    from ftjax.cli.generate import checksum, load
    from ftjax.decode.records import appending
    from ftjax.selfinstruct import read_seeds, self_instruct
    from ftjax.selfinstruct.pipeline import told

    output, seeds = local(get("output"), "--output"), read_seeds(get("seeds"))
    start = load(get("workdir") or get("model"), bool(get("workdir")))
    names = ("seed", "batch_size", "max_new_tokens", "temperature", "top_p")
    writer = Writer(start, **{name: get(name) for name in names})
    made = {"seeds": hashlib.sha256(Path(get("seeds")).read_bytes()).hexdigest(), "weights": checksum(start)}
    made |= {name: get(name) for name in names}
    with appending(output, made, total=0, together=1) as (done, add):
        there = [json.loads(line) for line in output.read_text().splitlines()[:done]]
        counts = self_instruct(
            seeds, writer.write, add, num=get("num"), seed=get("seed"), prompts=get("batch_size"),
            patience=get("patience"), fits=writer.fits, there=there,
        )  # fmt: skip
    print(f"{output}: {counts['kept']} tasks; left out: {told(counts) or 'nothing'}")


class Writer:
    """A model that writes what `self_instruct` asks for."""

    def __init__(
        self, start: Any, *, seed: int, batch_size: int, max_new_tokens: int, temperature: float, top_p: float
    ):
        from ftjax.cli.generate import tokens_of
        from ftjax.decode.generate import request, room

        self._start, self._batch_size = start, batch_size
        common = {
            "adapters": start.adapters, "eos_token_id": start.ends, "decoder_start_token_id": start.decoder_start,
            "seed": seed, "max_new_tokens": max_new_tokens, **start.forced,
        }  # fmt: skip
        self._options: dict[str, dict[str, Any]] = {
            "instructions": common | {"do_sample": True, "temperature": temperature, "top_p": top_p},
            "sort": common | {"max_new_tokens": min(8, max_new_tokens)},
            "instances": common,
        }
        tokens = tokens_of(start, "a", "a prompt")
        for options in self._options.values():  # a wrong one is told before there is a file
            request(start.model, start.params, [tokens], **options)
        self._room = {
            step: room(start.model, start.adapters, options["max_new_tokens"])
            for step, options in self._options.items()
        }

    def fits(self, prompt: str, step: str) -> bool:
        """Whether the model has positions for a prompt and what is to follow."""
        from ftjax.cli.generate import tokens_of

        return len(tokens_of(self._start, prompt, "a prompt")) <= self._room[step]

    def write(self, prompts: Any, step: Any, first: int) -> list[Any]:
        """The answers; prompt i of a step draws from (seed, first + i)."""
        from ftjax.cli.generate import tokens_of
        from ftjax.decode.batches import continue_batches
        from ftjax.decode.text import Stops
        from ftjax.selfinstruct import Written
        from ftjax.selfinstruct.prompts import STOPS

        start, options = self._start, self._options[step]
        stops = Stops(STOPS[step], lambda tokens: start.tokenizer.decode(tokens, skip_special_tokens=True))
        numbered = [(first + i, tokens_of(start, text, "a prompt")) for i, text in enumerate(prompts)]
        found = continue_batches(
            start.model, start.params, numbered, batch_size=self._batch_size, stops=stops, **options
        )
        return [Written(one.text, one.ended) for _, (one, *_) in found]
