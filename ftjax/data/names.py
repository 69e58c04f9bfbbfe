"""Plausible given names, made from a seed."""

import random

from ftjax.errors import UserError

LARGEST = 100_000  # the grammar holds more, but rejection slows down near its end

# Strings are alphabets and tuples lists of choices; repeats are weights.
_ONSETS = "bcddfghjkklllmmmnnprrrssttvwz"
_CLUSTERS = ("br", "ch", "cl", "dr", "fr", "gr", "kr", "ph", "sh", "st", "th", "tr")
_VOWELS = (*"aaaaeeeiiioou", "ai", "ea", "ei", "ia", "ie")
_CODAS = "llmnnrrst"
_ENDINGS = (*"aaaoyy", "ah", "an", "as", "ay", "el", "en", "en", "er", "ette", "ia", "ie", "in", "is", "on")


def _name(rng: random.Random) -> str:
    name = "" if rng.random() < 0.15 else rng.choice(_CLUSTERS if rng.random() < 0.2 else _ONSETS)
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        name += rng.choice(_VOWELS)
        if rng.random() < 0.25:
            name += rng.choice(_CODAS)
        name += rng.choice(_ONSETS)
    return name + rng.choice(_ENDINGS)


def names(n: int, seed: int) -> list[str]:
    """`n` distinct names of 3 to 9 letters a-z; names(n, seed) begins names(m, seed) for n <= m.

    Python's Mersenne Twister gives the same names on every platform.

    Raises:
        UserError: more names than the grammar gives.
    """
    if n > LARGEST:
        raise UserError(f"task: {n} generated names asked for; the splits' sizes sum to at most {LARGEST}")
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < n:
        name = _name(rng)
        if 3 <= len(name) <= 9:
            found[name] = None
    return list(found)
