"""Metrics: one function each; `METRICS` says which there are, and `measure` takes one by its name.

Shares and correlations are fractions, not per cent: BLEU's 0.66 is others' 66.
"""

import functools

from ftjax.metrics.bleu import bleu, bleu_counts, sentence_bleu
from ftjax.metrics.bootstrap import bootstrap_rows, bootstrap_sums, ratio
from ftjax.metrics.chrf import chrf, chrf_counts, sentence_chrf
from ftjax.metrics.cider import cider
from ftjax.metrics.classes import accuracy, class_counts, f1, guesses, macro_f1, matthews
from ftjax.metrics.correlation import moments, pairs, pearson, spearman
from ftjax.metrics.entities import entity_counts, entity_f1
from ftjax.metrics.likelihood import bits_per_byte, perplexity
from ftjax.metrics.meteor import meteor
from ftjax.metrics.metric import Measure, Metric, Rows, mean, of_rows, of_sums, whole
from ftjax.metrics.nist import nist, nist_counts, sentence_nist
from ftjax.metrics.rouge import rouge
from ftjax.metrics.rouge_l import rouge_l
from ftjax.metrics.sql import lf_accuracy
from ftjax.metrics.squad import squad_exact_match, squad_f1
from ftjax.metrics.text import exact_match

cased_bleu_counts = functools.partial(bleu_counts, lowercase=False)
cased_sentence_bleu = functools.partial(sentence_bleu, lowercase=False)

METRICS: dict[str, Metric] = {
    # of classes and numbers
    "accuracy": Metric("higher", "classes", mean(accuracy)),
    "hit@1": Metric("higher", "classes", mean(accuracy)),
    "f1": Metric("higher", "classes", of_rows(guesses, lambda rows: f1(class_counts(rows)))),
    "macro_f1": Metric("higher", "classes", of_rows(guesses, lambda rows: macro_f1(class_counts(rows)))),
    "matthews": Metric("higher", "classes", of_rows(guesses, lambda rows: matthews(class_counts(rows)))),
    "pearson": Metric("higher", "numbers", of_sums(moments, pearson)),
    "spearman": Metric("higher", "numbers", of_rows(pairs, spearman)),
    "entity_f1": Metric("higher", "tags", of_sums(entity_counts, entity_f1)),
    # of log-likelihoods: sums of nats, and tokens or bytes
    "loss": Metric("lower", "sums", of_sums(pairs, ratio)),
    "nll": Metric("lower", "sums", of_sums(pairs, ratio)),
    "token_accuracy": Metric("higher", "sums", of_sums(pairs, ratio)),
    "perplexity": Metric("lower", "sums", of_sums(pairs, perplexity)),
    "bits_per_byte": Metric("lower", "sums", of_sums(pairs, bits_per_byte)),
    # of texts; rows' bleu is smoothed, rows' nist is of the row alone
    "exact_match": Metric("higher", "texts", mean(exact_match)),
    "lf_accuracy": Metric("higher", "texts", mean(lf_accuracy)),
    "squad_exact_match": Metric("higher", "texts", mean(squad_exact_match)),
    "squad_f1": Metric("higher", "texts", mean(squad_f1)),
    "bleu": Metric("higher", "texts", of_sums(bleu_counts, bleu, sentence_bleu)),
    "bleu_cased": Metric("higher", "texts", of_sums(cased_bleu_counts, bleu, cased_sentence_bleu)),
    "nist": Metric("higher", "texts", of_sums(nist_counts, nist, sentence_nist)),
    "rouge_l": Metric("higher", "texts", mean(rouge_l)),  # the E2E challenge's, of several references
    "cider": Metric("higher", "texts", mean(cider)),
    "chrf": Metric("higher", "texts", of_sums(chrf_counts, chrf, sentence_chrf)),
    "meteor": Metric("higher", "texts", whole(meteor)),
    "rouge1": Metric("higher", "texts", mean(functools.partial(rouge, "rouge1"))),
    "rouge2": Metric("higher", "texts", mean(functools.partial(rouge, "rouge2"))),
    "rougeL": Metric("higher", "texts", mean(functools.partial(rouge, "rougeL"))),  # summarisation's
}  # fmt: skip


WRITTEN = tuple(name for name, metric in METRICS.items() if metric.takes == "texts")


def measure(name: str, predictions: Rows, references: Rows) -> Measure:
    """A metric of `METRICS` over rows, which are as its `takes` says: `.value`, `.interval()`, `.rows`.

    Raises:
      ValueError: no rows, or not as many references as predictions.
      UserError: METEOR that cannot run here.
    """
    if not len(predictions) or len(predictions) != len(references):
        raise ValueError(f"{name} of {len(predictions)} predictions and {len(references)} references")
    return METRICS[name].measure(predictions, references)


__all__ = [
    "METRICS", "WRITTEN", "Measure", "Metric", "accuracy", "bits_per_byte", "bleu", "bleu_counts", "bootstrap_rows",
    "bootstrap_sums", "chrf", "chrf_counts", "cider", "class_counts", "entity_counts", "entity_f1", "exact_match", "f1",
    "guesses", "macro_f1", "matthews", "measure", "meteor", "moments", "nist", "nist_counts", "pairs", "pearson",
    "perplexity", "ratio", "rouge", "rouge_l", "sentence_bleu", "sentence_chrf", "sentence_nist", "spearman",
    "squad_exact_match", "squad_f1",
]  # fmt: skip
