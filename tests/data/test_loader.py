import dataclasses
import functools
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftjax.data import layout as plans
from ftjax.data.encode import encode_classification, encode_lm, encode_text_chunks
from ftjax.data.encoded import IGNORED, Collector, Encoded
from ftjax.data.loader import Loader
from ftjax.data.tasks.task import Labelled, Text


def made_lm(lengths, seed=0):
    """Examples of the lengths, a random part of each being labels."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 50, sum(lengths)).astype(np.int32)
    labels = [np.r_[[IGNORED] * int(k), tokens[:n][int(k) :]] for n in lengths for k in [rng.integers(1, n)]]
    offsets = np.cumsum([0, *lengths])
    for i, part in enumerate(labels):
        own = tokens[offsets[i] : offsets[i + 1]]
        part[part != IGNORED] = own[part != IGNORED]
    return Encoded("next", tokens, offsets, np.concatenate(labels).astype(np.int32), np.arange(len(lengths)), 3)


def made_classes(lengths):
    rows = np.arange(len(lengths))
    tokens, labels = np.arange(sum(lengths)), (rows % 3).astype(np.int32)
    return Encoded("row", tokens, np.cumsum([0, *lengths]), labels, rows * 2, 0)


def segments(batch):
    """(tokens, (position, label) ...) of each segment, checking what every batch promises."""
    assert all(array.dtype == np.int32 for array in batch.values())
    for row in range(len(batch["input_ids"])):
        ids, kept = batch["segment_ids"][row], batch["labels"][row] != IGNORED
        assert not batch["label_positions"][row][~kept].any()
        assert (batch["input_ids"][row][ids == 0] == 3).all() and (batch["position_ids"][row][ids == 0] == 0).all()
        for segment in range(1, ids.max() + 1):
            slots = np.flatnonzero(ids == segment)
            assert (np.diff(slots) == 1).all()
            assert (batch["position_ids"][row][slots] == np.arange(len(slots))).all()
            own = kept & np.isin(batch["label_positions"][row], slots)
            labels = zip(batch["label_positions"][row][own] - slots[0], batch["labels"][row][own], strict=True)
            assert len(set(batch["example"][row][own])) <= 1 and (batch["example"][row][~kept] == -1).all()
            yield tuple(batch["input_ids"][row][slots].tolist()), tuple((int(p), int(t)) for p, t in labels)


def expected(encoded):
    for tokens, labels in map(encoded.__getitem__, range(len(encoded))):
        places = np.flatnonzero(labels != IGNORED)
        yield tuple(tokens[:-1].tolist()), tuple((int(p) - 1, int(labels[p])) for p in places)


def epoch(loader, number=0):
    return [loader.assemble(planned) for planned in loader.plan(number)]


LENGTHS = st.lists(st.integers(2, 90), min_size=1, max_size=30)


@given(LENGTHS, st.integers(1, 6), st.sampled_from(["left", "right"]), st.booleans(), st.integers(0, 3))
def test_packed_and_bucketed_batches_carry_the_same_examples(lengths, batch_size, side, shuffle, number):
    encoded = made_lm(lengths)
    for layout in ("packed", "buckets"):
        loader = Loader(encoded, layout, batch_size, shuffle=shuffle, pad_side=side)
        batches = epoch(loader, number)
        assert Counter(s for batch in batches for s in segments(batch)) == Counter(expected(encoded))
        for batch in batches:
            assert (*batch["input_ids"].shape, batch["labels"].shape[1], 0) in loader.shapes
            real = batch["segment_ids"] > 0
            edge = real[:, ::-1] if side == "left" else real
            assert (np.diff(edge.astype(int), axis=1) <= 0).all()  # padding on one side only
        assert 0 < loader.fill <= 1 and loader.steps_per_epoch == len(loader.plan(0))
    assert len(set(loader.shapes)) == len(loader.shapes)


@given(LENGTHS, st.integers(1, 5), st.integers(0, 12), st.integers(0, 9), st.sampled_from(["packed", "buckets"]))
def test_resume_gives_the_same_stream(lengths, batch_size, before, seed, layout):
    loader = Loader(made_lm(lengths), layout, batch_size, seed, prefetch=0)
    stream = iter(loader)
    for _ in range(before):
        next(stream)
    state = json.loads(json.dumps(stream.get_state()))
    after = [next(stream) for _ in range(4)]
    again = iter(Loader(made_lm(lengths), layout, batch_size, seed, prefetch=0))
    next(again)
    again.set_state(state)
    assert again.get_state() == state
    for one, other in zip(after, [next(again) for _ in range(4)], strict=True):
        assert one.keys() == other.keys() and all((one[k] == other[k]).all() for k in one)


@pytest.mark.parametrize("before", [0, 1, 7, 8, 20])
def test_prefetching_changes_neither_stream_nor_state(before):
    encoded = made_lm([5, 9, 30, 12] * 8)
    plain, ahead = (iter(Loader(encoded, "buckets", 4, prefetch=n)) for n in (0, 3))
    for _ in range(before):
        assert (next(plain)["input_ids"] == next(ahead)["input_ids"]).all()
    assert plain.get_state() == ahead.get_state()
    state = ahead.get_state()
    following = next(ahead)["input_ids"]
    ahead.set_state(state)
    assert (next(ahead)["input_ids"] == following).all()
    ahead.close()


def test_epochs_differ_by_seed_and_number_and_end_only_in_evaluation():
    encoded = made_classes([4] * 40)
    loader, other = Loader(encoded, "buckets", 4), Loader(encoded, "buckets", 4, seed=1)
    assert Loader(encoded, "buckets", 4).plan(0) == loader.plan(0) != loader.plan(1) != other.plan(1)
    assert loader.steps_per_epoch == 10
    stream = list(itertools.islice(loader, 25))
    for start in (0, 10):
        seen = np.concatenate([batch["example"] for batch in stream[start : start + 10]])
        assert sorted(seen) == list(range(40))
    evaluation = iter(Loader(encoded, "buckets", 4, shuffle=False))
    assert np.concatenate([batch["example"] for batch in evaluation]).tolist() == list(range(40))
    with pytest.raises(StopIteration):
        next(evaluation)


def test_a_plan_is_made_once(monkeypatch):
    made, pack = [], plans.pack_rows
    monkeypatch.setattr(plans, "pack_rows", lambda *args: made.append(args) or pack(*args))
    encoded = made_lm([5, 9, 30, 12] * 8)
    loader = Loader(encoded, "packed", 4, prefetch=0)
    list(itertools.islice(loader, loader.steps_per_epoch + 1))
    assert loader.fill and len(made) == 2  # of two epochs
    loader = Loader(encoded, "packed", 4, shuffle=False, prefetch=0)
    assert [batch["input_ids"].tolist() for batch in loader] == [batch["input_ids"].tolist() for batch in loader]
    assert len(made) == 3


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=20),
    st.integers(1, 6),
    st.sampled_from(["left", "right"]),
)
def test_classification_batches(lengths, batch_size, side):
    encoded = made_classes(lengths)
    loader = Loader(encoded, "buckets", batch_size, shuffle=False, pad_side=side, prefetch=0)
    seen = []
    for batch in loader:
        assert (*batch["input_ids"].shape, 0, 0) in loader.shapes and "token_type_ids" not in batch
        for row, example in enumerate(batch["example"]):
            real = batch["segment_ids"][row] == 1
            if example < 0:
                assert batch["labels"][row] == IGNORED and not real.any()
                continue
            seen.append(example)
            assert (batch["input_ids"][row][real] == encoded[example].tokens).all()
            assert batch["labels"][row] == encoded.labels[example]
            assert (batch["position_ids"][row][real] == np.arange(real.sum())).all()
            assert real[-1 if side == "left" else 0]
    assert seen == list(range(len(lengths)))


@pytest.mark.parametrize("layout", ["packed", "buckets"])
def test_processes_assemble_their_own_rows_of_one_plan(layout):
    encoded = made_lm([5, 9, 30, 12, 7] * 6)
    whole = epoch(Loader(encoded, layout, 5, seed=3, multiple=4))
    assert {len(batch["labels"]) % 4 for batch in whole} == {0}
    for count in (2, 4):
        share = lambda rows, i, count=count: slice(rows * i // count, rows * (i + 1) // count)  # noqa: E731
        parts = [
            epoch(Loader(encoded, layout, 5, seed=3, multiple=4, here=functools.partial(share, i=i)))
            for i in range(count)
        ]
        for batch, *mine in zip(whole, *parts, strict=True):
            for name, x in batch.items():
                np.testing.assert_array_equal(np.concatenate([one[name] for one in mine]), x)


@pytest.mark.parametrize("number", [np.int32, np.float32])
def test_rows_are_filled_with_nothing(number):
    encoded = dataclasses.replace(made_classes([2, 2, 2]), labels=np.ones(3, number))
    [plain], [padded] = ([*Loader(encoded, "buckets", 3, shuffle=False, multiple=m)] for m in (3, 4))
    assert padded["input_ids"][3].tolist() == [0] * 8 and padded["example"].tolist() == [0, 1, 2, -1]
    assert padded["labels"][3] == IGNORED if number is np.int32 else np.isnan(padded["labels"][3])
    assert padded["labels"].dtype == number and all(np.array_equal(padded[name][:3], x) for name, x in plain.items())


def test_from_texts_to_batches(decoder, encoder):
    encoded = encode_lm([Text("a:", " b<eos>"), Text("bad:", " dab<eos>")], decoder, Collector(20))
    [batch] = Loader(encoded, "packed", 2, shuffle=False)
    row = batch["input_ids"][0]
    assert decoder.decode(row[batch["segment_ids"][0] == 2]) == "bad: dab"
    kept = batch["labels"][0] != IGNORED
    assert decoder.decode(batch["labels"][0][kept], skip_special_tokens=False) == " b<eos> dab<eos>"
    assert decoder.decode(row[batch["label_positions"][0][0]]) == ":"
    assert (batch["labels"][0] == decoder.eos_token_id).sum() == 2
    pairs = encode_classification([Labelled("a", 0, "b"), Labelled("abc", 1, "c")], encoder, ("x", "y"), Collector(20))
    [batch] = Loader(pairs, "buckets", 3, shuffle=False)
    expect = encoder("abc", "c", return_token_type_ids=True)["token_type_ids"]
    assert batch["token_type_ids"][1][: len(expect)].tolist() == expect
    assert batch["labels"].tolist() == [0, 1, IGNORED]


@pytest.mark.parametrize("layout", ["packed", "buckets"])
def test_chunks_fill_their_rows(decoder, layout):
    """With labels for no more places than there are tokens."""
    encoded = encode_text_chunks([Text("", "ab cde " * 100)], decoder, Collector(64))
    loader = Loader(encoded, layout, 2, max_length=64, buckets=1, shuffle=False)
    first = next(iter(loader))
    assert loader.shapes == ((2, 64, 64, 0),) and (first["labels"] != IGNORED).all()
    assert (first["labels"][:, :-1] == first["input_ids"][:, 1:]).all()


def test_what_a_loader_refuses():
    with pytest.raises(ValueError, match="use packed or buckets"):
        Loader(made_lm([3]), "rows", 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="use layout 'buckets'"):
        Loader(made_classes([3]), "packed", 2)
    with pytest.raises(ValueError, match="9 tokens cannot sit"):
        Loader(made_lm([10]), "packed", 2, max_length=8)
