"""What would fail at the first evaluation is told before training."""

import dataclasses
import fcntl
import threading

import pytest

from tests.unit.data.synthetic import documents, write_source
from topklm.data import DataConfig, open_data
from topklm.errors import ConfigError, DataError
from topklm.evaluate import EvalConfig, HarnessConfig, ValidationConfig
from topklm.train import TrainConfig
from topklm.train.preflight import preflight


def problems(tmp_path, evaluation, n_val=50, is_main=True):
    write_source(tmp_path / "data", "a", documents(100), documents(n_val, 5) if n_val else [])
    data = DataConfig(root_dir=str(tmp_path / "data"), sources={"a": 1.0}, seq_len=8)
    config = TrainConfig(dump_dir=str(tmp_path / "run"), data=data, eval=evaluation)
    try:
        lock = preflight(config, open_data(data), is_main=is_main)
    except ConfigError as error:
        return {problem.key: problem.message for problem in error.problems}
    if lock is not None:
        lock.close()
    return {}


def test_windows_that_the_sequence_length_does_not_allow(tmp_path):
    assert not problems(tmp_path / "1", EvalConfig(validation=ValidationConfig(stride=8)))
    assert "stride 9" in problems(tmp_path / "2", EvalConfig(validation=ValidationConfig(stride=9)))["eval"]


def test_nothing_held_out(tmp_path):
    assert "eval=null" in problems(tmp_path / "1", EvalConfig(), n_val=0)["eval"]
    assert not problems(tmp_path / "2", None, n_val=0)


def test_a_tokenizer_that_is_not_there(tmp_path):
    write_source(tmp_path / "data", "a", documents(100), documents(50, 5))
    data = DataConfig(root_dir=str(tmp_path / "data"), sources={"a": 1.0}, seq_len=8)
    (tmp_path / "data/a/tokenizer/tokenizer_meta.json").unlink()
    config = TrainConfig(dump_dir=str(tmp_path / "run"), data=data, eval=EvalConfig())
    with pytest.raises(DataError, match="tokenizer_meta"):
        preflight(dataclasses.replace(config, eval=None), open_data(data), is_main=True)


def test_tasks_are_looked_at_by_the_main_rank(tmp_path):
    pytest.importorskip("lm_eval")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: gone.jsonl}}\ntest_split: test\n"
        'output_type: loglikelihood\ndoc_to_text: "{{text}}"\ndoc_to_target: "{{target}}"\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\nmetadata: {version: 1.0}\n"
    )
    evaluation = EvalConfig(harness=HarnessConfig(tasks=["mine"]), tasks_dir=str(tmp_path / "tasks"))
    message = problems(tmp_path / "1", evaluation)["eval.harness.tasks"]
    assert message.startswith("mine: ")
    assert "gone.jsonl" in message
    assert not problems(tmp_path / "2", evaluation, is_main=False)
    nowhere = EvalConfig(harness=HarnessConfig(tasks=["mine"]), tasks_dir=str(tmp_path / "nowhere"))
    assert any(key.startswith("eval") for key in problems(tmp_path / "3", nowhere))


def hold(run, seconds):
    """Hold the lock of a run's directory for a while, as a look at its state does for an instant."""
    run.mkdir()
    file = (run / ".lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    threading.Timer(seconds, file.close).start()


def test_a_lock_that_is_held_for_an_instant_is_waited_for(tmp_path):
    hold(tmp_path / "run", 0.3)
    assert not problems(tmp_path, None)


def test_a_directory_in_use_is_refused(tmp_path):
    hold(tmp_path / "run", 3.0)
    assert "in use by another process" in problems(tmp_path, None)["dump_dir"]
