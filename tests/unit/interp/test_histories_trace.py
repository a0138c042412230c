"""A planted history: dimension 5 begins to respond to a token at a checkpoint, in one layer, and spreads to others."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import apps.trace as program
from tests.unit.interp.planted import plant
from topklm.data.tokenizers import ByteTokenizer
from topklm.errors import ConfigError
from topklm.interp.histories import TraceConfig, trace_result
from topklm.interp.histories.find import find_token, layer_strengths, strengths, token_means
from topklm.interp.histories.series import missing_checkpoints, open_series
from topklm.report.result import read_results, write_result
from topklm.report.tracing.history import History, history_statements

V, N, L, TOKEN, DIMENSION = 30, 8, 4, 17, 5
STEPS = (50, 100, 150, 200)
FIRST = {1: 100, 0: 150, 2: 200}
"""Layer: the step from which the dimension responds there; never in the dense tail, layer 3."""
COUNTS = np.full(V, 24)
COUNTS[2] = 4
COUNTS[3] = 44
PIECES = [f" w{i}" for i in range(V)]
PIECES[TOKEN], PIECES[4] = " work", "work"


def tables(step):
    rng = np.random.default_rng(0)
    means = 1 + 0.1 * rng.random((L, V, N))
    for layer, first in FIRST.items():
        if step >= first:
            means[layer, TOKEN, DIMENSION] += 5
    means[0, TOKEN, DIMENSION] += 5 * (step == 50)  # a flash that does not stay
    means[:, :, 7] = 0  # silent
    return list(means)


@pytest.fixture
def run(tmp_path):
    """Bundles of four checkpoints at their own alpha, those that were annealing at alpha 0 too, and initial weights."""
    for step in STEPS:
        alpha = 0.5 if step == 50 else 0.0
        plant(tmp_path / "b" / f"{step:03d}", tables(step), COUNTS, step=step, alpha=alpha, anneal=100, pieces=PIECES)
    plant(tmp_path / "b" / "050-alpha0", tables(50), COUNTS, step=50, alpha=0.0, anneal=100, pieces=PIECES)
    plant(tmp_path / "b" / "000-init", tables(0), COUNTS, step=0, init="random", pieces=PIECES)
    return tmp_path / "b"


def trace(run, **settings):
    config = TraceConfig(bundles=[str(run)], **settings)
    assert list(config.problems()) == []
    return trace_result(config)


def test_the_dimension_its_beginning_and_its_spread_are_found(run, tmp_path):
    result = trace(run, token=" work")
    data = result.data
    assert (data["token"], data["neuron"], data["search_layers"]) == (TOKEN, DIMENSION, [0, 1, 2])
    own, zero = data["histories"]
    assert (own["series"], zero["series"]) == ("topk", "topk, at alpha 0")
    assert own["steps"] == zero["steps"] == list(STEPS)
    assert own["alphas"] == [0.5, 0, 0, 0]
    assert data["emerged"][0] == [2, 1, 3, None]  # the flash at step 50 in layer 0 does not count
    for i, step in enumerate(STEPS):
        np.testing.assert_allclose(own["activation"][:, i], [t[TOKEN, DIMENSION] for t in tables(step)])
    assert own["token_rank"][1].tolist()[1:] == [1, 1, 1]
    assert own["dimension_rank"][1].tolist()[1:] == [1, 1, 1]
    emergence = {row["layer"]: row for row in result.tables["emergence"].rows if row["series"] == "topk"}
    assert (emergence[1]["since"], emergence[1]["after"]) == (100, 50)
    assert (emergence[3]["since"], emergence[3]["kind"]) == (None, "tail")
    assert result.tables["candidates"].rows[0]["candidate"] == DIMENSION
    assert result.tables["candidates"].rows[0]["layers_above"] == "3 of 3"
    said = "\n".join(result.statements)
    assert "from step 100 on (not yet at 50) in layer 1, and at step 200 in 3 of 4 layers" in said
    assert "It spreads: layer 0 from step 150 on (not yet at 100); layer 2 from step 200 on" in said
    assert "It does not hold in layer 3" in said
    write_result(result, tmp_path / "out")
    (read,) = read_results([tmp_path / "out"])
    assert read.kind == "trace"
    assert read.section.pictures[0].svg.exists()
    assert json.loads((tmp_path / "out" / "result.json").read_text())["data"]["emerged"][0] == [2, 1, 3, None]


def test_the_token_of_a_dimension_is_found(run):
    assert trace(run, neuron=str(DIMENSION)).data["text"] == " work"
    one = trace(run, neuron=f"1:{DIMENSION}", top=3)
    assert (one.data["search_layers"], one.data["token"]) == ([1], TOKEN)
    rows = one.tables["candidates"].rows
    assert (rows[0]["candidate"], rows[0]["count"], len(rows)) == (" work", 24, 3)
    both = trace(run, neuron="2", token_id=TOKEN)
    assert (both.data["neuron"], both.data["token"]) == (2, TOKEN)
    assert "does not hold ' work'" in "\n".join(both.statements)
    silent = trace(run, neuron="7", token_id=TOKEN)
    assert np.isnan(silent.data["histories"][0]["strength"]).all()
    assert "does not hold" in "\n".join(silent.statements)


def test_strengths_are_those_of_the_definition(run):
    bundle = open_series([str(run)]).series[0].last.bundle
    types = np.delete(np.arange(V), 2)
    table = tables(200)[1][types]
    table = table - table[:, :7].mean(1, keepdims=True)
    expected = (table - table.mean(0)) / table.std(0)
    found = layer_strengths(bundle.layer(1), types)
    np.testing.assert_allclose(found[:7], expected.T[:7], atol=2e-5)
    assert (found[7] == 0).all()
    np.testing.assert_allclose(token_means(bundle.layer(1), 3), tables(200)[1][3])
    mean = strengths(bundle, [0, 1, 2], types)
    np.testing.assert_allclose(mean.mean, np.mean([layer_strengths(bundle.layer(i), types) for i in range(3)], 0))
    share, median = mean.percentile(TOKEN)
    assert share == 28 / 29
    assert median == np.median(mean.mean.max(0))


def test_what_is_not_one_token_is_told_with_its_pieces(run, tmp_path):
    bundle = open_series([str(run)]).series[0].last.bundle
    assert find_token("work", None, bundle) == 4
    assert find_token(None, 29, bundle) == 29
    with pytest.raises(ConfigError, match=r"'w5' is not one token.*there is ' w5' \(with a space before it\)"):
        find_token("w5", None, bundle)
    with pytest.raises(ConfigError, match="near it are"):
        find_token(" worl", None, bundle)
    with pytest.raises(ConfigError, match="30 is not one of the 30 token types"):
        find_token(None, 30, bundle)
    with pytest.raises(ConfigError, match=r"' w2' occurs 4 times in the bundles, below min_count=20"):
        trace(run, token=" w2")
    unknown = plant(tmp_path / "unknown", tables(50), COUNTS)
    with pytest.raises(ConfigError, match="give token_id"):
        find_token(" work", None, unknown)


def test_the_checkpoint_s_tokenizer_gives_the_pieces(tmp_path):
    pieces = [chr(i) if 32 <= i < 127 else f"<0x{i:02X}>" for i in range(256)]
    counts = np.full(256, 4)
    bundle = plant(tmp_path / "bytes", [np.ones((256, 2))], counts, step=7, pieces=pieces)
    checkpoint = tmp_path / "runs" / "topk" / "checkpoints" / "0000000007"
    checkpoint.mkdir(parents=True)
    ByteTokenizer().save(checkpoint / "tokenizer")
    with pytest.raises(ConfigError, match=r"it is 'n' \(\d+\) \+ 'o' \(\d+\): give one of them"):
        find_token("no", None, bundle)


def test_impossible_settings_are_told_at_once(run, tmp_path):
    config = TraceConfig(neuron="a:b", token="x", token_id=3, threshold=0, layers=[], min_count=0, top=0)
    assert [p.key for p in config.problems()] == [
        "bundles", "token_id", "neuron", "threshold", "layers", "min_count", "top",
    ]  # fmt: skip
    assert [p.key for p in TraceConfig(run="a").problems()] == ["token"]
    assert [p.key for p in TraceConfig(run="a", neuron="2:4", layers=[1]).problems()] == ["layers"]
    assert list(TraceConfig(run="a", neuron="4", layers=[1]).problems()) == []
    with pytest.raises(ConfigError, match=r"8 is not below the width of 8") as told:
        trace(run, neuron="9:8")
    assert "layer 9 is not in" in str(told.value)
    with pytest.raises(ConfigError, match=r"\[9\] are not in"):
        trace(run, token=" work", layers=[0, 9])
    plant(tmp_path / "b" / "other", tables(50), COUNTS, run="dense", alpha=None, pieces=PIECES)
    with pytest.raises(ConfigError, match="of 2 runs"):
        trace(run, token=" work")
    initial = tmp_path / "initial"
    shutil.copytree(run / "000-init", initial)
    with pytest.raises(ConfigError, match="initial weights alone"):
        trace(initial, token=" work")


def test_checkpoints_without_a_bundle_are_named_with_the_command(run, tmp_path):
    for step in (50, 75, 100, 150, 200, 250):
        (tmp_path / "b" / "runs" / "topk" / "checkpoints" / f"{step:010d}").mkdir(parents=True)
    own, zero = open_series([str(run)]).series
    told = missing_checkpoints(own)
    assert "no bundle of step 75, 250" in told
    assert "ckpts=[75,250] tokens=720 split=val context=4" in told
    assert "alpha" not in told.split("collect with")[1]
    assert missing_checkpoints(zero).endswith("alpha=0")
    assert any("no bundle of step" in line for line in trace(run, token=" work").statements)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.none(), st.floats(0, 6)), min_size=1, max_size=8), st.floats(0.5, 5))
def test_emergence_is_the_first_checkpoint_from_which_it_stays(values, threshold):
    row = np.array([[np.nan if v is None else v for v in values]])
    none = np.zeros(row.shape, np.int64)
    history = History(
        series="a", steps=list(range(len(values))), alphas=[0.0] * len(values), layers=[0], tail=1,
        activation=row, strength=row, token_rank=none, dimension_rank=none,
    )  # fmt: skip
    above = [v is not None and v >= threshold for v in values]
    expected = next((i for i in range(len(values)) if all(above[i:])), None)
    assert history.emerged(threshold) == [expected]
    assert ("does not hold" in history_statements(history, "t", 1, threshold)[0]) == (expected is None)


def test_the_program_takes_a_mode_and_bundles_as_words(run, tmp_path, capsys):
    def told(*args):
        with pytest.raises(SystemExit) as done:
            program.main([*map(str, args)])
        return done.value.code, capsys.readouterr()

    code, said = told("--help")
    assert code == 0
    for text in ("trace:", "match:", "persistence:", "threshold", "centre", "start", 'token=" work"'):
        assert text in said.out, text
    code, said = told("match", "--help")
    assert "centre" in said.out
    assert "threshold" not in said.out
    code, said = told("token= w", run)
    assert code == 2
    assert "is not one token" in said.err
    code, said = told("match", run / "100", run / "200", "min_count=5", f"out={tmp_path / 'match'}")
    assert code == 0
    (read,) = read_results([tmp_path / "match"])
    assert read.kind == "identity_match"
