"""What the model is asked in each step, and how what it writes is read. The wording is our own."""

import re
from collections.abc import Callable, Sequence
from typing import Literal

from ftjax.selfinstruct.seeds import Seed

Step = Literal["instructions", "sort", "instances"]
MOST = 16  # tasks of one list
STOPS: dict[Step, tuple[str, ...]] = {
    "instructions": ("\n\n", f"Task {MOST + 1}:"), "sort": ("\n",), "instances": ("Task:",),
}  # fmt: skip


def ask_for_instructions(shown: Sequence[Seed]) -> str:
    """A numbered list of tasks to go on with."""
    lines = [f"Task {number}: {_line(seed.instruction)}\n" for number, seed in enumerate(shown, 1)]
    return (
        f"A list of tasks that one may give an assistant, no two of a kind:\n\n{''.join(lines)}Task {len(lines) + 1}:"
    )


def read_instructions(text: str, ended: bool) -> list[str]:
    """The tasks of the list; the last one is left out where the text was cut off."""
    found = [_line(part) for part in re.split(r"\n\s*Task \d+:", text)]
    return found if ended else found[:-1]


def ask_for_sort(instruction: str, shown: Sequence[Seed]) -> str:
    """Is it a task of classification?"""
    said = {True: "Yes", False: "No"}
    solved = [f"Task: {_line(one.instruction)}\nFixed labels: {said[one.is_classification]}\n\n" for one in shown]
    head = "Is the output of each task one of a few fixed labels?\n\n"
    return f"{head}{''.join(solved)}Task: {instruction}\nFixed labels:"


def read_sort(text: str) -> bool | None:
    """Yes or no; None for neither."""
    said = re.match(r"\s*(yes|no)\b", text.lower())
    return said and said[1] == "yes"


def ask_for_instances(instruction: str, classification: bool, shown: Sequence[Seed]) -> str:
    """Examples of a task: the output first of classification, so that labels are balanced, else the input."""
    if classification:
        head = "Give examples of each task. Say the label first, then an input that has it; take every label once.\n\n"
    else:
        head = "Give examples of each task: an input, where it needs one, and the right output.\n\n"
    solved = [f"Task: {_line(seed.instruction)}\n{_examples(seed, classification)}\n" for seed in shown]
    return f"{head}{''.join(solved)}Task: {instruction}\n"


def _examples(seed: Seed, classification: bool) -> str:
    lines = []
    for given, output in seed.instances:
        parts = [f"Input: {given}\n" if given else "", f"{'Label' if classification else 'Output'}: {output}\n"]
        lines += reversed(parts) if classification else parts
    return "".join(lines)


def read_instances(text: str, ended: bool, classification: bool) -> list[tuple[str, str]]:
    """(input, output) of each example; the last one is left out where the text was cut off."""
    parts = [part.strip() for part in re.split(r"(?:^|\n)\s*(Input|Output|Label):", text)]
    fields, found = list(zip(parts[1::2], parts[2::2])), []
    if classification:
        for i, (name, value) in enumerate(fields):
            if name == "Label":
                follows = fields[i + 1] if i + 1 < len(fields) else ("", "")
                found.append((follows[1] if follows[0] == "Input" else "", value))
    else:
        for i, (name, value) in enumerate(fields):
            if name == "Output":
                found.append((fields[i - 1][1] if i and fields[i - 1][0] == "Input" else "", value))
        if fields and fields[-1][0] == "Input":  # what was cut off is its output
            ended = True
    return found if ended else found[:-1]


def fitted(
    build: Callable[[Sequence[Seed]], str], shown: Sequence[Seed], fits: Callable[[str], bool]
) -> tuple[str, int] | None:
    """A prompt that shows as many, from the last on, as there is room for, and how many; None with no room at all."""
    for count in range(len(shown), -1, -1):
        if fits(prompt := build(shown[len(shown) - count :])):
            return prompt, count
    return None


def _line(text: str) -> str:
    return " ".join(text.split())
