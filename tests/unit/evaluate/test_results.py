"""The files of an evaluation: what is written is read back, and what does not belong together is noticed."""

import json

import numpy as np
import pytest

from tests.unit.report.evals.synthetic import TOPK, FakeValidation, harness, provenance
from topklm.errors import ConfigError, DataError
from topklm.evaluate import evals_directory, write_results
from topklm.report.evals import read_evaluation

SCORES = [1, 0, 1, 1]


@pytest.fixture
def directory(tmp_path):
    return evals_directory(tmp_path / "run", 10)


def write(directory, **parts):
    return write_results(directory, provenance=provenance(), **parts)


def test_what_is_written_is_read_back(directory):
    results, samples = harness(SCORES)
    written = write(
        directory, harness=results, samples=samples, failed={"t": "why"}, validation=FakeValidation([3.0], [9])
    )
    assert [path.name for path in written] == [
        "samples_pick.jsonl", "results.json", "documents_256.jsonl", "validation.json",
    ]  # fmt: skip
    found = read_evaluation(directory)
    assert found == read_evaluation(directory.parent.parent)  # the run's newest
    for key, value in results.items():
        assert found.harness[key] == value
    assert found.harness["failed"] == {"t": "why"}
    assert found.samples("pick") == samples["pick"]
    assert found.samples("other") is None
    assert found.documents("256") == FakeValidation([3.0], [9]).lines()
    assert found.figures.keys() == {"val/ppl@256"}
    assert found.provenance["run"]["name"] == "dense"
    assert found.provenance["versions"].keys() == {"topklm", "torch", "lm_eval", "python"}
    assert sorted(path.name for path in directory.iterdir()) == sorted(path.name for path in written)


def test_parts_come_one_after_the_other(directory):
    """Results after each task, and the validation before or after: nothing of what is there is lost."""
    write(directory, validation=FakeValidation([3.0], [9]))
    one, one_samples = harness(SCORES, task="one")
    two, two_samples = harness(SCORES, task="two")
    write(directory, harness=one, samples=one_samples)
    both = {key: {**one[key], **two[key]} for key in one}
    write(directory, harness=both, samples={**one_samples, **two_samples})
    found = read_evaluation(directory)
    assert found.samples("one") == one_samples["one"]
    assert found.samples("two") == two_samples["two"]
    assert found.figures
    write(directory, harness=two, samples=two_samples)
    assert not (directory / "samples_one.jsonl").exists()  # no longer of any result
    assert read_evaluation(directory).samples("one") is None


def test_results_of_another_model_are_not_kept_beside(directory, caplog):
    write(directory, validation=FakeValidation([3.0], [9]))
    results, samples = harness(SCORES)
    other = provenance("topk", TOPK, alpha=0.0)
    write_results(directory, provenance=other, harness=results, samples=samples)
    assert "another model" in caplog.text
    assert sorted(path.name for path in directory.iterdir()) == ["results.json", "samples_pick.jsonl"]


def test_what_training_evaluated_is_kept_beside_what_its_checkpoint_gave(directory):
    """In training the checkpoint is not written yet."""
    in_training = provenance() | {"checkpoint_sha256": None}
    write_results(directory, provenance=in_training, validation=FakeValidation([3.0], [9]))
    write(directory, harness=harness(SCORES)[0])
    found = read_evaluation(directory)
    assert found.figures
    assert found.provenance["checkpoint_sha256"] is not None


def test_values_of_the_harness_that_json_does_not_know(directory):
    results, _ = harness(SCORES)
    results["configs"] = {"pick": {"process_docs": len, "until": {"b", "a"}, "weight": np.float64(0.5)}}
    samples = {"odd/name": [{"doc_id": np.int64(3), "acc": np.bool_(True), "doc": "a\u2028b\x85\nc"}]}
    write(directory, harness=results, samples=samples)
    found = read_evaluation(directory)
    assert found.harness["configs"]["pick"]["until"] == ["a", "b"]
    assert found.harness["configs"]["pick"]["weight"] == 0.5
    assert found.samples("odd/name") == [{"doc_id": 3, "acc": True, "doc": "a\u2028b\x85\nc"}]


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_logs_that_are_not_those_of_the_results_are_noticed(directory, damage):
    results, samples = harness(SCORES)
    write(directory, harness=results, samples=samples)
    path = directory / "samples_pick.jsonl"
    path.unlink() if damage == "missing" else path.write_text(path.read_text().replace('"acc": 0', '"acc": 1'))
    with pytest.raises(DataError, match=r"samples_pick\.jsonl.*"):
        read_evaluation(directory)


def test_halves_of_different_models_and_foreign_files_are_noticed(directory, tmp_path):
    results, samples = harness(SCORES)
    write(directory, harness=results, samples=samples, validation=FakeValidation([3.0], [9]))
    content = json.loads((directory / "validation.json").read_text())
    content["provenance"]["alpha"] = 0.5
    (directory / "validation.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="different models"):
        read_evaluation(directory)
    for text, why in (
        ("{", "not JSON"),
        ("{}", "holds no results"),
        ('{"results": {}}', "not written by this project"),
    ):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(DataError, match=why):
            read_evaluation(tmp_path)


def test_the_newest_evaluation_of_a_run_is_the_plain_one(tmp_path):
    results, samples = harness(SCORES)
    for step, name in ((5, "0000000005"), (10, "0000000010"), (10, "0000000010_alpha0")):
        write_results(tmp_path / "evals" / name, provenance=provenance(step=step), harness=results, samples=samples)
    assert read_evaluation(tmp_path).path.name == "0000000010"
    with pytest.raises(ConfigError, match="holds no evaluation"):
        read_evaluation(tmp_path / "nowhere")


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written"):
        write(tmp_path / "run" / "evals", harness=harness(SCORES)[0])
