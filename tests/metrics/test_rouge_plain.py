"""ROUGE-L without stems against rouge-score."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from ftjax.metrics.rouge import plain_rouge_l, plain_words

SCORER = RougeScorer(["rougeL"], use_stemmer=False)


def score(a, b):
    return plain_rouge_l(plain_words(a), plain_words(b))


@given(*[st.lists(st.sampled_from(["The", "cats", "cat", "isn't", "naïve", "3rd", "--", "runs", "running"]))] * 2)
def test_as_rouge_score(a, b):
    a, b = " ".join(a), " ".join(b)
    assert score(a, b) == pytest.approx(SCORER.score(a, b)["rougeL"].fmeasure)


def test_by_hand():
    assert score("Write a short poem.", "write a poem about cats") == pytest.approx(2 * 3 / 9)
    assert score("runs", "running") == 0 and score("", "a") == score("!", "!") == 0
