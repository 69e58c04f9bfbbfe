"""Self-Instruct (Wang et al. 2023): from some tasks that people wrote, a model writes many more, with examples."""

from ftjax.selfinstruct.filters import Pool
from ftjax.selfinstruct.pipeline import Written, self_instruct
from ftjax.selfinstruct.seeds import Seed, read_seeds

__all__ = ["Pool", "Seed", "Written", "read_seeds", "self_instruct"]
