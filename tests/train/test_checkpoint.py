import errno
import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from ftjax.errors import RunError, UserError
from ftjax.files import Growing
from ftjax.train.checkpoint import Checkpoints, claim, read_best, read_config
from ftjax.train.log import Log, keep_rows


def state(value):
    return {"train": {"w": jnp.full((4,), value)}, "step": jnp.int32(value)}


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of steps 1, 2 and 3, the best of them 2."""
    claim(tmp_path, ConfigDict({"seed": 0}))
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"step": step}, best=step < 3)
    checkpoints.close()
    return tmp_path


def truncate(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_two_newest_states_and_the_two_newest_best_leaves_are_kept(saved):
    steps = lambda kind: sorted(int(p.name) for p in (saved / "checkpoints" / kind).iterdir())  # noqa: E731
    assert steps("last") == [2, 3] and steps("best") == [1, 2]
    found, progress = Checkpoints(saved).restore(state(0))
    assert progress == {"step": 3} and found["step"] == 3
    np.testing.assert_array_equal(read_best(saved)["w"], np.full(4, 2.0))


def test_a_truncated_newest_checkpoint_is_named_the_one_before_used_and_its_step_saved_anew(saved, caplog):
    truncate(saved / "checkpoints" / "last" / "3")
    checkpoints = Checkpoints(saved)
    found, progress = checkpoints.restore(state(0))
    assert progress == {"step": 2} and found["step"] == 2
    assert "checkpoint 3 is damaged" in caplog.text
    checkpoints.save(3, state(3), {"step": 3}, best=False)
    checkpoints.close()
    assert Checkpoints(saved).restore(state(0))[1] == {"step": 3}


def test_a_checkpoint_that_cannot_be_read_now_is_not_damaged(saved, monkeypatch):
    restore, wrapped = ocp.CheckpointManager.restore, Exception("Encountered error while reading array index")
    wrapped.__cause__ = ValueError("PERMISSION_DENIED: Error opening a file")  # as orbax has it of an array's file
    for error in (
        wrapped,
        OSError(errno.EIO, "Input/output error"),
        OSError("Forbidden: the bucket"),
        MemoryError(),
        ValueError("RESOURCE_EXHAUSTED: Error reading a file: Too many open files [os_error_code='24']"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    ):

        def fails_of_the_newest(manager, step, *, args, error=error):
            if step == 3:
                raise error
            return restore(manager, step, args=args)

        with monkeypatch.context() as patch, pytest.raises(RunError, match=r"last: checkpoint 3 cannot be read now \("):
            patch.setattr(ocp.CheckpointManager, "restore", fails_of_the_newest)
            Checkpoints(saved).restore(state(0))
    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"best: checkpoint 2 cannot be read now \(PERM"):
        patch.setattr(ocp.CheckpointManager, "restore", lambda *_, **__: exec("raise error", {"error": wrapped}))
        read_best(saved)
    assert Checkpoints(saved).restore(state(0))[1] == {"step": 3}


def test_all_truncated_is_an_error_and_none_is_none(saved, tmp_path):
    truncate(saved / "checkpoints" / "last")
    with pytest.raises(UserError, match=r"no checkpoint of .*last can be read \(steps \[3, 2\]\)"):
        Checkpoints(saved).restore(state(0))
    assert Checkpoints(tmp_path / "new").restore(state(0)) is None


def test_a_state_that_is_donated_after_the_call_is_saved_as_it_was(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    now, checkpoints = {"train": {"w": jnp.zeros((1 << 20,))}, "step": jnp.int32(0)}, Checkpoints(tmp_path)
    now = step(now)
    checkpoints.save(1, now, {}, best=False)
    for _ in range(5):
        now = step(now)
    checkpoints.close()
    found, _ = Checkpoints(tmp_path).restore(now)
    assert found["step"] == 1 and (found["train"]["w"] == 1).all()


def test_a_folder_belongs_to_one_config(tmp_path):
    claim(tmp_path, ConfigDict({"seed": 0, "method": {"rank": 8, "targets": ("q", "v")}}))
    claim(tmp_path, ConfigDict({"seed": 0, "method": {"rank": 8, "targets": ("q", "v")}}))
    with pytest.raises(UserError, match=r"method.rank \(8 there, 4 now\), seed \(0 there, 1 now\); take another"):
        claim(tmp_path, ConfigDict({"seed": 1, "method": {"rank": 4, "targets": ("q", "v")}}))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not JSON"):
        read_config(tmp_path)
    with pytest.raises(UserError, match="is no run"):
        read_best(tmp_path / "none")


def test_rows_past_a_step_and_half_rows_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n}) + "\n" for n in (1, 2, 3)) + '{"step": 2, "lo')
    keep_rows(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_folder_is_one_run_of_wandb(tmp_path, monkeypatch):
    """Whatever its config: another folder's run of the same one is another."""
    ids = []
    init = lambda *, id, **_: ids.append(id) or SimpleNamespace(finish=lambda: None)  # noqa: E731
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for name, config in (("a", {}), ("a", {"mesh": 2}), ("b", {})):
        (tmp_path / name).mkdir(exist_ok=True)
        Log(Growing(tmp_path / name), 0, 1, "project", config, name).close()
    assert ids[0] == ids[1] != ids[2] and len(ids[0]) == 16
