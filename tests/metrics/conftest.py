"""The published scores of the E2E challenge, where their files are."""

import csv
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def _folder(name):
    if not (SHARED / name).exists():
        pytest.skip(f"shared data set {name} is not here")
    return SHARED / name


@pytest.fixture(scope="session")
def example():
    """(predictions, references) of ten rows, with values of the challenge's scripts."""
    folder = _folder("e2e_metrics")
    blocks = (folder / "devel-conc.txt").read_text().strip().split("\n\n")
    return (folder / "baseline-output.txt").read_text().strip().split("\n"), [block.split("\n") for block in blocks]


@pytest.fixture(scope="session", params=["Primary-Sys1", "Sys2-Model1"])
def segments(request):
    """(predictions, references, {metric: each row's published value, to four digits}) of a system's outputs."""
    references: dict[str, list[str]] = {}
    with (_folder("e2e") / "testset_w_refs.csv").open() as file:
        for row in csv.DictReader(file):
            references.setdefault(row["mr"], []).append(row["ref"])
    with (_folder("e2e_metrics") / "segscores" / f"{request.param}.segscores.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    names = ("BLEU", "sentBLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")
    scores = {name: [float(row[name]) for row in rows] for name in names}
    return [row["sys_out"] for row in rows], [references[row["src"]] for row in rows], scores
