"""Prompts laid once for several examples: every example can be read back, and nothing sees what it should not."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftjax.data.encoded import IGNORED, Encoded
from ftjax.data.loader import Loader
from ftjax.data.prompts import families, prompt_lengths, units
from ftjax.nn.attention import visible


def made(texts):
    """Examples of (prompt, completion)."""
    tokens = [np.asarray([*prompt, *completion], np.int32) for prompt, completion in texts]
    labels = [np.asarray([IGNORED] * len(prompt) + completion, np.int32) for prompt, completion in texts]
    offsets = np.cumsum([0, *map(len, tokens)])
    return Encoded("next", np.concatenate(tokens), offsets, np.concatenate(labels), np.arange(len(texts)), 0)


def read_back(batch):
    """(tokens before each label, the label) of every labelled slot, by what its query sees."""
    at, of = batch["position_ids"], batch["segment_ids"]
    seen = np.asarray(visible(at, of, at, of, True, prompts=batch["prompt_ids"]))
    for row in range(len(batch["labels"])):
        for at, label, whose in zip(*(batch[x][row] for x in ("label_positions", "labels", "example"))):
            if label != IGNORED:
                keys = np.flatnonzero(seen[row, 0, at])
                assert (batch["position_ids"][row][keys] == np.arange(len(keys))).all()
                yield int(whose), tuple(batch["input_ids"][row][keys].tolist()), int(label)


PROMPTS = st.sampled_from([[7], [7, 8], [9, 8, 7], [5] * 9, [5] * 8 + [6]])
TEXTS = st.lists(st.tuples(PROMPTS, st.lists(st.integers(10, 30), min_size=1, max_size=6)), min_size=1, max_size=24)


@given(TEXTS, st.integers(2, 5), st.sampled_from(["left", "right"]), st.booleans(), st.integers(1, 8))
def test_what_each_label_sees_is_its_own_text(texts, share, side, shuffle, batch_size):
    encoded = made(texts)
    loader = Loader(encoded, "packed", batch_size, shuffle=shuffle, pad_side=side, shared_prompts=share, prefetch=0)
    plan = loader.plan(1)
    batches = [loader.assemble(planned) for planned in plan]
    assert sorted(i for planned in plan for row in planned.rows for i in row) == list(range(len(texts)))
    expected = Counter(
        (i, tuple([*prompt, *completion][: len(prompt) + n]), completion[n])
        for i, (prompt, completion) in enumerate(texts)
        for n in range(len(completion))
    )
    assert Counter(found for batch in batches for found in read_back(batch)) == expected
    assert sum(batch["segment_ids"].max(1).sum() for batch in batches) == len(texts)  # examples are counted by it
    slots = sum((batch["segment_ids"] != 0).sum() for batch in batches)
    alone = Loader(encoded, "packed", batch_size, shuffle=False, prefetch=0)
    assert slots <= sum((alone.assemble(planned)["segment_ids"] != 0).sum() for planned in alone.plan(0))
    slots = sum((loader.assemble(planned)["segment_ids"] != 0).sum() for planned in loader.plan(0))
    assert loader.fill == pytest.approx(slots / sum(np.prod(batch["input_ids"].shape) for batch in batches))


def test_a_prompt_stands_once():
    encoded = made([([5, 6, 7], [20, 21]), ([5, 6, 7], [30, 31, 32]), ([5, 6, 8], [20, 21])])
    [batch] = Loader(encoded, "packed", 3, shuffle=False, shared_prompts=2, row_length=12, prefetch=0)
    assert batch["input_ids"][0].tolist() == [5, 6, 7, 20, 30, 31, 5, 6, 8, 20, 0, 0]
    assert batch["segment_ids"][0].tolist() == [-1, -1, -1, 1, 2, 2, 3, 3, 3, 3, 0, 0]
    assert batch["prompt_ids"][0].tolist() == [0, 0, 0, -1, -1, -1, 0, 0, 0, 0, 0, 0]
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 3, 4, 0, 1, 2, 3, 0, 0]
    assert batch["label_positions"][0][:7].tolist() == [2, 3, 2, 4, 5, 8, 9]
    assert batch["labels"][0][:7].tolist() == [20, 21, 30, 31, 32, 20, 21]


def test_who_lies_together():
    encoded = made([([5, 6], [1, 2]), ([7], [1, 2]), ([5, 6], [3, 4, 5]), ([5, 6], [9]), ([5, 6], [8, 8])])
    prompts = prompt_lengths(encoded)
    assert prompts.tolist() == [2, 1, 2, 0, 2]  # one token after its prompt: nothing to lay apart
    family, lengths = families(encoded, prompts), encoded.lengths - 1
    assert family.tolist() == [0, 1, 0, 2, 0]
    assert units(family, lengths, prompts, 2) == [[0, 2], [1], [3], [4]]
    assert units(family, lengths, prompts, 9) == [[0, 2, 4], [1], [3]]
    assert units(family, lengths, prompts, 9, room=5) == [[0, 2], [1], [3], [4]]


def test_where_there_are_no_prompts_to_share():
    with pytest.raises(ValueError, match="packed rows"):
        Loader(made([([5], [6, 7])]), "buckets", 1, shared_prompts=2)
