"""Features of a frozen body, computed once: what a head-only run trains on."""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ftjax.data.loader import Loader
from ftjax.parallel.mesh import place_batch, rows_here, rows_multiple
from ftjax.train.build import Data, Parts


def with_features(parts: Parts, data: Data, variables: Any, mesh: Mesh) -> Data:
    """The split with batches of `features`, `labels`, `example`; every example goes through the body once."""
    features = parts.objective.features
    assert features is not None
    body = jax.jit(
        lambda variables, batch: (batch["example"], features(variables, batch)),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    order = Loader(
        data.encoded, "buckets", 64, shuffle=False, window=50, max_length=max(s[1] for s in data.loader.shapes),
        here=partial(rows_here, mesh), multiple=rows_multiple(mesh),
    )  # fmt: skip
    table = np.zeros((len(data.encoded), parts.model.cfg.hidden_size), np.float32)
    for batch in order:
        example, out = (np.asarray(x) for x in body(variables, place_batch(batch, mesh)))
        table[example[example >= 0]] = out[example >= 0]

    def look_up(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        example = batch["example"]
        return {"features": table[np.maximum(example, 0)], "labels": batch["labels"], "example": example}

    return data._replace(batches=data.loader.map(look_up))
