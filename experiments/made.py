"""Made-up data for scale nano, where no text ships with the project: people to speak of, restaurants to describe."""

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ftjax.files import write_rows, write_text

# nouns that nano-bert has read in novels; the first half of each is for training, the other for testing
MEN = (
    "king", "brother", "uncle", "man", "prince", "husband", "captain", "duke", "monk", "squire", "lad", "butler",
    "father", "son", "boy", "lord", "gentleman", "sir", "master", "priest", "bishop", "fellow", "knight", "waiter",
)  # fmt: skip
WOMEN = (
    "queen", "sister", "aunt", "woman", "princess", "wife", "maid", "nurse", "nun", "bride", "lass", "duchess",
    "mother", "daughter", "girl", "lady", "madam", "mistress", "widow", "niece", "countess", "maiden", "witch",
    "governess",
)  # fmt: skip
SENTENCES = (
    "the old {} came into the room and sat down.", "i saw the {} at the window.", "the {} was very tired that night.",
    "nobody had heard the {} speak.", "the young {} looked at the letter.", "we waited for the {} at the gate.",
    "the {} went slowly up the stairs.", "everyone knew the {} in the village.",
)  # fmt: skip
THINGS = (
    "house", "door", "book", "letter", "room", "hat", "table", "ship", "boat", "river", "garden", "church",
    "window", "road", "tree", "fire", "box", "ring", "coat", "chair", "bed", "village", "city", "stone",
)  # fmt: skip
MANY = (
    "children", "men", "women", "people", "servants", "friends", "horses", "boys", "girls", "soldiers", "ladies",
    "eyes", "gentlemen", "dogs", "brothers", "sisters", "trees", "books", "letters", "houses", "doors", "flowers",
    "stars", "birds",
)  # fmt: skip
WORDS = (  # among which a pronoun is sought
    "he", "she", "it", "they", "i", "you", "we", "who", "this", "that", "there", "one", "all", "what", "which", "his",
    "her", "them", "him", "me",
)  # fmt: skip
AFTER = ("then {he} went away.", "{he} did not say {his} name.", "{his} face was pale.", "what had {he} done?")
PEOPLE = {"man": MEN, "woman": WOMEN}
DID = (
    "came in", "sat down", "went away", "looked at the letter", "stood at the window", "waited at the gate",
    "walked to the village", "opened the door", "took a book", "lay in bed", "ran to the river", "wrote a letter",
)  # fmt: skip
LATER = (
    *AFTER, "then {he} {did}.", "{he} {did} and {also}.", "nobody knew {his} name.", "{he} lost {his} {thing}.",
    "{his} {thing} was in the {other}.", "they saw {him} when {he} {did}.", "{he} {did} with {his} {thing}.",
)  # fmt: skip
PRONOUNS = {"man": {"he": "he", "his": "his", "him": "him"}, "woman": {"he": "she", "his": "her", "him": "her"}}

VENUES = ("pub", "restaurant", "coffee shop")
FOODS = ("English", "Italian", "French", "Indian", "Chinese", "Japanese")
AREAS = {"riverside": ("by the river", "near the river"), "city centre": ("in the city centre", "in the centre")}
PRICES = {
    "cheap": ("cheap", "low-priced"), "moderate": ("moderately priced", "neither cheap nor dear"),
    "high": ("expensive", "high-priced"),
}  # fmt: skip
FIRST = ("Blue", "Golden", "Green", "Old", "Red", "Silent", "Silver", "White")
SECOND = ("Anchor", "Bridge", "Castle", "Garden", "Lion", "Mill", "Spice", "Swan")


def files(name: str) -> dict[str, Any]:
    """Fields of a task that reads what a preparation wrote."""
    return {f"task.files.{split}": f"{{prepared}}/{name}-{split}.jsonl" for split in ("train", "validation")}


RESTAURANTS, RESTAURANT_TEXTS = files("restaurants"), files("restaurant-texts")
TEXT_FILES, TALES = files("texts"), files("tales")
DESCRIPTIONS = {  # of the runs that learn to describe them
    **RESTAURANTS, "task.max_length": 256, "steps": 225, "eval_every": 225, "batch_size": 8, "generate.examples": 100,
}  # fmt: skip
PEOPLE_FILES = {**files("people"), "task.classes": tuple(PEOPLE)}
NOUN_FILES = {
    "task.files.train": "{prepared}/nouns-train.jsonl", "task.files.validation": "{prepared}/nouns-test.jsonl",
    "task.classes": tuple(PEOPLE),
}  # fmt: skip


def people(part: str = "all") -> list[dict[str, Any]]:
    """A sentence about each noun of `part` (train, test, all) in each wording: `text`, `label` (man, woman)."""
    half = {"train": slice(None, 12), "test": slice(12, None), "all": slice(None)}[part]
    return [
        {"text": sentence.format(noun), "label": label}
        for label, nouns in PEOPLE.items()
        for noun in nouns[half]
        for sentence in SENTENCES
    ]


def spoken_of(seed: int) -> list[str]:
    """Each noun's sentences, shuffled, each followed by one that says he or she."""
    rng = random.Random(seed)
    found = []
    for row in people():
        found.append(f"{row['text']} {rng.choice(AFTER).format(**PRONOUNS[row['label']])}")
    rng.shuffle(found)
    return found


def tales(seed: int) -> Iterator[str]:
    """A sentence about somebody and two that say what he or she did, in many wordings, without end."""
    rng = random.Random(seed)
    while True:
        kind = rng.choice(list(PEOPLE))
        (did, also), (thing, other) = rng.sample(DID, 2), rng.sample(THINGS, 2)
        parts = {**PRONOUNS[kind], "did": did, "also": also, "thing": thing, "other": other}
        told = [text.format(**parts) for text in rng.sample(LATER, 2)]
        yield " ".join([rng.choice(SENTENCES).format(rng.choice(PEOPLE[kind])), *told])


def restaurants(seed: int) -> Iterator[dict[str, Any]]:
    """Attributes and a sentence that tells them, in the form of E2E's rows: `context`, `completion`, without end."""
    rng = random.Random(seed)
    while True:
        name = f"{rng.choice(FIRST)} {rng.choice(SECOND)}"
        venue, food, area, price = (rng.choice(list(x)) for x in (VENUES, FOODS, AREAS, PRICES))
        near, family = f"{rng.choice(FIRST)} {rng.choice(SECOND)}", rng.random() < 0.5
        told = [("name", name), ("Type", venue), ("food", food)]
        told += [("price", price)] if rng.random() < 0.7 else []
        told += [("area", area)] if rng.random() < 0.7 else []
        told += [("near", near)] if rng.random() < 0.5 else []
        told += [("family friendly", "yes" if family else "no")] if rng.random() < 0.5 else []
        has = dict(told)
        text = f"{name} is a {venue} that serves {food} food"
        text += f" {rng.choice(AREAS[area])}" if "area" in has else ""
        text += f", near {near}" if "near" in has else ""
        text += f". It is {rng.choice(PRICES[price])}" if "price" in has else ""
        if "family friendly" in has:
            text += rng.choice((". Children are welcome", ". Families like it") if family else (". No children",))
        yield {"context": " | ".join(f"{key} : {value}" for key, value in told), "completion": f"{text}."}


def write_restaurants(folder: Path) -> None:
    """4,000 of them to train on and 100 others, and their sentences alone."""
    made = restaurants(seed=0)
    for split, count in (("train", 4000), ("validation", 100)):
        rows = list(islice(made, count))
        write_rows(folder / f"restaurants-{split}.jsonl", rows)
        write_rows(folder / f"restaurant-texts-{split}.jsonl", [{"text": row["completion"]} for row in rows])


def write_people(folder: Path) -> None:
    """Half of the sentences about all nouns to learn from, half to be tested on; those about some nouns, and about
    others; and texts, of which the last tenth is held out."""
    rows, texts = people(), spoken_of(seed=0)
    random.Random(0).shuffle(rows)
    held = len(texts) // 10
    for name, part in {
        "people-train": rows[::2], "people-validation": rows[1::2], "nouns-train": people("train"),
        "nouns-test": people("test"), "texts-train": [{"text": text} for text in texts[held:]],
        "texts-validation": [{"text": text} for text in texts[:held]],
    }.items():  # fmt: skip
        write_rows(folder / f"{name}.jsonl", part)


def write_tales(folder: Path) -> None:
    """8,000 of them to train on and 400 others."""
    made = tales(seed=0)
    for split, count in (("train", 8000), ("validation", 400)):
        write_rows(folder / f"tales-{split}.jsonl", [{"text": text} for text in islice(made, count)])


def write_pronouns(folder: Path) -> None:
    """Facts of one relation, from a noun to its pronoun: half of the nouns to learn from, half to be tested on."""
    kinds = {"he": MEN, "she": WOMEN, "it": THINGS, "they": MANY}
    for split, half in (("train", slice(None, 12)), ("validation", slice(12, None))):
        rows = [{"sub_label": noun, "obj_label": word} for word, nouns in kinds.items() for noun in nouns[half]]
        write_rows(folder / f"pronouns-{split}.jsonl", rows)
    write_text(folder / "words.txt", "\n".join(WORDS) + "\n")
