"""Reading bundles with entropies: what is missing is told at once, and what must not be compared is refused."""

import json

import pytest

from tests.unit.report.neurons.conftest import SETTINGS
from topklm.errors import ConfigError
from topklm.report.neurons import comparable, read_measured
from topklm.report.neurons.series import newest, over_training


def test_labels_tell_models_and_controls_apart(family):
    labels = [each.label for each in read_measured(family)]
    assert labels == [
        "topk", "dense", "dense, read through ReLU and top-3", "topk, at random initialisation",
        "dense, at random initialisation",
    ]  # fmt: skip


def test_a_directory_stands_for_its_bundles_and_equal_ones_are_taken_once(plant, tmp_path):
    for step in (50, 100):
        plant(f"all/{step:010d}", step=step)
    (tmp_path / "all" / "0000000150.tmp").mkdir()
    found = read_measured([tmp_path / "all", tmp_path / "all" / "0000000100"])
    assert [each.step for each in found] == [50, 100]


def test_all_problems_are_told_at_once(plant, tmp_path):
    unmeasured = plant("unmeasured", preset="paper")
    stale = plant("stale", step=7)
    file = stale / "entropy" / "recommended" / "entropy.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "bundle": {"sha256": "0" * 64}}))
    with pytest.raises(ConfigError) as error:
        read_measured([unmeasured, tmp_path / "gone", stale])
    text = str(error.value)
    assert "apps.entropy" in text
    assert "gone" in text
    assert "of another bundle" in text
    assert len(error.value.problems) == 3


@pytest.mark.parametrize("damage", ["{", "[]", '{"format_version": 1}', '{"format_version": 99}'])
def test_damaged_entropies_are_named(plant, damage):
    path = plant("broken")
    (path / "entropy" / "recommended" / "entropy.json").write_text(damage)
    with pytest.raises(ConfigError, match=r"entropy\.json"):
        read_measured([path])


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"windows": "x" * 64}, "windows"),
        ({"tokenizer": "u" * 64}, "tokenizers"),
        ({"settings": {**SETTINGS, "min_count": 20}}, "min_count (2 and 20)"),
    ],
)
def test_what_does_not_compare_is_refused_unless_forced(plant, other, reason):
    paths = [plant("one"), plant("two", run="dense", **other)]
    with pytest.raises(ConfigError) as error:
        read_measured(paths)
    assert reason in str(error.value)
    forced = read_measured(paths, force=True)
    assert len(forced) == 2
    assert any(reason in each for each in comparable(forced))


def test_the_newest_checkpoint_at_its_own_alpha_is_shown(plant):
    found = read_measured(
        [plant("a", step=25, alpha=0.5), plant("b", step=25, alpha=0.0), plant("c", step=40, alpha=0.0)]
    )
    assert [each.at_own_alpha for each in found] == [True, False, False]
    assert [each.bundle.path.name for each in newest(found)] == ["a"]


def test_lines_over_training_at_own_alpha_and_at_alpha_zero(plant):
    paths = [plant("25", step=25, alpha=0.5), plant("25-0", step=25, alpha=0.0), plant("100", step=100)]
    found = read_measured(paths)
    lines = {name: [each.bundle.path.name for each in bundles] for name, bundles in over_training(found, found[0].run)}
    assert lines == {"own alpha": ["25", "100"], "alpha 0": ["25-0", "100"]}
