"""`python -m apps.consistency` as a user runs it: two models with other seeds, their initial weights, and matrices."""

import json

import numpy as np
import pytest

from tests.programs import run_app
from tests.unit.interp.tiny import collected, write_checkpoint, write_data

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Of two tiny TopK models with other seeds, and of the initial weights of both."""
    root, found = tmp_path_factory.mktemp("seeds"), []
    data = write_data(root / "data")
    for seed in (1, 2):
        checkpoint = write_checkpoint(root / f"run{seed}", data, seed=seed)
        for init in ("checkpoint", "random"):
            found.append(collected(checkpoint, root / f"{init}{seed}", init=init).path)
    return found


def test_two_seeds_against_their_initial_weights(bundles, tmp_path):
    done = run_app("apps.consistency", *bundles, f"out={tmp_path}", "null_draws=2", "min_count=2")
    for text in ("PW-MCC", "random initialisations", "own index", "written:"):
        assert text in done.stdout, text
    result = json.loads((tmp_path / "result.json").read_text())
    rows = {(row["label"], row["layer"]): row for row in result["data"]["layers"]}
    labels = ("TopK k=4", "TopK k=4, initial weights")
    assert sorted(rows) == [(label, layer) for label in labels for layer in range(3)]
    first = rows[labels[0], 0]
    assert 0 < first["signed"] <= first["upper"] < 1
    assert first["signed_initial"] == rows[labels[1], 0]["signed"]
    assert [first["kind"], rows[labels[0], 2]["kind"]] == ["topk", "dense"]
    assert len(list((tmp_path / "pairs").iterdir())) == 6
    assert {path.suffix for path in tmp_path.glob("depth.*")} == {".png", ".svg"}


def test_columns_of_the_output_matrix_and_of_the_embedding(bundles, tmp_path):
    run_app("apps.consistency", bundles[0], bundles[2], "dictionary=unembedding", "second=embedding",
            f"out={tmp_path}", "null_draws=1", "min_count=2")  # fmt: skip
    (row,) = json.loads((tmp_path / "result.json").read_text())["data"]["layers"]
    assert row["layer"] is None
    assert 0 <= row["shared"] <= row["agree"] <= 1


def test_a_permuted_matrix_in_a_file_is_the_same(tmp_path):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 16))
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", a[rng.permutation(40)])
    run_app("apps.consistency", tmp_path / "a.npy", tmp_path / "b.npy", f"out={tmp_path / 'out'}", "null_draws=1")
    (row,) = json.loads((tmp_path / "out" / "result.json").read_text())["data"]["layers"]
    assert row["signed"] == pytest.approx(1.0, abs=1e-12)
    assert row["above"] == row["mutual_above"] == 1.0


def test_wrong_input_is_told_all_at_once(bundles, tmp_path):
    wrong = run_app("apps.consistency", bundles[0], "treshold=0.5", "second=W_enc", f"out={tmp_path / 'no'}", check=2)
    for text in ("did you mean threshold?", "none of profiles"):
        assert text in wrong.stderr, text
    assert "Traceback" not in wrong.stderr
    assert not (tmp_path / "no").exists()
