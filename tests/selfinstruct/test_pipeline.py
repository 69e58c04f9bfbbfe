"""The rounds, by a scripted model that takes every way there is."""

import json
import re
from pathlib import Path

import pytest

from ftjax.cli.main import main
from ftjax.data.sources import read_rows
from ftjax.data.tasks import TASKS
from ftjax.errors import RunError, UserError
from ftjax.selfinstruct import Seed, Written, read_seeds, self_instruct
from ftjax.selfinstruct.pipeline import told
from ftjax.selfinstruct.prompts import (
    ask_for_instances,
    ask_for_instructions,
    ask_for_sort,
    fitted,
    read_instances,
    read_instructions,
    read_sort,
)

SEEDS = [
    Seed(f"s{i}", f"Seed number {i} asks\nfor thing {i}", ((f"in {i}", f"out {i}"), ("", "x"))[: 1 + i % 2], i % 3 == 0)
    for i in range(12)
]
LISTS = [  # what the model writes in the rounds
    " Name the capital of a country\nTask 10: Sort this review by its feeling\nTask 11: Short\n"
    "Task 12: Look at the image and tell\n Task 13:\nTask 14: # is a sign here\n"
    "Task 15: Name the capital of any country\nTask 16: Nobody knows what this is",
    " Tell a joke about old dogs\nTask 10: A task which has no example at all\nTask 11: Translate the words into Fren",
    " Seed number 4 asks for thing 4",
    " Give me a rhyme for spring flowers\nTask 10: Say whether numbers like these are prime",
]


class Model:
    """Answers by what the prompt ends with; notes the prompts."""

    def __init__(self, lists=LISTS, ends=True):
        self.lists, self.ends, self.asked = lists, ends, []

    def __call__(self, prompts, step, first):
        self.asked += [(step, prompt, first + i) for i, prompt in enumerate(prompts)]
        if step == "instructions":
            texts = [self.lists[(first + i) % len(self.lists)] for i in range(len(prompts))]
            return [Written(text, self.ends and not text.endswith("Fren")) for text in texts]
        return [Written(*getattr(self, step)(re.findall(r"Task: (.*)", p)[-1])) for p in prompts]

    def sort(self, task):
        return " Yes\n" if "feeling" in task or "prime" in task else " hm" if "Nobody" in task else " no.", True

    def instances(self, task):
        if "feeling" in task:
            return "Label: good\nInput: I like it\nvery much\nLabel: bad\nInput: No.\nLabel: bad\nInput: No.\n", True
        if "prime" in task:
            return "Label: yes\nInput: 7\nLabel: no\nInput: 8 and furth", False
        if "capital" in task:
            return "Input: France\nOutput: Paris\nInput: Peru\nOutput: Li", False
        if "example" in task:
            return "I would rather not.", True
        return "Output: Well,\nwell.\nInput: and then", False


def run(model=None, **how):
    rows = []
    counts = self_instruct(SEEDS, model or Model(), rows.append, **{"num": 5, "prompts": 1, **how})
    return rows, counts


def test_all_ways():
    model = Model()
    rows, counts = run(model)
    fields = ("id", "instruction", "input", "output", "is_classification")
    assert [tuple(row[field] for field in fields) for row in rows] == [
        ("made_0", "Name the capital of a country", "France", "Paris", False),
        ("made_1", "Sort this review by its feeling", "I like it\nvery much", "good", True),
        ("made_1", "Sort this review by its feeling", "No.", "bad", True),
        ("made_2", "Tell a joke about old dogs", "", "Well,\nwell.", False),
        ("made_3", "Give me a rhyme for spring flowers", "", "Well,\nwell.", False),
        ("made_4", "Say whether numbers like these are prime", "7", "yes", True),
    ]  # fmt: skip
    assert dict(counts) == {
        "kept": 5, "length": 1, "unseen": 1, "empty": 1, "sign": 1, "similar": 2, "unsorted": 1, "without example": 1,
        "cut off": 1, "no room": 0, "shortened": 0,
    }  # fmt: skip
    assert [(row["provenance"]["round"], row["provenance"]["example"], row["provenance"]["of"]) for row in rows] == [
        (0, 1, 1), (0, 1, 2), (0, 2, 2), (1, 1, 1), (3, 1, 1), (3, 1, 1),
    ]  # fmt: skip
    first = rows[0]["provenance"]
    assert len(first["shown"]) == 8 and set(first["shown"]) <= {seed.id for seed in SEEDS}
    assert sum(name.startswith("made") for name in rows[-1]["provenance"]["shown"]) == 2
    assert first["nearest"] in {seed.id for seed in SEEDS} and 0 <= first["rouge_l"] <= 0.7
    steps = [step for step, *_ in model.asked]
    assert steps.count("instructions") == 4 and [n for step, _, n in model.asked if step == "instructions"] == [
        0,
        1,
        2,
        3,
    ]
    assert run()[0] == rows and run(seed=1)[0][0]["provenance"]["shown"] != first["shown"]


def test_classification_is_asked_for_labels_first():
    model = Model()
    run(model)
    asked = {re.findall(r"Task: (.*)", prompt)[-1]: prompt for step, prompt, _ in model.asked if step == "instances"}
    prompt = asked["Sort this review by its feeling"]
    assert "Say the label first" in prompt and "Output:" not in prompt and "Label: out 0\nInput: in 0\n" in prompt
    prompt = asked["Tell a joke about old dogs"]
    assert "Label:" not in prompt and "Input: in 1\nOutput: out 1\nOutput: x\n" in prompt
    sorting = next(prompt for step, prompt, _ in model.asked if step == "sort")
    assert sorting.count("Fixed labels: Yes") == 4 and sorting.count("Fixed labels: No") == 8


@pytest.mark.parametrize("kept", range(7))
def test_a_broken_run_goes_on_as_it_would_have(kept):
    whole, _ = run()
    there = json.loads(json.dumps(whole[:kept]))
    rows, counts = run(there=there)
    assert there + rows == whole and counts["kept"] == 5
    if kept < 5:
        assert there + run(there=there, num=3)[0] == whole[:4]
    model = Model()
    run(model, there=whole)
    assert not model.asked  # nothing is left to do


def test_a_finished_run_goes_on_with_more():
    rows, _ = run(num=1)
    assert rows + run(there=rows)[0] == run()[0] and len(rows) == 1


def test_another_model_is_found_out():
    rows, _ = run(num=1)
    with pytest.raises(UserError, match=r"round 0 is not written as the first time .*Name the capital"):
        run(Model(LISTS[::-1]), there=rows)


def test_it_gives_up():
    for lists, said in (([" Short"], "length 3"), ([""], "empty 3"), ([LISTS[2]], "similar 3")):
        with pytest.raises(RunError, match=f"3 rounds without a new task, 0 of 5 are there .left out: {said}"):
            run(Model(lists), patience=3)
    with pytest.raises(RunError, match="left out: cut off 3"):
        run(Model([LISTS[3].partition("\n")[0]], ends=False), patience=3)
    with pytest.raises(RunError, match="3 rounds without a new task, 5 of 9"):  # the four lists again bring nothing
        run(num=9, patience=3)


def test_prompts_show_what_there_is_room_for():
    model = Model()
    rows, counts = run(model, num=3, fits=lambda prompt, step: prompt.count("\n") < 6)
    lists = [prompt for step, prompt, _ in model.asked if step == "instructions"]
    assert all(prompt.count("\nTask ") == 4 and prompt.endswith("Task 4:") for prompt in lists)
    assert [len(row["provenance"]["shown"]) for row in rows] == [3] * len(rows)
    assert counts["shortened"] == len(model.asked) and counts["no room"] == 0
    with pytest.raises(UserError, match="no room for a list of tasks"):
        run(fits=lambda prompt, step: False)
    with pytest.raises(RunError, match="no room 14"):  # of what is to be sorted
        run(fits=lambda prompt, step: step == "instructions", patience=8)
    build = lambda shown: "x" * (1 + len(shown))  # noqa: E731
    assert fitted(build, SEEDS[:3], lambda text: len(text) < 4) == ("xxx", 2)
    assert fitted(build, SEEDS[:3], lambda text: len(text) < 2) == ("x", 0)


def test_reading():
    assert read_instructions(" a  b\nc\n Task 9: d\nTask 10: ", True) == ["a b c", "d", ""]
    assert read_instructions(" a\nTask 9: d", False) == ["a"]
    assert [read_sort(text) for text in (" Yes", "no, never", "\nYES.", "yesterday", "", "It is")] == [
        True, False, True, None, None, None,
    ]  # fmt: skip
    both = "Input: 1\nOutput: 2\n\nOutput: 3\nInput: 4\nOutput: 5: 6"
    assert read_instances(both, True, False) == [("1", "2"), ("", "3"), ("4", "5: 6")]
    assert read_instances(both, False, False) == [("1", "2"), ("", "3")]
    assert read_instances(f"{both}\nInput: 7", False, False) == [("1", "2"), ("", "3"), ("4", "5: 6")]
    labels = "Label: a\nInput: 1\n2\nLabel: b\nLabel: c\nInput: 3"
    assert read_instances(labels, True, True) == [("1\n2", "a"), ("", "b"), ("3", "c")]
    assert read_instances(labels, False, True) == [("1\n2", "a"), ("", "b")]
    assert read_instances("", True, True) == read_instances("Input: 1", True, False) == []
    assert told({"kept": 3, "length": 2, "empty": 0}) == "length 2"


def test_asking():
    assert ask_for_instructions(SEEDS[:2]).endswith(
        "\n\nTask 1: Seed number 0 asks for thing 0\nTask 2: Seed number 1 asks for thing 1\nTask 3:"
    )
    assert ask_for_sort("Sing.", SEEDS[:1]).endswith(
        "\n\nTask: Seed number 0 asks for thing 0\nFixed labels: Yes\n\nTask: Sing.\nFixed labels:"
    )
    assert ask_for_instances("Sing.", False, []).endswith("right output.\n\nTask: Sing.\n")


def test_seeds(tmp_path):
    path = tmp_path / "seeds.jsonl"
    good = [
        {"instruction": "Sing.", "instances": [{"output": "La"}], "is_classification": sort} for sort in (True, False)
    ]

    def read(*rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_seeds(path)

    assert read(*good)[1] == Seed("seed_2", "Sing.", (("", "La"),), False)
    for wrong, says in (
        ({"instances": None}, "no task with"), ({"instances": [{"input": "a"}]}, "no task with"),
        ({"instruction": " "}, "must be text"), ({"instances": []}, "must be text"),
        ({"instances": [{"output": 3}]}, "must be text"), ({"instruction": 3}, "must be text"),
        ({"is_classification": "no"}, "give true or false"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"seeds\.jsonl:2: .*{says}"):
            read(good[0], good[1] | wrong)
    with pytest.raises(UserError, match="give tasks of both sorts"):
        read(good[0])


def seeds_file(folder):
    rows = [
        {"id": seed.id, "instruction": seed.instruction, "is_classification": seed.is_classification,
         "instances": [{"input": given, "output": output} for given, output in seed.instances]}
        for seed in SEEDS
    ]  # fmt: skip
    path = folder / "seeds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def command(tmp_path, monkeypatch):
    """command(model, *flags) -> the exit code of `ftjax self-instruct`, by a scripted model where one is given."""

    def call(model, *flags):
        if model:
            monkeypatch.setattr("ftjax.cli.self_instruct.Writer.write", lambda self, *asked: model(*asked))
        where = [f"--seeds={seeds_file(tmp_path)}", f"--output={tmp_path / 'out.jsonl'}"]
        return main(["self-instruct", "--model=nano-gpt", "--max_new_tokens=24", *where, *flags])

    return call


def test_the_file(command, tmp_path, capsys):
    flags = ("--batch_size=1", "--num=3")
    assert command(Model(), *flags) == 0
    assert "3 tasks; left out: " in capsys.readouterr().out
    output = tmp_path / "out.jsonl"
    lines = output.read_bytes().splitlines(True)
    assert len(lines) == 4
    output.write_bytes(b"".join(lines[:2]) + lines[2][:9])  # killed while it wrote the third
    assert command(Model(), *flags) == 0 and output.read_bytes().splitlines(True) == lines
    assert command(Model(), "--batch_size=1", "--num=4") == 0 and len(output.read_bytes().splitlines()) == 5
    task = TASKS["instructions"]
    examples = [task.example(row, "<e>") for row in read_rows(output)]
    assert examples[0].completion == "Paris<e>" and "### Input:\nFrance" in examples[0].prompt
    capsys.readouterr()
    for more, says in (
        (("--seed=1",), "begun otherwise (seed was 0, is 1)"), (("--model=",), "give either --workdir=RUN or --model"),
        (("--output=",), "give --seeds=FILE and --output"), (("--max_new_tokens=9999",), "leaves no room"),
    ):  # fmt: skip
        assert command(Model(), *flags, *more) == 2
        assert says in capsys.readouterr().err


def test_by_a_real_model(command, tmp_path, capsys):
    assert command(None, "--batch_size=2", "--num=1", "--patience=1") == 1
    said = "1 rounds without a new task, 0 of 1 are there (left out: cut off 2)"
    assert said in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_seeds_of_the_authors():
    path = Path(__file__).parents[2].parent / "shared" / "data" / "instructions" / "selfinstruct_seed_tasks.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    seeds = read_seeds(path)
    assert len(seeds) == 175 and sum(seed.is_classification for seed in seeds) == 26
    rows = []
    self_instruct(seeds, Model(), rows.append, num=5, prompts=1)
    assert len(rows) == 6
