"""What is said of a language model's answers."""

from types import SimpleNamespace

import numpy as np

import ftjax.hub
from ftjax.data.encode import encode_lm
from ftjax.data.encoded import Collector
from ftjax.data.tasks import TASKS
from ftjax.data.tasks.task import Text
from ftjax.kinds.base import Write
from ftjax.kinds.lm import KIND


def test_every_metric_of_a_task_is_of_its_parts_too():
    examples = [Text("a", " ab", "seen"), Text("b", " cd", "unseen"), Text("c", " Ef", "unseen")]
    tokenizer = ftjax.hub.tokenizer("nano-gpt")
    encoded = encode_lm(examples, tokenizer, Collector(9))
    fields = SimpleNamespace(task=SimpleNamespace(shots=0))
    setting = SimpleNamespace(task=TASKS["webnlg"], tokenizer=tokenizer, f=fields)
    found = {name: [np.ones(n) for n in encoded.label_counts] for name in ("nll", "correct")}
    measures, _ = KIND.score(setting, examples, encoded, found, Write(lambda asked: ["ab", "cd", "x"], None, True))
    metrics = setting.task.metrics
    assert metrics == ("perplexity", "bleu", "chrf")
    assert {f"{part}/{name}" for part in ("seen", "unseen") for name in metrics} < measures.keys()
    assert measures["seen/chrf"].value == 1 > measures["unseen/chrf"].value > 0 and measures["seen/chrf"].interval()
