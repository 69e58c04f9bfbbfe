"""`ftjax teach`: caches and corpora that a killed command goes on with, and what is trained on them."""

import json

import pytest

import ftjax
from ftjax.cli import teach
from ftjax.cli.main import main
from ftjax.data.tasks import TASKS
from ftjax.data.tokenizer import train_tokenizer
from ftjax.distill import sequence
from ftjax.distill.cache import INDEX
from ftjax.errors import UserError
from ftjax.train import cache

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "ran", "home", "again")
ROWS = [(f"{a} {b}", [f"{b} {c}", f"{c} {a} {b}"][: 1 + (c == "sat")]) for a, b, c in zip(WORDS, WORDS[1:], WORDS[2:])]


@pytest.fixture(scope="module")
def folder(make, tmp_path_factory):
    """Folders of a `student` and of a `teacher` with the same tokenizer; rows of prompts, one with two answers."""
    root = tmp_path_factory.mktemp("teach")
    (root / "text.txt").write_text(" ".join(WORDS) * 20)
    tokenizer = train_tokenizer("byte_bpe", [root / "text.txt"], 280)
    size = dict(vocab_size=len(tokenizer), max_positions=40, num_layers=1)
    models = {"student": make("gpt2", **size), "teacher": make("llama", **size, hidden_size=24)}
    models["critic"] = make("gpt2", **size, head="classification", num_classes=2, pooling="last", classifier_bias=False)
    for name, made in models.items():
        ftjax.save(root / name, made.model, made.params, extra={"eos_token_id": tokenizer.eos_token_id})
        tokenizer.save_pretrained(root / name)
    lines = [json.dumps({"prompt": p, "completion": f" {a}"}) + "\n" for p, answers in ROWS for a in answers]
    for split in ("train", "validation"):
        (root / f"{split}.jsonl").write_text("".join(lines))
    return root


@pytest.fixture
def run(folder, capsys):
    """run(command, distill, *flags) -> (exit code, stdout, the lines of ours on stderr)."""

    def call(command, distill, *flags, source="teacher"):
        axes = f"model={folder / 'student'},task=lm,method=full,distill={distill}"
        data = [f"--config.task.files.{split}={folder / split}.jsonl" for split in ("train", "validation")]
        given = [f"--config.distill.teacher={folder / source}"] if source else []
        code = main(
            [command, f"--config=configs/default.py:{axes}", "--config.task.max_length=32", *data, *given, *flags]
        )
        said = capsys.readouterr()
        return code, said.out, [line for line in said.err.splitlines() if line.startswith("ftjax: ")]

    return call


@pytest.fixture
def train(run, tmp_path):
    """train(distill, *flags) -> as run, of a student of two steps."""
    small = ["--config.steps=2", "--config.eval_every=2", "--config.batch_size=4", "--config.log_every=1"]
    return lambda distill, *flags: run("train", distill, f"--workdir={tmp_path / 'run'}", *small, *flags, source=None)


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_cache_is_gone_on_with_and_trained_on(run, train, tmp_path, monkeypatch):
    flags = ("--top_k=5", "--temperatures=3", "--config.distill.temperature=2", "--config.eval_batch_size=4")
    plain = cache.Writer
    monkeypatch.setattr(cache, "Writer", lambda *args, **how: plain(*args, **how | {"shard_labels": 12}))
    code, out, err = run("teach", "token", f"--output={tmp_path / 'whole'}", *flags)
    assert code == 0 and "9 examples" in out, err
    index = json.loads((tmp_path / "whole" / INDEX).read_text())
    assert index["k"] == 5 and index["temperatures"] == [1, 2, 3] and len(index["shards"]) == 3
    assert set(index["key"]) == {"teacher", "tokenizer", "data"}

    add, calls = plain.add, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return add(*args)

    monkeypatch.setattr(plain, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        run("teach", "token", f"--output={tmp_path / 'killed'}", *flags)
    source = f"--config.distill.cache={tmp_path / 'killed'}"
    code, _, err = train("token", source)
    assert code == 2 and len(err) == 1 and "4 of 9 examples are there; let the same ftjax teach finish" in err[0]
    monkeypatch.setattr(plain, "add", add)
    assert run("teach", "token", f"--output={tmp_path / 'killed'}", *flags)[0] == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")

    code, _, err = train("token", source, "--config.distill.temperature=3")
    assert code == 0, err
    code, _, err = run("teach", "token", f"--output={tmp_path / 'whole'}", "--top_k=4")
    assert code == 2 and "made with k 5, not 4" in err[0]


@pytest.mark.parametrize(
    ("damage", "flags", "words"),
    [
        (lambda shard: shard.write_bytes(shard.read_bytes()[:-9]), (), "bytes of"),
        (lambda shard: shard.unlink(), (), "missing, though"),
        (lambda shard: None, ("--config.task.max_train_rows=8",), "of another data"),
        (lambda shard: None, ("--config.model.path=nano-gpt",), "of another tokenizer"),
    ],
)
def test_a_cache_that_does_not_fit(run, train, tmp_path, damage, flags, words):
    assert run("teach", "token", f"--output={tmp_path / 'cache'}")[0] == 0
    damage(tmp_path / "cache" / "shard-00000.safetensors")
    code, _, err = train("token", f"--config.distill.cache={tmp_path / 'cache'}", *flags)
    assert code == 2 and len(err) == 1 and words in err[0] and not (tmp_path / "run").exists()


BEAMS = ("--num_beams=3", "--num_return_sequences=3", "--batch_size=2", "--max_new_tokens=4")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def corpus(run, tmp_path):
    """corpus(name, *flags) -> as run; and the file."""

    def call(name, *flags):
        return *run("teach", "sequence", "--sequences", f"--output={tmp_path / name}.jsonl", *flags), tmp_path / name

    return call


def test_a_corpus_is_gone_on_with_chosen_from_and_trained_on(corpus, train, tmp_path):
    code, out, err, _ = corpus("best", *BEAMS)
    assert code == 0 and "8 rows of 8 prompts and 24 answers" in out, err
    file, there = tmp_path / "best.hypotheses.jsonl", rows(tmp_path / "best.hypotheses.jsonl")
    assert [row["prompt"] for row in there] == [prompt for prompt, _ in ROWS]
    assert [row["references"] for row in there] == [answers for _, answers in ROWS]
    best = rows(tmp_path / "best.jsonl")
    for row, chosen in zip(there, best, strict=True):
        assert set(chosen) == {"prompt", "completion", "score", "references"}
        assert chosen["score"] == max(row["scores"]) and chosen["completion"] == " " + row["continuations"][0].strip()
    said = json.loads((tmp_path / "best.jsonl.options.json").read_text())
    assert said["num_beams"] == 3 and said["seed"] == 0 and len(said["weights"]) == 64 and said["choose"] == "score"

    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:5]) + lines[5][:-7])  # killed while it wrote the sixth
    (tmp_path / "best.jsonl").unlink()
    assert corpus("best", *BEAMS)[0] == 0
    assert file.read_bytes() == whole and rows(tmp_path / "best.jsonl") == best

    code, _, err, _ = corpus("best", *BEAMS, "--length_penalty=2")
    assert code == 2 and "length_penalty was 1.0, is 2.0" in err[0]
    stamp = file.stat().st_mtime_ns
    for choose, count in (("reference", 8), ("all", 24)):
        code, out, err, _ = corpus(choose, *BEAMS, f"--hypotheses={file}", f"--choose={choose}")
        assert code == 0 and len(rows(tmp_path / f"{choose}.jsonl")) == count, err
    rate = sequence.closeness()
    for row, chosen in zip(there, rows(tmp_path / "reference.jsonl"), strict=True):
        assert rate(chosen) == max(rate({**row, "completion": text}) for text in row["continuations"])
    assert file.stat().st_mtime_ns >= stamp and file.read_bytes() == whole

    code, out, err = train("sequence", f"--config.distill.corpus={tmp_path / 'reference.jsonl'}")
    assert code == 0 and json.loads(out)["metrics"]["perplexity"] > 0, err


def test_which_answers_are_chosen_and_kept(corpus, tmp_path, monkeypatch):
    """Of made-up answers: the best by score, the closest to a reference, the filters, by hand."""
    assert corpus("a", *BEAMS)[0] == 0
    file = tmp_path / "a.hypotheses.jsonl"
    there = rows(file)
    for row in there:
        row["continuations"], row["scores"] = [" zzz zzz", f"  {row['references'][-1]}", ""], [-1.0, -2.0, None]
    file.write_text("".join(json.dumps(row) + "\n" for row in there))

    def made(*flags):
        code, _, err, _ = corpus("b", *BEAMS, f"--hypotheses={file}", *flags)
        assert code == 0, err
        return [(row["completion"], row["score"]) for row in rows(tmp_path / "b.jsonl")]

    right = [(f" {answers[-1]}", -2.0) for _, answers in ROWS]
    assert made() == [(" zzz zzz", -1.0)] * 8
    assert made("--choose=reference") == made("--keep=reference") == made("--keep=pattern:[^z]*") == right
    assert made("--choose=reference", "--characters") == right
    assert made("--choose=all") == [one for row in right for one in ((" zzz zzz", -1.0), row)]
    assert made("--choose=all", "--keep=score:-1.5") == [(" zzz zzz", -1.0)] * 8
    assert made("--choose=all", "--keep=pattern:.*zzz", "--keep=score:-1") == [(" zzz zzz", -1.0)] * 8
    code, _, err, _ = corpus("c", *BEAMS, f"--hypotheses={file}", "--keep=sql")
    assert code == 2 and "--keep=sql: none of 16 records passes" in err[0] and not (tmp_path / "c.jsonl").exists()


def test_a_critic_rates_chooses_and_is_measured(corpus, folder, tmp_path):
    """The best by p(y | x) A(x, y) of all answers, thresholds by recall, and the curves that they are read from."""
    plain = (*BEAMS, "--length_penalty=0", f"--hypotheses={tmp_path / 'h.jsonl'}")
    flags = (*plain, f"--critic={folder / 'critic'}", "--acceptable=LABEL_1")
    code, _, err, _ = corpus("all", *flags, "--choose=all")
    assert code == 0, err
    answers = rows(tmp_path / "all.jsonl")
    assert all(0 < row["critic"] < 1 for row in answers) and not (tmp_path / "all.jsonl.curve.json").exists()
    said = json.loads((tmp_path / "all.jsonl.options.json").read_text())
    assert said["acceptable"] == "LABEL_1" and len(said["critic_weights"]) == 64

    labelled = [{**row, "valid": i % 4 == 0} for i, row in enumerate(answers)]
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    known = f"--labelled={tmp_path / 'labelled.jsonl'}"
    code, _, err, _ = corpus("best", *flags, known, "--choose=augmented", "--keep=critic:recall=0.5")
    assert code == 0, err
    least = sequence.threshold([row["critic"] for row in labelled], [row["valid"] for row in labelled], 0.5)
    left = [row for row in answers if row["critic"] >= least]
    assert rows(tmp_path / "best.jsonl") == sequence.best(left, sequence.augmented)
    said = json.loads((tmp_path / "best.jsonl.options.json").read_text())
    assert said["least"] == {"critic:recall=0.5": least} and said["choose"] == "augmented"
    curve = json.loads((tmp_path / "best.jsonl.curve.json").read_text())
    assert curve["labelled"] == len(answers) and curve["score"][-1]["kept"] == curve["critic"][-1]["recall"] == 1

    code, _, err, _ = corpus("best", *plain, known, "--choose=all", "--keep=score:recall=0.5")
    assert code == 0 and "critic" not in rows(tmp_path / "best.jsonl")[0], err
    for wrong, words in (
        ((*plain, "--choose=augmented"), "give --critic"),
        ((*plain, "--acceptable=good"), "give --critic"),
        ((*flags, "--length_penalty=1", "--choose=augmented"), "with --length_penalty=0"),
        ((*plain, "--keep=critic:0.5"), "rated by whom"),
        ((*flags, "--acceptable=good"), "LABEL_0, LABEL_1"),
        ((*plain, "--labelled=nowhere"), "nowhere: no such file"),
    ):
        code, _, err, _ = corpus("wrong", *wrong)
        assert code == 2 and len(err) == 1 and words in err[0], err


def test_draws_for_shots_by_a_teacher_of_other_tokens(corpus, tmp_path):
    """The teacher sees solved examples before a prompt, the student's corpus does not; vocabularies may differ."""
    flags = ("--config.distill.teacher=nano-gpt", "--config.task.shots=1", "--config.task.separator=;", "--stop=;")
    draws = ("--do_sample", "--num_return_sequences=2", "--seed=3", "--top_k=20", "--choose=all", "--keep=score:-1e9")
    code, _, err, _ = corpus("drawn", *flags, *draws)
    assert code == 0, err
    found = rows(tmp_path / "drawn.jsonl")
    assert {row["prompt"] for row in found} <= {prompt for prompt, _ in ROWS}
    assert all(row["completion"].startswith(" ") and ";" not in row["completion"] for row in found)
    said = json.loads((tmp_path / "drawn.jsonl.options.json").read_text())
    assert said["top_k"] == 20 and said["teacher"] == "nano-gpt" and said["keep"] == ["score:-1e9"]


@pytest.mark.parametrize(
    ("distill", "source", "flags", "words"),
    [
        ("token", "teacher", (), "give --output"),
        ("none", None, ("--output=x",), "give the teacher"),
        ("token", None, ("--output=x",), "give the teacher"),
        ("token", "teacher", ("--output=x", "--num_beams=2"), "--num_beams: not without --sequences"),
        ("token", "teacher", ("--output=x", "--sequences", "--dtype=float32"), "--dtype: not with --sequences"),
        ("token", "teacher", ("--output=x", "--top_k=0"), "--top_k=0: give 1 to"),
        ("token", "teacher", ("--output=x", "--temperatures=-1"), "--temperatures=[1.0, -1.0]: give"),
        ("token", "nowhere", ("--output=x",), "nowhere"),
        ("sequence", "teacher", ("--output=x", "--sequences", "--keep=good"), "--keep=good: give reference"),
        ("sequence", "teacher", ("--output=x", "--sequences", "--keep=pattern:("), "no regular expression"),
        ("sequence", "teacher", ("--output=x", "--sequences", "--hypotheses=x"), "is what is read; give another file"),
        ("sequence", "teacher", ("--output=x", "--sequences", "--max_new_tokens=99"), "leaves no room"),
        ("sequence", "teacher", ("--output=x", "--sequences", "--num_return_sequences=2"), "needs do_sample"),
        ("sequence", "teacher", ("--output=x", "--sequences", "--config.generate.num_beams=5"), "num_beams=5: set"),
        ("sequence", "teacher", ("--output=x", "--sequences", "--config.generate.samples=5"), "samples=5: set"),
    ],
)  # fmt: skip
def test_what_is_found_wrong(run, tmp_path, monkeypatch, distill, source, flags, words):
    flags = [flag.replace("=x", f"={tmp_path / 'x'}") for flag in flags]
    code, _, err = run("teach", distill, *flags, source=source)
    assert code == 2 and len(err) == 1 and words in err[0], err
    assert not list(tmp_path.iterdir())


def test_the_teacher_is_told_the_languages_of_the_task(run, tmp_path, monkeypatch):
    def load(name, is_run, languages):
        raise UserError(f"{languages}")

    monkeypatch.setattr(teach, "load", load)
    monkeypatch.setitem(TASKS, "lm", TASKS["lm"]._replace(languages=lambda cfg: ("en", "de")))
    code, _, err = run("teach", "sequence", f"--output={tmp_path / 'x'}", "--sequences")
    assert code == 2 and err == ["ftjax: ('en', 'de')"]


def test_texts_without_an_answer(folder, run, tmp_path):
    (tmp_path / "text.txt").write_text("the cat\n" * 9)
    flags = ("--config.task.name=text", f"--output={tmp_path / 'x'}", "--sequences")
    code, _, err = run("teach", "sequence", *flags)
    assert code == 2 and "task.name=text: has no prompts and answers" in err[0]
