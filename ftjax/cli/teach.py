"""ftjax teach --config=configs/default.py:model=STUDENT,task=...,distill=token --config.distill.teacher=RUN|MODEL
--output=DIR: writes what a teacher thinks of every label of the training split, as the student will encode it: the
likeliest tokens with their log-probabilities. `--config.distill.cache=DIR` trains from it without the teacher.

ftjax teach --sequences --config=...:task=...,distill=sequence --config.distill.teacher=RUN|MODEL --output=FILE.jsonl:
has the teacher answer the prompts of the training split. Each prompt with its answers goes to FILE.hypotheses.jsonl; of
these FILE.jsonl gets what is chosen: a row has `prompt`, `completion`, `score`, `references`.
`--config.distill.corpus=FILE.jsonl` trains on it. Another choice of the same answers (--hypotheses) costs no decoding.
The teacher decodes as flags say, --num_beams, --max_new_tokens, ...; `generate.*` is of the student's evaluations.

A critic says how likely an answer is acceptable: `--critic=RUN|MODEL` adds that to the rows as `critic`, to keep by
(`--keep=critic:0.9`) or to choose by (`--choose=augmented`). It is a classifier of pairs, trained on rows with
`prompt`, `completion`, `valid` (true or false): those of `--choose=all` with what a person says of them, or with what a
check does, `--labelled=reference`:

    ftjax train --config=configs/default.py:model=MODEL,task=classification,method=full --workdir=RUN
        --config.task.files.train=FILE.jsonl --config.task.files.validation=FILE.jsonl
        --config.task.columns.text=prompt --config.task.columns.text_pair=completion --config.task.columns.label=valid

Its class of what is wanted is `true`, or what --acceptable names. With --labelled, quality against quantity by score
and by critic goes to FILE.jsonl.curve.json, and a threshold can be the one that leaves a share of the valid answers:
`--keep=critic:recall=0.8`.

The same command goes on where a killed one stopped.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from ftjax.cli.flags import define_config, read_config
from ftjax.cli.generate import CHOICES, HELP, define_decoding, load, stops_of, tokens_of
from ftjax.errors import UserError
from ftjax.files import check_other, local, write_json, write_rows

CACHE = ("temperatures", "dtype")  # flags of the one output and of the other
TEXT = (
    "hypotheses", "choose", "characters", "keep", "critic", "acceptable", "labelled", "batch_size", "max_new_tokens",
    "stop", "seed", "early_stopping", "beam_rule", *(name for name in HELP if name != "top_k"),
)  # fmt: skip
STORED = 64  # tokens of a label
# fields that answers could be thought to depend on; what is of training alone may stand there
CHECKED = (
    "task.shots", "task.demonstrations", "generate.max_new_tokens", "generate.examples", "generate.num_beams",
    "generate.samples",
)  # fmt: skip


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    define_config(values, argv)
    flags.DEFINE_string("output", None, "the cache's folder, or the corpus, a .jsonl", flag_values=values)
    flags.DEFINE_bool("sequences", False, "write the teacher's text, not its probabilities", flag_values=values)
    flags.DEFINE_integer(
        "top_k", None, f"tokens kept of each label ({STORED}); of --sequences: sample from the k likeliest, 0: all",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_multi_float(
        "temperatures", [], "to be trained at, beside 1 and distill.temperature; repeatable", flag_values=values
    )
    flags.DEFINE_enum(
        "dtype", "float16", ["float16", "bfloat16", "float32"], "of stored log-probabilities", flag_values=values
    )
    flags.DEFINE_string("hypotheses", None, "where the answers are, or go", flag_values=values)
    flags.DEFINE_enum(
        "choose", "score", ["score", "augmented", "reference", "all"],
        "of a prompt's answers: the teacher's best, the best by its probability times the critic's, the one closest to"
        " a reference by BLEU, or all", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_bool("characters", False, "closest by letters, not words", flag_values=values)
    flags.DEFINE_multi_string(
        "keep", [], "only answers that are: reference, sql, json, json:FIELD,FIELD, pattern:REGEX, score:LEAST,"
        " critic:LEAST, or of either the share of --labelled valid ones that is to be left, critic:recall=SHARE",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("critic", None, "a classifier of prompt and answer, a run or a model", flag_values=values)
    flags.DEFINE_string("acceptable", "true", "its class of the answers that are wanted", flag_values=values)
    flags.DEFINE_string(
        "labelled", None, "what is valid: a .jsonl with prompt, completion, valid; or of the answers themselves what is"
        " reference, sql, json, json:FIELD,FIELD, pattern:REGEX", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "max_new_tokens", None, "by default, as the longest reference has", lower_bound=1, flag_values=values
    )
    define_decoding(values, [name for name in HELP if name in TEXT])


def main(values: flags.FlagValues) -> None:
    """Writes, and says how much."""
    from ftjax.train.fields import Fields

    config, default = read_config(values)
    f, text = Fields(config), values["sequences"].value
    if not values["output"].value:
        raise UserError("give --output, where it goes")
    if "teacher" not in f.distill or not f.distill.teacher:
        raise UserError("give the teacher: distill=token (or sequence) and --config.distill.teacher=RUN|MODEL")
    if astray := [f"--{name}" for name in (CACHE if text else TEXT) if values[name].present]:
        raise UserError(f"{', '.join(astray)}: not {'with' if text else 'without'} --sequences")
    get: Any = lambda name: values[name].value  # noqa: E731
    files = {name: local(get(name), f"--{name}") for name in ("output", "hypotheses") if get(name)}
    if text:
        _write_text(f, default, values, **files)
    else:
        _write_cache(f, values, files["output"])


def _write_cache(f: Any, values: flags.FlagValues, output: Path) -> None:
    from ftjax.train.cache import write_cache

    get: Any = lambda name: values[name].value  # noqa: E731
    own = [f.distill.temperature] if "temperature" in f.distill else []
    temperatures = list(dict.fromkeys(map(float, [1, *own, *get("temperatures")])))
    k = STORED if get("top_k") is None else get("top_k")
    made = write_cache(f, output, k=k, temperatures=temperatures, dtype=get("dtype"))
    size = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    print(f"{output}: {made.done:,} examples, {size / 1e6:.3g} MB")


class Asked(NamedTuple):
    """A prompt: as the teacher sees it, solved examples before it included, and an example that it is of."""

    text: str
    example: Any
    lead: str  # the space that the task's completions begin with
    references: list[str]


def _write_text(f: Any, default: Any, values: flags.FlagValues, output: Path, hypotheses: Path | None = None) -> None:
    from ftjax.data.tasks.task import Text
    from ftjax.distill import sequence
    from ftjax.kinds import Setting
    from ftjax.kinds.shots import answer_in, as_text, in_context
    from ftjax.train.build import get_kind, get_task, read_examples
    from ftjax.train.teacher import is_run

    get: Any = lambda name: values[name].value  # noqa: E731
    judge = _judge(f, values)
    task = get_task(f)
    if not get_kind(f, task).writes or task.chunked:
        raise UserError(f"task.name={f.task.name}: has no prompts and answers here; --sequences needs some")
    start = load(f.distill.teacher, is_run(f.distill.teacher), task.languages and task.languages(f.task))
    examples, where, _ = read_examples(f, task, "train", "")
    setting = Setting(f, task, start.tokenizer, start.model, (), start.decoder_start, lambda: examples)
    asked: dict[str, Asked] = {}
    for example, shown, place in zip(examples, in_context(setting, examples), where):
        plain = as_text(example, "")
        if not isinstance(plain, Text):
            raise UserError(f"{place}: a {type(example).__name__} is no prompt with its answer; --sequences needs such")
        lead = plain.completion[: len(plain.completion) - len(plain.completion.lstrip())]
        one = asked.setdefault(plain.prompt, Asked(shown.prompt, example, lead, []))
        if (reference := plain.completion.strip()) not in one.references:
            one.references.append(reference)
    f.check_all_read(default, among=CHECKED)

    file = hypotheses or output.with_name(f"{output.stem}.hypotheses.jsonl")
    read = [Path(path) for path in (get("labelled"), *f.task.files.to_dict().values()) if path]
    for folder in (output.parent, file.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for source, flag in [(file, "--output"), *((path, flag) for path in read for flag in ("--output", "--hypotheses"))]:
        check_other(source, output if flag == "--output" else file, flag)
    made, rows = _answers(f, start, asked, values, file)
    records = []
    for row in rows:
        one = asked[row["prompt"]]
        for record in sequence.hypotheses(row):
            answer = answer_in(setting, record["completion"], one.example)
            records.append({**record, "completion": one.lead + answer})
    total = len(records)
    records = sequence.keep(records, lambda record: bool(record["completion"].strip()), "answers with text")
    records, least, curve = judge(records)
    if get("choose") != "all":
        records = sequence.best(records, {
            "score": sequence.by_score, "augmented": sequence.augmented,
            "reference": sequence.closeness(get("characters")),
        }[get("choose")])  # fmt: skip
    write_json(output.with_name(f"{output.name}.options.json"), {
        **made, "choose": get("choose"), "characters": get("characters"), "keep": get("keep"), "least": least,
        "labelled": get("labelled"), "critic": get("critic"), "rows": len(records),
        **({"critic_weights": judge.critic.key, "acceptable": get("acceptable")} if judge.critic else {}),
    })  # fmt: skip
    known = output.with_name(f"{output.name}.curve.json")
    if curve:
        write_json(known, curve)
    else:
        known.unlink(missing_ok=True)  # of another command
    write_rows(output, records)
    print(f"{output}: {len(records):,} rows of {len(rows):,} prompts and {total:,} answers")


def _judge(f: Any, values: flags.FlagValues) -> Any:
    """What tells good answers from bad, checked before anything is decoded."""
    from ftjax.kinds import require
    from ftjax.parallel.mesh import make_mesh
    from ftjax.train.critic import load_critic
    from ftjax.train.judge import make_judge

    get: Any = lambda name: values[name].value  # noqa: E731
    if not get("critic"):
        if values["acceptable"].present or get("choose") == "augmented":
            raise UserError("--acceptable and --choose=augmented are of a critic; give --critic=RUN|MODEL")
    elif get("choose") == "augmented" and get("num_beams") > 1 and get("length_penalty"):
        raise UserError("--choose=augmented: scores of beams are log-probabilities with --length_penalty=0; give it")
    require("eval_batch_size", f.eval_batch_size, f.eval_batch_size >= 1, "1 or more")
    mesh = make_mesh(f.mesh)
    critic = load_critic(get("critic"), get("acceptable"), mesh) if get("critic") else None
    return make_judge(get("keep"), critic, get("labelled") or "", f.eval_batch_size, mesh)


def _answers(
    f: Any, start: Any, asked: Mapping[str, Asked], values: flags.FlagValues, file: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How the answers are made, and a row for each prompt: those of the file, and what it lacks, appended."""
    from tqdm import tqdm

    from ftjax.decode.batches import WINDOW, continue_batches
    from ftjax.decode.generate import most_new_tokens, request, room
    from ftjax.decode.records import appending
    from ftjax.decode.text import Stops
    from ftjax.distill import teacher_key

    get: Any = lambda name: values[name].value  # noqa: E731
    name, tokenizer, batch_size = f.distill.teacher, start.tokenizer, get("batch_size")
    prompts = [tokens_of(start, one.text, f"prompt {prompt!r:.40}") for prompt, one in asked.items()]
    longest, new = max(map(len, prompts)), get("max_new_tokens")
    if new is None:
        references = [text for one in asked.values() for text in one.references]
        wanted = max(map(len, tokenizer(references, add_special_tokens=False, verbose=False)["input_ids"])) + 1
        new = max(min(wanted, most_new_tokens(start.model, start.adapters, longest)), 1)
    if longest > (most := room(start.model, start.adapters, new)):
        raise UserError(
            f"distill.teacher={name}: a prompt has {longest} tokens; with --max_new_tokens={new} there is room for"
            f" {most}"
        )
    special, strings = stops_of(tokenizer, get("stop"))
    stops = Stops(strings, lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True))
    options: dict[str, Any] = {
        "max_new_tokens": new, "seed": get("seed"), "early_stopping": CHOICES[get("early_stopping")],
        "beam_rule": get("beam_rule"), "eos_token_id": [*start.ends, *special],
        "decoder_start_token_id": start.decoder_start, **start.forced, **{name: get(name) for name in HELP},
        "top_k": get("top_k") or 0,
    }  # fmt: skip
    how = {"adapters": start.adapters, "stops": stops, **options}
    request(start.model, start.params, prompts[:1], **how)  # a wrong option is told before there is a file
    variables = {"params": start.params, "adapters": start.adapters or {}}
    known = json.dumps([[prompt, one.text, one.references] for prompt, one in asked.items()])
    made = {"teacher": name, "weights": teacher_key(start.model, variables), "stop": get("stop")}
    made |= {"prompts": hashlib.sha256(known.encode()).hexdigest(), "batch_size": batch_size, **options}
    with appending(file, made, total=len(prompts), together=WINDOW * batch_size) as (done, add):
        answers = continue_batches(
            start.model, start.params, list(enumerate(prompts))[done:], batch_size=batch_size, **how
        )
        texts = list(asked.items())
        for i, found in tqdm(answers, total=len(prompts), initial=done, unit="prompts", disable=None):
            prompt, one = texts[i]
            said, scores = [sequence.text for sequence in found], [sequence.score for sequence in found]
            add({"prompt": prompt, "continuations": said, "scores": scores, "references": one.references})
    return made, [json.loads(line) for line in file.read_text("utf-8").splitlines()]
