"""LoRA table 5: which matrices to adapt with the same number of parameters?

Hu et al. 2021, https://arxiv.org/abs/2106.09685, table 5: 18 million parameters of GPT-3 in one attention matrix at
rank 8, in two at rank 4, or in all four at rank 2; validation accuracy on WikiSQL (+- 0.5) and MNLI (+- 0.1). Without
its weights the shape can be reproduced: Wq or Wk alone is worst, and several matrices at a lower rank do at least as
well as any one.

    ftjax sweep experiments/lora_targets.py --scale=nano --workdir=runs/lora_targets --jobs=2
    ftjax table --workdir=runs/lora_targets --output=experiments/results/lora_targets.md

nano: the shipped nano-gpt counts vowels, a scaled-down analogue; always answering the commonest count scores 43%.
14 runs of 300 steps, two seeds, 5 minutes on 2 cores: found, one matrix 85 to 88, two
89 and 91, all four 90, Wq the worst. small: 14 runs, one seed, 22 minutes on 2 cores: on SST-2 78.9 (Wq) to 81.0 (all
four), on E2E (BLEU) 0 to 15 (all four). Data and recipes are those of lora_rank.py, at scale paper too.
"""

from experiments.cells import Cells
from experiments.lora_rank import for_tasks
from experiments.lora_rank import prepare as prepare
from ftjax.sweep import Trial

TARGETS = {
    "Wq r=8": (("attn/q",), 8),
    "Wk r=8": (("attn/k",), 8),
    "Wv r=8": (("attn/v",), 8),
    "Wo r=8": (("attn/o",), 8),
    "Wq, Wk r=4": (("attn/q", "attn/k"), 4),
    "Wq, Wv r=4": (("attn/q", "attn/v"), 4),
    "all four r=2": (("attention",), 2),
}
ROW = "equal budget"

percent = True
paper = {
    f"{data}, GPT-3 (paper)": {(ROW, column): value for column, value in zip(TARGETS, values)}
    for data, values in {
        "WikiSQL": (70.4, 70.0, 73.0, 73.2, 71.4, 73.7, 73.7),
        "MNLI": (91.0, 90.8, 91.0, 91.3, 91.3, 91.3, 91.7),
    }.items()
}


def trials(scale: str) -> list[Trial]:
    """Columns are the adapted matrices and their rank, as in the paper."""
    cells: Cells = {
        (ROW, column): ("method=lora", {"method.targets": targets, "method.rank": rank})
        for column, (targets, rank) in TARGETS.items()
    }
    return for_tasks(scale, cells)
