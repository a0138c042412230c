"""How far a run is, and whether it is the one that is asked for."""

import fcntl
import json

import pytest

from topklm.config import to_dict
from topklm.errors import ConfigError
from topklm.launch import plan_runs
from topklm.launch.listing import listing
from topklm.launch.outcome import report
from topklm.launch.state import OUTCOME, contradictions, differing, last_step, state_of


@pytest.fixture
def run(make_sweep):
    return plan_runs(make_sweep())[0]


def save(run, step, **changes):
    place = run.config.checkpoint_dir / f"{step:010d}"
    place.mkdir(parents=True)
    params = to_dict(run.config)
    params["model"]["max_seqlen"] = 32  # as training fills them in
    params["topk"]["anneal_steps"] = 10
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            params[section][name] = value
        else:
            params[section] = value
    (place / "params.json").write_text(json.dumps(params))


def test_new_partial_finished(run):
    assert state_of(run).state == "new"
    save(run, 10)
    assert (state_of(run).state, state_of(run).step) == ("partial", 10)
    save(run, 20)
    assert (state_of(run).state, state_of(run).step) == ("finished", 20)


def test_a_checkpoint_that_is_not_complete_is_none(run):
    (run.config.checkpoint_dir / "0000000020.tmp").mkdir(parents=True)
    assert state_of(run).state == "new"


def test_failed_until_it_is_tried_again(run):
    save(run, 10)
    (run.dump_dir / OUTCOME).write_text('{"state": "failed", "reason": "exit code 4"}')
    assert (state_of(run).state, state_of(run).reason) == ("failed", "exit code 4")
    (run.dump_dir / OUTCOME).write_text('{"state": "stopped", "reason": "exit code 75"}')
    assert state_of(run).state == "partial"
    (run.dump_dir / OUTCOME).write_text("{")
    assert state_of(run).state == "partial"


def test_busy_while_a_process_holds_the_lock(run):
    run.dump_dir.mkdir(parents=True)
    with (run.dump_dir / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert state_of(run).state == "busy"
    assert state_of(run).state == "new"


def test_two_that_look_at_once_do_not_take_each_other_for_a_training(run):
    run.dump_dir.mkdir(parents=True)
    (run.dump_dir / ".lock").touch()
    with (run.dump_dir / ".lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert state_of(run).state == "new"


def test_the_same_configuration_contradicts_nothing(run):
    save(run, 20)
    assert contradictions([run], 1) == []


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"topk__k": 4}, "topk.k"), ({"steps": 10}, "steps"), ({"topk": None}, "topk.k"), ({"seed": 1}, "seed"),
     ({"optim__lr": 1.0}, "optim.lr"), ({"topk__anneal_ratio": 0.1}, "topk.anneal_ratio"),
     ({"data__sources": {"b": 1.0}}, "data.sources.b"), ({"data__root_dir": "elsewhere"}, "data.root_dir")],
)  # fmt: skip
def test_another_configuration_is_told_key_by_key(run, changes, key):
    save(run, 20, **changes)
    (problem,) = contradictions([run], 1)
    assert problem.key == run.name
    assert f"{key} is " in problem.message
    assert "is finished" in problem.message or changes == {"steps": 10}


@pytest.mark.parametrize(
    "changes",
    [{"name": "x"}, {"dump_dir": "x"}, {"logging__freq": 3}, {"data__batch_size": 1}, {"data__load_async": False},
     {"checkpoint__dump": {"every": 3, "keep": 1}}],
)  # fmt: skip
def test_what_changes_no_result_is_no_contradiction(run, changes):
    save(run, 20, **changes)
    assert contradictions([run], 1) == []


def test_what_training_fills_in_is_no_difference():
    asked = {"data": {"root_dir": "d", "add_bos": None}, "model": {"vocab_size": -1}, "init_from": None}
    stored = {"data": {"root_dir": "d", "add_bos": True}, "model": {"vocab_size": 512}, "init_from": None}
    assert differing(asked, stored) == {}
    asked["data"]["add_bos"] = False
    assert differing(asked, stored) == {"data.add_bos": (False, True)}


def test_the_batch_that_follows_from_the_ranks_is_compared(make_sweep):
    """Else the runs that are finished and those that are not would be trained with different batches."""
    (run,) = plan_runs(make_sweep(set={"data.global_batch_size": None, "grad_acc_steps": 3}))
    save(run, 20)
    path = run.config.checkpoint_dir / "0000000020" / "params.json"
    params = json.loads(path.read_text())
    params["data"]["global_batch_size"] = 2 * 3 * 4
    path.write_text(json.dumps(params))
    assert contradictions([run], 4) == []
    (problem,) = contradictions([run], 2)
    assert "data.global_batch_size is 12 now and was 24" in problem.message


def test_a_key_that_is_younger_than_the_checkpoint_has_its_default(run):
    save(run, 20)
    path = run.config.checkpoint_dir / "0000000020" / "params.json"
    params = json.loads(path.read_text())
    del params["topk"]["anneal_form"]
    path.write_text(json.dumps(params))
    assert contradictions([run], 1) == []


def test_the_last_step_of_the_metrics(tmp_path):
    assert last_step(tmp_path) == 0
    lines = [json.dumps({"global_step": step, "loss/out": 1.0}) for step in range(1000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"glob')
    assert last_step(tmp_path) == 999


def test_figures_of_another_configuration_are_not_reported_as_this_ones(make_sweep, tmp_path):
    config = make_sweep(grid={"optim.lr": [0.1]})
    (run,) = plan_runs(config)
    save(run, 20, optim__lr=1.0)
    with pytest.raises(ConfigError, match=r"optim.lr is 0.1 now and was 1.0"):
        report(config)
    assert "optim.lr is 0.1 now and was 1.0" in str(listing(config)[-1])
