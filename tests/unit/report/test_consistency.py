"""Tables, sentences and figures of consistency, from rows."""

import numpy as np
import pytest

from topklm.report.consistency import consistency_drawings, consistency_tables, statements, terminal_table
from topklm.report.result import Result, read_results, write_result

NAN = float("nan")
RATES = ("signed", "absolute", "above", "above_absolute", "mutual", "mutual_cosine", "mutual_above", "upper")


def row(label="TopK k=16", layer=0, kind="topk", family=0, signed=0.5, spread=0.01, full=True, **changes):
    """A row as `rows_of` gives it."""
    values = dict.fromkeys(RATES, 0.25) | {"signed": signed, "upper": signed + 0.1}
    if not full:
        values |= dict.fromkeys(("signed", "absolute", "above", "above_absolute"), NAN)
    found = {
        "label": label, "layer": layer, "kind": kind, "family": family, "is_initial": False, "same_initial": False,
        "runs": 3, "pairs": 3, "neurons": 128.0, "silent": 0.0, "coordinates": 1000,
        "identity_share": 0.01, "identity_chance": 1 / 128, "identity_cosine": 0.0, "identity_partner_cosine": 0.0,
        "ceiling": NAN, "rank_correlation": 0.3, "rank_correlation_permuted": 0.0,
    }  # fmt: skip
    for rate, value in values.items():
        found |= {rate: value, f"{rate}_least": value - spread, f"{rate}_most": value + spread}
        found |= {f"{rate}_low": value - 2 * spread, f"{rate}_high": value + 2 * spread}
        found |= {f"{rate}_permuted": 0.2 * value, f"{rate}_random": 0.1 * value, f"{rate}_initial": NAN}
    return found | changes


def stratum(label="TopK k=16", low=0.125, neurons=100):
    return {
        "label": label, "kind": "topk", "is_initial": False, "same_initial": False,
        "density_low": low, "density_high": 2 * low, "neurons": neurons, "cosine": 0.5, "permuted": 0.1, "above": 0.2,
    }  # fmt: skip


def clouds_for(rows):
    rng = np.random.default_rng(0)
    return {(r["label"], r["layer"]): (rng.uniform(size=50), rng.uniform(size=50)) for r in rows}


ROWS = [
    row(layer=0, signed_initial=0.08), row(layer=1, signed=0.7), row(layer=2, kind="dense", signed=0.55),
    row(label="dense", family=1, kind="dense", layer=0, signed=0.4),
    row(label="dense", family=1, kind="dense", layer=1, signed=0.71),
    row(label="dense", family=1, kind="dense", layer=2, signed=0.9),
    row(label="TopK k=16, initial weights", layer=0, signed=0.08, is_initial=True),
]  # fmt: skip


def test_statements_stand_with_their_floors():
    told = statements(ROWS, "token profiles", 0.7)
    assert told[0].startswith(
        "TopK k=16: the PW-MCC of token profiles is 0.500 ... 0.700 (permuted: 0.100 ... 0.140, random directions: "
        "0.050 ... 0.070, random initialisations: 0.080) over 3 layers (3 pairs of 3 runs); matched above 0.7 are "
    )
    assert "matched to their own index in the other run (chance 0.8%)" in told[1]
    assert "is 0.30, under the permuted null 0.00" in told[2]
    assert not any(text.startswith("TopK k=16, initial weights") for text in told)
    sparse, dense = told[-3:-1]
    assert sparse.startswith("TopK k=16 against dense, 2 TopK layers of the former: by PW-MCC every pair")
    assert (
        "above every pair of the other in 1, below in 0 (above the permuted null: +0.400 ... +0.560 and +0.3" in sparse
    )
    assert "by the share matched above 0.7 every pair of its runs is above every pair of the other in 0" in sparse
    assert "1 dense layer of the former: by PW-MCC every pair of its runs" in dense
    assert "in 0, below in 1" in dense
    assert "not independent" in told[-1]


def test_runs_from_the_same_weights_are_not_compared_as_seeds():
    same = [row(label="TopK k=16, same initial weights", same_initial=True, identity_share=0.6)]
    told = statements([*ROWS[:3], *same], "token profiles", 0.7)
    assert any(
        "60.0% of the neurons are matched to their own index in the other run, which began from" in t for t in told
    )
    assert not any(" against " in text for text in told)


def test_nearest_neighbours_alone_are_called_so():
    rows = [row(full=False), row(layer=1, full=False)]
    told = statements(rows, "W_dec", 0.7)
    assert told[0].startswith(
        "TopK k=16: the mean cosine with the nearest neighbour of W_dec is 0.600 (permuted: 0.120"
    )
    assert "mutual nearest neighbours above 0.7 are 25.0%" in told[0]
    assert "PW-MCC" not in told[0]
    columns = [column.header for column in terminal_table(rows, "W_dec").columns]
    assert "nearest" in columns
    assert "PW-MCC" not in columns


def test_a_result_is_written_and_read(tmp_path):
    strata = [stratum(), stratum(low=0.25), stratum(low=0.5, neurons=3)]
    tables = consistency_tables(ROWS, strata, "token profiles", 0.7)
    assert list(tables) == ["layers", "nearest", "index", "density"]
    assert len(tables["density"].rows) == 3
    drawings = consistency_drawings(ROWS, strata, clouds_for(ROWS), "token profiles", 0.7, ["a: b"])
    assert list(drawings) == ["depth", "cosines", "density"]
    write_result(
        Result(kind="consistency", title="Consistency", statements=["x"], provenance=["a: b"], tables=tables,
               drawings=drawings), tmp_path,
    )  # fmt: skip
    (found,) = read_results([tmp_path])
    assert len(found.section.pictures) == 3
    assert "PW-MCC" in (tmp_path / "consistency.md").read_text()
    assert "0.080" in (tmp_path / "consistency.md").read_text()


def test_the_depth_figure_has_a_line_a_series_with_its_null():
    axes = consistency_drawings(ROWS, [], clouds_for(ROWS), "x", 0.7, [])["depth"].figure.axes
    assert [text.get_text() for text in axes[0].figure.legends[0].get_texts()] == [
        "TopK k=16", "dense", "TopK k=16, initial weights"
    ]  # fmt: skip
    lines = {tuple(np.round(np.asarray(line.get_ydata(), float), 3)) for line in axes[0].lines}
    assert {(0.5, 0.7, 0.55), (0.4, 0.71, 0.9), (0.08,)} <= lines
    assert {(0.1, 0.14, 0.11), (0.08, 0.142, 0.18)} <= lines  # the nulls, of series with other seeds alone
    assert (0.016,) not in lines


@pytest.mark.parametrize("full", [True, False])
def test_dictionaries_without_layers_densities_or_floors_are_drawn(full, tmp_path):
    rows = [row(label="W_dec", layer=None, kind="", full=full, rank_correlation=NAN, rank_correlation_permuted=NAN,
                shared=0.2, agree=0.3, shared_permuted=0.01, agree_permuted=0.02)]  # fmt: skip
    told = statements(rows, "W_dec", 0.7)
    assert "20.0% (permuted: 1.0%) are shared: matched above 0.7 in both dictionaries" in told[1]
    assert "(30.0% have the same partner at all, permuted: 2.0%)" in told[1]
    assert not any("rank correlation" in text for text in told)
    drawings = consistency_drawings(rows, [], clouds_for(rows), "W_dec", 0.7, ["a"])
    assert list(drawings) == ["depth", "cosines"]
    tables = consistency_tables(rows, [], "W_dec", 0.7)
    assert "density" not in tables
    assert [column.key for column in tables["index"].columns][-4::2] == ["shared", "agree"]
    files = write_result(
        Result(kind="consistency", title="x", statements=told, provenance=[], tables=tables, drawings=drawings),
        tmp_path,
    )
    assert all(file.is_file() for file in files)
