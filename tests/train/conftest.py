"""Configs of an optimizer, as the shipped ones."""

import pytest

from configs import optimizer


@pytest.fixture(scope="session")
def optimizer_config():
    """optimizer_config(name, field=value, ...): the defaults but for a constant rate without warm-up and clipping."""

    def get(name="adamw", **fields):
        cfg = optimizer.get(name)
        cfg.update(dict(schedule="constant", warmup=0.0, clip=0.0) | fields)
        return cfg

    return get
