"""The numbers of the E2E challenge's scripts, to their last digit."""

import pytest

from ftjax import metrics
from ftjax.metrics import measure
from ftjax.metrics.meteor import why_absent


def test_example(example):
    wanted = {"bleu": 0.7202928, "nist": 7.7888876, "rouge_l": 0.7909526, "cider": 2.3039431}
    for name, value in wanted.items():
        assert measure(name, *example).value == pytest.approx(value, abs=6e-8), name


def test_rows(segments):
    predictions, references, published = segments
    ours = {
        "BLEU": metrics.sentence_bleu(predictions, references, smoothing=0),
        "sentBLEU": measure("bleu", predictions, references).rows,
        "NIST": measure("nist", predictions, references).rows,
        "ROUGE_L": measure("rouge_l", predictions, references).rows,
        "CIDEr": measure("cider", predictions, references).rows,
    }
    for name, values in ours.items():
        # without a match of four words theirs is not quite 0
        assert values == pytest.approx(published[name], abs=1.01e-4 if name == "BLEU" else 5.1e-5), name


@pytest.mark.skipif(why_absent() is not None, reason=f"no METEOR: {why_absent()}")
def test_meteor(example, segments):
    assert measure("meteor", *example).value == pytest.approx(0.4800717, abs=6e-8)
    predictions, references, published = segments
    assert measure("meteor", predictions, references).rows == pytest.approx(published["METEOR"], abs=5.1e-5)
