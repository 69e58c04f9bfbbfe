"""Every task on the real files, where there are some: rows, classes, the first example."""

import pytest

from configs import task as configs
from ftjax.data.bad import BadRows
from ftjax.data.tasks import TASKS, Labelled, Text
from ftjax.data.tasks.task import Chat, Choices, Cloze, Scored, Tagged

SPLITS = ("train", "validation", "test")
PAIR = "A group of kids is playing in a yard and an old man is standing in the background"
LAMA = {"relation": "P17", "relations_file": "../LAMA_relations.jsonl", "vocab_file": "../common_vocab_cased.txt"}
CASES = {  # task: folder, fields, rows of the splits, classes, what the first example begins with
    "sst2": ("sst2", {}, (67349, 872, 1821), 2, Labelled("hide new secretions from the parental units", 0)),
    "mrpc": ("mrpc", {}, (3576, 500, 1725), 2, Labelled(
        'Amrozi accused his brother, whom he called "the witness", of deliberately distorting his evidence.', 1,
        'Referring to him as only "the witness", Amrozi accused his brother of deliberately distorting his evidence.',
    )),
    "sick": ("sick_nli", {}, (4500, 500, 4927), 3, Labelled(
        PAIR, 1, "A group of boys in a yard is playing and a man is standing in the background"
    )),
    "rte": ("fewglue_32dev/RTE", {}, (32, 277), 2, None),
    "stsb": ("stsb", {}, (5749, 1500, 1379), 0, Scored("A plane is taking off.", 5.0, "An air plane is taking off.")),
    "conll2003": ("conll2003", {}, (14041, 3250, 3453), 9, Tagged(
        ("EU", "rejects", "German", "call", "to", "boycott", "British", "lamb", "."),
        ("B-ORG", "O", "B-MISC", "O", "O", "O", "B-MISC", "O", "O"),
    )),
    "ud": ("ud_ewt", {}, (12544, 2001, 2077), 17, None),
    "copa": ("fewglue_32dev/COPA", {}, (32, 100), 0, Choices(
        "The chandelier shattered on the floor because",
        (" the chandelier dropped from the ceiling.", " the chandelier's lights flickered on and off."), 0,
    )),
    "e2e": ("e2e", {}, (42061, 4672, 4693), 0, None),
    "webnlg": ("webnlg", {}, (17979, 2253, 4922), 0, Text(
        'Aarhus_Airport : cityServed : "Aarhus, Denmark"<e>', " The Aarhus is the airport of Aarhus, Denmark.<e>",
        "seen",
    )),
    "wikisql": ("wikisql", {}, (56355, 8421, 15878), 0, Text(
        "Tell me what the notes are for South Australia\nSQL:",
        ' SELECT NOTES FROM table WHERE CURRENT_SLOGAN = "SOUTH AUSTRALIA"<e>',
    )),
    "multi30k": ("multi30k", {}, (29000, 1014, 1000), 0, Text(
        "Two young, White males are outside near many bushes.\nTranslation:",
        " Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.<e>",
    )),
    "lama": ("lama_trex/pararel_trex_lms_vocab", LAMA, (729, 91, 92), 21018, Cloze(
        "Sommariva del Bosco is located in {mask} .", "Italy"
    )),
    "text": ("novels", {}, (66, 8), 0, None),
    "vowels": ("names", {}, (25626, 3203, 3204), 11, None),
}  # fmt: skip


@pytest.mark.parametrize("task", CASES)
def test_real_files(shared, task):
    folder, fields, counts, classes, first = CASES[task]
    folder = shared(folder)
    cfg = configs.get(task)
    cfg.data = str(folder)
    cfg.update({name: str(folder / value) if name.endswith("_file") else value for name, value in fields.items()})
    bad = BadRows()
    loaded = [TASKS[task].load(cfg, split, bad) for split in SPLITS[: len(counts)]]
    assert len(bad.messages) == 2 * (task == "webnlg")  # two published texts are empty
    assert tuple(map(len, loaded)) == counts
    assert len(TASKS[task].classes(cfg)) == classes
    examples = [TASKS[task].example(row, "<e>") for row in loaded[0]]
    assert first is None or examples[0] == first
    if isinstance(examples[0], Labelled):
        assert {example.label for example in examples} <= set(range(classes))
    if isinstance(examples[0], Tagged):
        assert {tag for example in examples for tag in example.tags} == set(TASKS[task].classes(cfg))


def test_entities_of_conll_2003(shared):
    cfg = configs.get("conll2003")
    cfg.data = str(shared("conll2003"))
    counts = []
    for split in SPLITS:
        rows = TASKS["conll2003"].load(cfg, split, BadRows())
        tags = [tag for row in rows for tag in row["tags"]]
        counts.append([sum(tag == f"B-{kind}" for tag in tags) for kind in ("LOC", "MISC", "ORG", "PER")])
    assert counts == [[7140, 3438, 6321, 6600], [1837, 922, 1341, 1842], [1668, 702, 1661, 1617]]  # of the shared task


def test_unseen_categories_of_webnlg(shared):
    cfg = configs.get("webnlg")
    cfg.data, cfg.categories = str(shared("webnlg")), ("unseen",)
    assert len(TASKS["webnlg"].load(cfg, "test", BadRows())) == 2431
    cfg.files.train, cfg.categories = f"{cfg.data}/lora_webnlg2017_dev.json", ()
    assert len(TASKS["webnlg"].load(cfg, "train", BadRows())) == 2258


@pytest.mark.parametrize(
    ("task", "name", "count", "skipped"),
    [
        ("instructions", "alpaca_seed_tasks.jsonl", 175, 0),
        ("instructions", "selfinstruct_user_oriented_instructions.jsonl", 252, 0),
        ("instructions", "raschka_instruction-data.json", 1100, 0),
        ("instructions", "llamafactory_alpaca_en_demo.json", 999, 0),
        ("chat", "llamafactory_kto_en_demo.json", 300, 0),
        ("chat", "llamafactory_dpo_en_demo.json", 106, 194),  # most end with the user's turn
    ],
)
def test_instructions_and_chat(shared, task, name, count, skipped):
    cfg, bad = configs.get(task), BadRows("skip")
    cfg.files.train = str(shared("instructions") / name)
    rows = TASKS[task].load(cfg, "train", bad)
    assert (len(rows), len(bad.messages)) == (count, skipped)
    assert all(isinstance(TASKS[task].example(row, ""), Chat if task == "chat" else Text) for row in rows)
