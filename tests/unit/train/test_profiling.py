"""The profile of a run: files, tables that add up, parts that are what they are called, and the same losses."""

import csv
import gzip
import json
import logging

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from tests.unit.train.test_diagnose import config
from tests.unit.train.test_watch import figures
from topklm.train import train
from topklm.train.profile_tables import PARTS, REST, TOPK_SCOPE, operations_table, parts_table
from topklm.train.profiling import ProfilingConfig


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_a_profiled_run_has_the_same_losses_and_leaves_its_tables(speeches, tmp_path, checkpointing, caplog):
    settings = {"distributed": {"model_dtype": "fp32", "activation_checkpointing": checkpointing},
                "checkpoint": {"dump": {"every": 0}}, "logging": {"freq": 1}, "steps": 4}  # fmt: skip
    assert train(config(speeches, tmp_path / "plain", **settings)) == 0
    profiling = {"run": True, "profile_warmup": 1, "profile_steps": 2}
    with caplog.at_level(logging.INFO):
        assert train(config(speeches, tmp_path / "run", **settings, profiling=profiling)) == 0
    assert figures(tmp_path / "run", "loss/out") == figures(tmp_path / "plain", "loss/out")
    (directory,) = (tmp_path / "run" / "profiling").iterdir()
    assert directory.name == "0000000003"
    with gzip.open(directory / "trace_00000.json.gz") as file:
        assert any(event["name"] == "topklm::select" for event in json.load(file)["traceEvents"])
    parts = {row["part"]: float(row["ms"]) for row in rows(directory / "parts.csv")}
    # Attention and its like are found in blocks that are computed again, too.
    assert {"optimizer", "loss", "TopK", "attention", "matrix products", "other operations", REST} <= parts.keys()
    whole = parts.pop("step")
    assert min(parts.values()) >= 0
    assert sum(parts.values()) == pytest.approx(whole)
    operations = rows(directory / "operations.csv")
    own = [float(row["ms"]) for row in operations]
    assert own == sorted(own, reverse=True)
    if checkpointing == "none":  # else each is seen once more by what decides about its recomputation
        assert next(float(row["calls"]) for row in operations if row["operation"] == "topklm::select") == 3 * 2
    assert "Where a step's time goes" in caplog.text


def events_of(work):
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found, record_function("ProfilerStep#0"):
        work()
    return found


def shares(work):
    table = parts_table(events_of(work).events(), 1.0, 1, "cpu")
    return {row["part"]: row["ms"] for row in table.rows}


def test_a_backward_operation_belongs_to_the_part_of_its_forward_operation():
    x = torch.randn(400, 400, requires_grad=True)

    def cut(named):
        def work():
            h = x * 2.0
            if named:
                with record_function(TOPK_SCOPE):
                    h = torch.where(h > 0, h, h.exp())
            else:
                h = torch.where(h > 0, h, h.exp())
            forward.append(h)

        return work

    forward = []
    ahead = shares(cut(True))
    assert ahead["TopK"] > 0
    assert "TopK" not in shares(cut(False))
    forward.clear()

    def both():
        cut(True)()
        (forward[0] * 3.0).sum().backward()

    found = events_of(both).events()
    own = {}
    for row in parts_table(found, 1.0, 1, "cpu").rows:
        own[row["part"]] = row["ms"]
    names = {event.name for event in found}
    assert {"WhereBackward0", "ExpBackward0", "MulBackward0"} <= names
    # All that stands below the gradients of what was named, and nothing else, is added to it.
    inside = ("WhereBackward0", "ExpBackward0")

    def within(event):
        while event is not None:
            if any(name in event.name for name in (*inside, TOPK_SCOPE)):
                return True
            event = event.cpu_parent
        return False

    expected = sum(event.self_cpu_time_total for event in found if within(event)) / 1e3
    assert own["TopK"] == pytest.approx(expected)


def test_parts_are_known_by_the_names_of_operations():
    q = torch.randn(1, 2, 16, 8, requires_grad=True)

    def work():
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
        (out.flatten(0, 2) @ torch.randn(8, 8)).sum().backward()

    found = shares(work)
    assert {"attention", "matrix products", "other operations"} <= found.keys()
    assert not {"TopK", "loss", "optimizer"} & found.keys()
    assert [name for name, _ in PARTS][:2] == ["waiting for data", "optimizer"]


def test_operations_are_per_step():
    def work():
        for _ in range(4):
            torch.randn(10).sort()

    table = operations_table(events_of(work).key_averages(), 2, "cpu")
    (row,) = [row for row in table.rows if row["operation"] == "aten::randn"]
    assert row["calls"] == 2
    assert not any(row["operation"].startswith("ProfilerStep") for row in table.rows)


def test_a_process_that_ends_before_says_that_nothing_was_profiled(speeches, tmp_path, caplog):
    run = config(speeches, tmp_path, steps=3, profiling={"run": True}, checkpoint={"dump": {"every": 0}})
    assert train(run) == 0
    assert "no profile was taken: profiling.profile_warmup is 102 and the process made 3 steps" in caplog.text
    assert not (tmp_path / "profiling").exists()


def test_what_cannot_be_is_refused():
    keys = [p.key for p in ProfilingConfig(mem_steps=-1, profile_warmup=-2, trace_folder="").problems()]
    assert keys == ["mem_steps", "profile_warmup", "trace_folder"]
