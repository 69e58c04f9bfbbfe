"""Runs of one program: equal to the runs alone."""

import json
import os
import signal

import numpy as np
import pytest
from run_files import last_state, rows

from ftjax.cli.main import main
from ftjax.errors import Preempted, RunError
from ftjax.train import program
from ftjax.train.checkpoint import read_best
from ftjax.train.loop import train, train_together

NOISE = "attn/k/bias"  # has no gradient but rounding, of which Adam makes whole steps


def same_run(mine, theirs, tolerance=1e-5):
    """Two workdirs hold the same run to rounding: rows, the newest state, the best leaves, the result."""
    for a, b in zip(rows(mine), rows(theirs), strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance)
    for a, b in ((last_state(mine), last_state(theirs)), (read_best(mine), read_best(theirs))):
        assert a.keys() == b.keys()
        for path in a.keys() - {path for path in a if path.endswith(NOISE)}:
            np.testing.assert_allclose(a[path], b[path], rtol=tolerance, atol=tolerance, err_msg=path)
    a, b = (json.loads((x / "result.json").read_text()) for x in (mine, theirs))
    assert a["metrics"] == pytest.approx(b["metrics"], rel=tolerance)
    for name in ("steps", "config_hash", "trainable_parameters", "total_parameters", "seed"):
        assert a[name] == b[name]
    assert a["best"]["step"] == b["best"]["step"]


ONE = {"model.layers": (0,)}  # a layer is less to compile, and no other program
COMMON = {**ONE, "steps": 50, "eval_every": 25, "log_every": 10, "optimizer.warmup": 0.1}
RATES = (1e-3, 5e-3)
TRIALS = {
    "lora": [{"method.rank": rank, "optimizer.learning_rate": rate, "seed": seed, "method.alpha": 4.0 * rank,
              "method.dropout": 0.1 * rank, "optimizer.weight_decay": 0.1 * i}
             for i, (rank, rate, seed) in enumerate(zip((1, 2, 4, 2), RATES * 2, (0, 0, 1, 1)), start=1)],
    "full": [{"optimizer.learning_rate": rate, "optimizer.weight_decay": rate * 10} for rate in RATES],
}  # fmt: skip


@pytest.mark.parametrize("method", TRIALS)
def test_together_is_alone(configure, tmp_path, method):
    asked = [configure("text", method, **COMMON, **fields) for fields in TRIALS[method]]
    folders = [tmp_path / str(i) for i in range(len(asked))]
    results = train_together([(*one, folder) for one, folder in zip(asked, folders)])
    assert {result["together"] for result in results} == {len(asked)}
    # Not all, each is a compile: of LoRA one that is padded, and that of the largest rank.
    for one, folder in zip(asked[1:3], folders[1:3]):
        assert train(*one, tmp_path / f"alone{folder.name}")["together"] == 1
        same_run(folder, tmp_path / f"alone{folder.name}")


def test_side_by_side_is_alone_too(configure, tmp_path, monkeypatch):
    """As on an accelerator, where one executable takes several runs; one of them stops early."""
    monkeypatch.setattr(program, "TOKENS", 1 << 20)
    rates = {"optimizer.learning_rate": 0.0, "early_stopping": 2}, {"early_stopping": 2}
    fields = {**ONE, "steps": 12, "eval_every": 2, "log_every": 2, "method.dropout": 0.1}
    for orders in (0, 1):  # the same and another order of the data
        asked = [configure("text", "lora", **fields, **rate, seed=orders * i, **{"method.rank": 1 + i})
                 for i, rate in enumerate(rates)]  # fmt: skip
        folders = [tmp_path / f"{orders}{name}" for name in "ab"]
        made = train_together([(*one, folder) for one, folder in zip(asked, folders)])
        for i, (one, folder) in enumerate(zip(asked, folders)):
            alone = tmp_path / f"alone{i}{orders * i}"  # the first is the same both times
            assert train(*one, alone)["steps"] == made[i]["steps"]
            same_run(folder, alone)
        assert [result["steps"] for result in made] == [6, 12]


PAIR = [{**ONE, "optimizer.learning_rate": rate, "steps": 12, "eval_every": 3, "log_every": 2} for rate in RATES]


@pytest.fixture(scope="module")
def pair(configure, tmp_path_factory):
    """Two runs alone: ([(config, default)], their folders)."""
    asked = [configure("text", "lora", **fields) for fields in PAIR]
    folders = [tmp_path_factory.mktemp("pair") / "run" for _ in asked]
    for one, folder in zip(asked, folders):
        train(*one, folder)
    return asked, folders


@pytest.mark.parametrize("ahead", [False, True], ids=["both", "one ahead"])
def test_a_terminated_group_goes_on(pair, tmp_path, monkeypatch, ahead):
    """Also where one of it went on alone, so that they stand at different steps."""
    asked, alone = pair
    mine = [(*one, tmp_path / name) for one, name in zip(asked, "ab")]
    plain, calls = program.Together.__call__, []

    def until_terminated(*args):
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(program.Together, "__call__", until_terminated)
        with pytest.raises(Preempted, match="step 7"):
            train_together(mine)
    assert [(folder / "result.json").exists() for *_, folder in mine] == [False, False]
    if ahead:
        train(*mine[0])
    made = train_together(mine)
    assert [result["together"] for result in made] == ([1, 1] if ahead else [2, 2])
    for (*_, folder), theirs in zip(mine, alone):
        same_run(folder, theirs)


def test_a_loss_that_is_not_finite_ends_one_of_them(pair, configure, tmp_path):
    asked, alone = pair
    bad = configure("text", "lora", **PAIR[0] | {"optimizer.learning_rate": 1e30, "optimizer.clip": 1.0})
    with pytest.raises(RunError, match=r"not finite in a step up to .*/bad/checkpoints"):
        train_together([(*bad, tmp_path / "bad"), (*asked[1], tmp_path / "good")])
    same_run(tmp_path / "good", alone[1])
    assert not (tmp_path / "bad" / "result.json").exists()
    assert all(np.isfinite(x).all() for x in last_state(tmp_path / "bad").values())


def test_the_command_line_trains_what_a_file_lists(pair, files, model, tmp_path):
    runs = [
        [f"--config=configs/default.py:model={model},task=text,method=lora", "--config.batch_size=8",
         "--config.optimizer.warmup=0.0", f"--config.task.data={files / 'text.txt'}", "--config.task.max_length=32",
         *(f"--config.{name}={value}" for name, value in fields.items()), f"--workdir={tmp_path / name}"]
        for fields, name in zip(PAIR, "ab")
    ]  # fmt: skip
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    assert main(["train", f"--together={tmp_path / 'runs.json'}"]) == 0
    for name, theirs in zip("ab", pair[1]):
        same_run(tmp_path / name, theirs)
    assert main(["train", f"--together={tmp_path / 'none.json'}"]) == 2
