"""Which checkpoints stay when some were written by a sick run."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from topklm.checkpoint import CheckpointConfig, CheckpointStore, SaveEvery, list_checkpoints
from topklm.checkpoint.store import was_sick

schedules = st.builds(SaveEvery, every=st.integers(0, 4), keep=st.integers(-1, 4))


@given(schedules, schedules, st.lists(st.booleans(), min_size=1, max_size=40), st.sets(st.integers(1, 40)))
def test_no_sick_checkpoint_takes_the_place_of_a_healthy_one(dump, evaluation, sickness, others):
    """Over a whole life of saving and retiring: the newest healthy ones of each schedule are those ever written."""
    config = CheckpointConfig(dump=dump, eval=evaluation)
    sick = {step for step, is_sick in enumerate(sickness, 1) if is_sick}
    saved: list[int] = []
    written: list[int] = []
    for step in range(1, len(sickness) + 1):
        if not (config.saves_at(step) or step in others):
            continue
        written.append(step)
        saved.append(step)
        retired = config.retired(saved, sick)
        assert step not in retired
        assert all(config.saves_at(step) for step in retired)
        saved = [step for step in saved if step not in retired]
        for schedule in (dump, evaluation):
            ever = [step for step in written if schedule.includes(step)]
            newest = [step for step in ever if step not in sick]
            assert set(newest[-schedule.keep :] if schedule.keep > 0 else ever) <= set(saved)
            assert set(ever[-1:]) <= set(saved)  # to resume from
    bound = sum(s.keep + 1 if s.keep > 0 else len(written) for s in (dump, evaluation))
    assert len([step for step in saved if config.saves_at(step)]) <= bound


@given(schedules, schedules, st.integers(1, 40))
def test_without_sickness_the_rule_is_the_plain_one(dump, evaluation, last):
    config = CheckpointConfig(dump=dump, eval=evaluation)
    steps = list(range(1, last + 1))
    kept = set()
    for schedule in (dump, evaluation):
        of_schedule = [step for step in steps if schedule.includes(step)]
        kept |= set(of_schedule if schedule.keep <= 0 else of_schedule[-schedule.keep :])
    assert set(steps) - set(config.retired(steps)) == kept | {step for step in steps if not config.saves_at(step)}


def test_a_run_that_diverges_for_long_keeps_its_last_healthy_checkpoints(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    (tmp_path / "tokenizer").mkdir()
    config = CheckpointConfig(dump=SaveEvery(every=1, keep=2), eval=SaveEvery(every=0))
    store = CheckpointStore(tmp_path / "checkpoints", config, 0, None)

    def save(step, sick):
        model(torch.ones(2)).sum().backward()
        optimizer.step()
        store.save(step, model, optimizer, {"step": step, "sick": sick}, {}, tmp_path / "tokenizer")

    def there():
        return [int(path.name) for path in list_checkpoints(store.directory)]

    for step in range(1, 4):
        save(step, None)
    for step in range(4, 12):
        save(step, "the loss is above its threshold")
        assert there() == [2, 3, step]
    save(12, None)
    assert there() == [3, 12]


def test_broken_ones_that_the_run_passed_over_take_no_good_ones_place(tmp_path):
    """Resumed at step 2, since 5 and 6 are broken: they count only once the run has written its own."""
    config = CheckpointConfig(dump=SaveEvery(every=1, keep=2), eval=SaveEvery(every=0))
    for step in (1, 2, 5, 6):
        (tmp_path / f"{step:010d}").mkdir()
        (tmp_path / f"{step:010d}" / "train_state_00000.json").write_text("{}")
    CheckpointStore(tmp_path, config, 0, None)._retire(2)
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == [1, 2, 5, 6]


@pytest.mark.parametrize("state", ["", "[]", "{", None])
def test_a_checkpoint_that_cannot_tell_is_not_healthy(tmp_path, state):
    if state is not None:
        (tmp_path / "train_state_00000.json").write_text(state)
    assert was_sick(tmp_path)
    (tmp_path / "train_state_00000.json").write_text(json.dumps({"step": 3}))  # of an older version
    assert not was_sick(tmp_path)
