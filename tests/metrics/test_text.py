"""Metrics of texts: by hand, and against sacrebleu and rouge-score."""

import math

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from ftjax import metrics
from ftjax.metrics import measure
from ftjax.metrics.rouge_l import common_words
from ftjax.metrics.squad import normalise

PREDICTIONS = ["The cat sat on the mat.", "A dog, barking at Night", "", "It costs 20-25 pounds in the city centre."]
REFERENCES = [
    ["The cat is sitting on the mat.", "On the mat sat the cat.", "the cat sat on the mat"],
    ["A dog barks at night."],
    ["Something.", "Anything else?"],
    ["It costs 20-25 pounds in the centre.", "The price is 20-25 pounds in the city centre."],
]
WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


@pytest.mark.parametrize("name, cased", [("bleu", False), ("bleu_cased", True)])
def test_bleu(name, cased):
    columns = [[row[i] if i < len(row) else None for row in REFERENCES] for i in range(3)]
    scorer = sacrebleu.BLEU(lowercase=not cased, tokenize="13a", smooth_method="none")
    found = measure(name, PREDICTIONS, REFERENCES)
    assert found.value == pytest.approx(scorer.corpus_score(PREDICTIONS, columns).score / 100)  # type: ignore[arg-type]
    first = [scorer.corpus_score(PREDICTIONS[:1], [[x] for x in REFERENCES[0]]).score / 100, 0.0]
    counts = metrics.bleu_counts(PREDICTIONS, REFERENCES, lowercase=not cased)
    assert metrics.bleu(counts[[0, 2]]) == pytest.approx(first) and found.rows == pytest.approx(metrics.bleu(counts, 1))
    low, high = found.interval() or (0, 0)
    assert 0 <= low < found.value < high <= 1


def test_smoothed_bleu_by_hand():
    # 4 of 5 words, 2 of 4 pairs, 1 of 3 and 0 of 2; a reference of 6
    value = metrics.sentence_bleu(["a b x c d"], [["a b c d e f"]])
    assert metrics.bleu_counts(["a b x c d"], [["a b c d e f"]])[0].tolist() == [4, 2, 0, 0, 5, 4, 3, 2, 5, 6]
    assert value == [pytest.approx((5 / 6 * 3 / 5 * 1 / 4 * 1 / 3) ** 0.25 * math.exp(1 - 6 / 5))]
    assert metrics.sentence_bleu(["a b x c d"], [["a b c d e f"]], smoothing=0) == [0.0]


def test_nist_by_hand():
    # references have 7 words: a b c d, a b x; hits of one prediction: a, b, c and a b, b c, a b c
    info = {"a": 7 / 2, "b": 7 / 2, "c": 7, "a b": 2 / 2, "b c": 2 / 1, "a b c": 2 / 1}
    found = {n: sum(math.log2(x) for gram, x in info.items() if len(gram.split()) == n) for n in (1, 2, 3)}
    length = math.exp(-math.log(2) / math.log(1.5) ** 2 * math.log(3 / 3.5) ** 2)
    expected = length * (found[1] / 3 + found[2] / 2 + found[3] / 1)
    for name in ("value", "rows"):
        assert getattr(measure("nist", ["A b c"], [["a b c d", "a b x"]]), name) == pytest.approx(
            expected if name == "value" else [expected]
        )
    assert metrics.sentence_nist([""], [["a"]]) == [0.0]
    # another row's references change what is surprising, and not the row by itself
    more = measure("nist", ["a b c", "a"], [["a b c d", "a b x"], ["a"]])
    assert more.rows and more.rows[0] == pytest.approx(expected) and more.value != pytest.approx(expected)


@given(WORDS, WORDS)
def test_common_words(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    assert common_words(a, b) == table[-1, -1]


def test_rouge_l_takes_the_best_of_each():
    # precision 3/3 by the long reference, recall 2/2 by the short one
    assert metrics.rouge_l(["a b c"], [["a x b x c", "a b"]]) == [pytest.approx(1.0)]
    precision, recall = 2 / 4, 2 / 3
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert metrics.rouge_l(["A b, x y."], [["a b z"]]) == [pytest.approx(expected)]
    assert metrics.rouge_l(["", "a", "?"], [["a"], ["b"], ["!"]]) == [0.0, 0.0, 0.0]


def test_cider_by_hand():
    # only single words, of which each is in one of two rows: weights are ln 2 times counts
    assert metrics.cider(["a a", "b"], [["a"], ["c"]])[1] == 0
    length = math.exp(-1 / 72)  # 1 pair of words against none
    assert metrics.cider(["a a", "b"], [["a"], ["b"]]) == pytest.approx([10 / 4 * (1 * 1) / (2 * 1) * length, 10 / 4])
    perfect = metrics.cider(["a b c d", "e f g h"], [["a b c d"], ["e f g h", "e f g h"]])
    assert perfect == pytest.approx([10, 10])
    assert metrics.cider(["a b c d"], [["a b c d"]]) == [0.0]
    assert metrics.cider(["", "x"], [["a"], [""]]) == [0.0, 0.0]


def test_chrf():
    found = measure("chrf", PREDICTIONS, REFERENCES)
    low, high = found.interval() or (0, 0)
    assert found.rows and 0 <= low < found.value < high <= 1
    for row, prediction, references in zip(found.rows, PREDICTIONS, REFERENCES):
        assert row == pytest.approx(sacrebleu.sentence_chrf(prediction, references).score / 100)
    columns = [[row[i] if i < len(row) else None for row in REFERENCES] for i in range(3)]
    wanted = sacrebleu.CHRF().corpus_score(PREDICTIONS, columns).score / 100  # type: ignore[arg-type]
    assert found.value == pytest.approx(wanted)
    # a: 2 of 3 and of 2; aa, aab: 1 and 0 of 2 and 1, 1 and 0 of the reference's; longer ones are not there
    assert metrics.chrf_counts([" aab "], [["aa"]])[0].tolist() == [
        3, 2, 0, 0, 0, 0,
        2, 1, 0, 0, 0, 0,
        2, 1, 0, 0, 0, 0,
    ]  # fmt: skip
    precision, recall = (2 / 3 + 1 / 2) / 2, 1
    f2 = 5 * precision * recall / (4 * precision + recall)
    assert metrics.sentence_chrf([" aab "], [["aa"]]) == [pytest.approx(f2)]


@given(
    st.lists(
        st.tuples(st.text("ab ,", max_size=9), st.lists(st.text("ab ,", max_size=9), min_size=1, max_size=3)),
        min_size=1,
        max_size=4,
    )
)
def test_chrf_of_any_texts(rows):
    predictions, references = [one for one, _ in rows], [golds for _, golds in rows]
    columns = [[golds[i] if i < len(golds) else None for golds in references] for i in range(3)]
    wanted = sacrebleu.CHRF().corpus_score(predictions, columns).score / 100  # type: ignore[arg-type]
    assert measure("chrf", predictions, references).value == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge(name):
    scorer = RougeScorer([name], use_stemmer=True)
    wanted = [
        max(scorer.score(reference, prediction)[name].fmeasure for reference in references)
        for prediction, references in zip(PREDICTIONS, REFERENCES)
    ]
    found = measure(name, PREDICTIONS, REFERENCES)
    assert found.rows == pytest.approx(wanted) and found.value == pytest.approx(np.mean(wanted)) and found.value > 0.2


def test_exact_match():
    assert metrics.exact_match([" a ", "b", "c"], ["a", "a", ["b", " c"]]) == [1.0, 0.0, 1.0]


def test_squad():
    assert normalise("The  Cat's (a) hat!") == "cats hat"
    predictions = ["the Cat", "a big cat sat", "", "dog", "", "the"]
    answers = [["cat!"], ["cat", "big dog sat here"], [], [], ["cat"], ["a", "!"]]
    assert metrics.squad_exact_match(predictions, answers) == [1, 0, 1, 0, 0, 1]
    wanted = [1, 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4), 1, 0, 0, 1]  # big, sat of three and four words
    assert metrics.squad_f1(predictions, answers) == pytest.approx(wanted)


@pytest.mark.parametrize("name", [name for name in metrics.WRITTEN if name != "meteor"])
def test_texts_with_nothing_in_them(name):
    found = measure(name, ["", "???", "a"], [[""], ["", "..."], ["b c d e f"]])
    assert found.rows is not None and len(found.rows) == 3
    assert all(math.isfinite(x) for x in (found.value, *found.rows, *(found.interval() or ())))
