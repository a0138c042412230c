"""How far a run is, and whether it is the one that is asked for."""

import fcntl
import json

import pytest

from topklm.config import to_dict
from topklm.launch import plan_runs
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
    assert contradictions([run]) == []


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"topk__k": 4}, "topk.k"), ({"steps": 10}, "steps"), ({"topk": None}, "topk.k"), ({"seed": 1}, "seed"),
     ({"optim__lr": 1.0}, "optim.lr"), ({"topk__anneal_ratio": 0.1}, "topk.anneal_ratio"),
     ({"data__sources": {"b": 1.0}}, "data.sources.b"), ({"data__root_dir": "elsewhere"}, "data.root_dir")],
)  # fmt: skip
def test_another_configuration_is_told_key_by_key(run, changes, key):
    save(run, 20, **changes)
    (problem,) = contradictions([run])
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
    assert contradictions([run]) == []


def test_what_training_fills_in_is_no_difference():
    asked = {"data": {"root_dir": "d", "global_batch_size": None}, "model": {"vocab_size": -1}, "init_from": None}
    stored = {"data": {"root_dir": "d", "global_batch_size": 8}, "model": {"vocab_size": 512}, "init_from": None}
    assert differing(asked, stored) == {}
    asked["data"]["global_batch_size"] = 4
    assert differing(asked, stored) == {"data.global_batch_size": (4, 8)}


def test_a_key_that_is_younger_than_the_checkpoint_has_its_default(run):
    save(run, 20)
    path = run.config.checkpoint_dir / "0000000020" / "params.json"
    params = json.loads(path.read_text())
    del params["topk"]["anneal_form"]
    path.write_text(json.dumps(params))
    assert contradictions([run]) == []


def test_the_last_step_of_the_metrics(tmp_path):
    assert last_step(tmp_path) == 0
    lines = [json.dumps({"global_step": step, "loss/out": 1.0}) for step in range(1000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"glob')
    assert last_step(tmp_path) == 999
