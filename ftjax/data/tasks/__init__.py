"""The tasks, one file each."""

from ftjax.data.tasks import (
    agnews,
    chat,
    choice,
    classification,
    cola,
    conll2003,
    copa,
    dart,
    e2e,
    instructions,
    lama,
    lm,
    mixture,
    mnli,
    mrpc,
    multi30k,
    qa,
    qnli,
    qqp,
    regression,
    reverse,
    rte,
    sick,
    similarity,
    squad,
    sst2,
    stsb,
    subj,
    summarisation,
    tagging,
    text,
    trec,
    ud,
    vowels,
    webnlg,
    wikisql,
    wnut17,
)
from ftjax.data.tasks.task import Labelled, Split, Task, Text

TASKS: dict[str, Task] = {
    module.__name__.rpartition(".")[2]: module.TASK
    for module in (
        reverse, vowels, e2e, webnlg, dart, wikisql, multi30k, summarisation, lm, instructions, chat, text, sst2, mrpc,
        cola, qqp, mnli, qnli, rte, sick, agnews, trec, subj, classification, stsb, regression, similarity, conll2003,
        wnut17, ud, tagging, squad, qa, copa, choice, lama, mixture,
    )
}  # fmt: skip

__all__ = ["TASKS", "Labelled", "Split", "Task", "Text"]
