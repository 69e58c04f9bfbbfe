"""What a run's folder holds, for tests that compare runs."""

import json

import numpy as np
import orbax.checkpoint as ocp

from ftjax import tree

TIMES = {"train/examples_per_second", "train/tokens_per_second"}


def rows(workdir):
    """metrics.jsonl without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def last_state(workdir):
    """{path: array} of the newest checkpoint."""
    manager = ocp.CheckpointManager((workdir / "checkpoints" / "last").resolve())
    args = ocp.args.Composite(state=ocp.args.StandardRestore())
    found = tree.flatten(manager.restore(manager.latest_step(), args=args)["state"])
    manager.close()
    return {path: np.asarray(x) for path, x in found.items()}
