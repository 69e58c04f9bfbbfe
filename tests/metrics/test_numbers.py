"""Metrics of classes, numbers, tags and likelihoods, against scikit-learn, scipy and seqeval, and by hand."""

import math
import time
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.stats
import seqeval.metrics
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from ftjax import metrics
from ftjax.metrics import measure

ZERO: Any = {"zero_division": 0}
CLASSES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)
VALUES = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30)


@given(CLASSES)
def test_classes(rows):
    guess, gold = map(list, zip(*rows))
    assert measure("accuracy", guess, gold).value == pytest.approx(sklearn.metrics.accuracy_score(gold, guess))
    expected = sklearn.metrics.f1_score(gold, guess, average="macro", **ZERO)
    assert measure("macro_f1", guess, gold).value == pytest.approx(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one class
        expected = sklearn.metrics.matthews_corrcoef(gold, guess)
    assert measure("matthews", guess, gold).value == pytest.approx(expected)
    guess, gold = [x % 2 for x in guess], [x % 2 for x in gold]
    assert measure("f1", guess, gold).value == pytest.approx(sklearn.metrics.f1_score(gold, guess, **ZERO))


def test_classes_by_hand():
    guess, gold = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]  # 2 found of 3 predicted, of 3 there
    assert measure("f1", guess, gold).value == pytest.approx(2 / 3)
    assert measure("matthews", guess, gold).value == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert measure("hit@1", ["Paris", "Rome"], ["Paris", "Bern"]).rows == [1.0, 0.0]
    low, high = measure("f1", guess, gold).interval() or (0, 0)
    assert 0 <= low < 2 / 3 < high <= 1
    with pytest.raises(ValueError, match="2 predictions and 1"):
        measure("f1", [0, 1], [1])


@pytest.mark.parametrize("name", ["macro_f1", "matthews"])
def test_many_classes_take_little_memory_and_time(name):
    gold = np.random.default_rng(0).integers(0, 1000, 20_000)
    guess = np.where(np.random.default_rng(1).random(20_000) < 0.7, gold, 0)
    tracemalloc.start()
    start = time.process_time()
    found = measure(name, guess, gold)
    low, high = found.interval() or (0, 0)
    assert tracemalloc.get_traced_memory()[1] < 4e6  # a row's counts of each class would be 480 MB
    tracemalloc.stop()
    assert time.process_time() - start < 10  # and to draw them 2000 times 10^11 multiplications
    assert low < found.value < high < low + 0.03


@given(VALUES)
def test_correlations(rows):
    x, y = np.array(rows, float).T
    theirs: Any
    for name, theirs in (("pearson", scipy.stats.pearsonr), ("spearman", scipy.stats.spearmanr)):
        ours = measure(name, x, y).value
        if len(set(x)) == 1 or len(set(y)) == 1:
            assert ours == 0
        else:
            assert ours == pytest.approx(theirs(x, y).statistic)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_intervals_of_correlations(name):
    rng = np.random.default_rng(0)
    x = rng.normal(size=300) + 1e6  # far from 0: sums must not lose digits
    y = 0.7 * (x - 1e6) + rng.normal(size=300)
    theirs: Any = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr}[name]
    wanted = scipy.stats.bootstrap(
        (x, y), lambda a, b: theirs(a, b).statistic, paired=True, method="percentile", vectorized=False,
        n_resamples=1000, rng=1,
    ).confidence_interval  # fmt: skip
    assert measure(name, x, y).interval() == pytest.approx(tuple(wanted), abs=0.02)


TAGS = {
    "iob1": (["I-PER", "I-PER", "O", "I-LOC", "B-LOC"], {("PER", 0, 1), ("LOC", 3, 3), ("LOC", 4, 4)}),
    "bio": (["B-PER", "I-PER", "O", "B-LOC", "B-LOC"], {("PER", 0, 1), ("LOC", 3, 3), ("LOC", 4, 4)}),
    "bioes": (["B-PER", "E-PER", "O", "S-LOC", "S-LOC"], {("PER", 0, 1), ("LOC", 3, 3), ("LOC", 4, 4)}),
}


@pytest.mark.parametrize("tags, entities", TAGS.values(), ids=TAGS)
def test_entities(tags, entities):
    gold = [tags, ["O"]]
    assert metrics.entity_counts(gold, gold).tolist() == [[3, 3, 3], [0, 0, 0]]
    guess = [[*tags[:3], "O", "O"], ["O"]]
    assert metrics.entity_counts(guess, gold)[0].tolist() == [1, 1, len(entities)]
    assert measure("entity_f1", guess, gold).value == pytest.approx(2 * 1 / (1 + 3))


@given(
    st.lists(
        st.lists(
            st.tuples(*[st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B", "E-A", "S-B"])] * 2), min_size=1, max_size=8
        )
    )
)
def test_entity_f1_is_seqeval_s(rows):
    guess, gold = [[a for a, _ in row] for row in rows], [[b for _, b in row] for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are none
        wanted = seqeval.metrics.f1_score(gold, guess) if rows else 0.0
    assert metrics.entity_f1(metrics.entity_counts(guess, gold).sum(0)) == pytest.approx(wanted)


def test_tags_and_words():
    with pytest.raises(ValueError, match="row 1: 1 tags of 2 words"):
        metrics.entity_counts([["O"], ["O"]], [["O"], ["O", "O"]])


def test_likelihoods():
    nats, tokens = [math.log(2) * 3, math.log(2) * 5], [1, 3]
    assert measure("loss", nats, tokens).value == pytest.approx(2 * math.log(2))
    assert measure("perplexity", nats, tokens).value == pytest.approx(4)
    assert measure("bits_per_byte", nats, tokens).value == pytest.approx(2)
    low, high = measure("perplexity", nats, tokens).interval() or (0, 0)
    assert (low, high) == pytest.approx((2 ** (5 / 3), 8))
    assert measure("perplexity", [1e9], [1]).value == pytest.approx(math.exp(700))


def test_all_say_which_way_is_better():
    assert {name for name, metric in metrics.METRICS.items() if metric.better == "lower"} == {
        "loss", "nll", "perplexity", "bits_per_byte",
    }  # fmt: skip
    assert {"bleu", "exact_match", "squad_f1"} <= set(metrics.WRITTEN) and "f1" not in metrics.WRITTEN
    with pytest.raises(ValueError, match="0 predictions"):
        measure("accuracy", [], [])
