"""`python -m apps.steer` as a user runs it."""

import json

import pytest

from tests.programs import run_app
from topklm import load_model
from topklm.bundles import open_bundle
from topklm.generate import SamplingConfig, generate
from topklm.report.result import read_results

pytestmark = pytest.mark.e2e


def test_texts_stand_beside_the_unsteered_ones(whole, tmp_path):
    out = tmp_path / "out"
    done = run_app(
        "apps.steer", f"ckpt={whole}", "neuron=2:3", "offsets=[0, 2x, 30]", "n_samples=2", "max_tokens=9",
        "data_tokens=1k", f"out={out}",
    )  # fmt: skip
    assert "neuron 2:3 (the paper's 3:3), P99.9 = " in done.stdout
    assert "over 992 held-out tokens" in done.stderr
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().split("\n") if line]
    texts = {(line["neuron"], line["offset"], line["sample"]): line["text"] for line in lines}
    assert len(texts) == 2 * 4
    model, tokenizer, _ = load_model(whole)
    config = SamplingConfig(max_tokens=9, temperature=0.7, top_k=50, top_p=0.9, n_samples=2)
    (expected,) = generate(model, tokenizer, ["Once upon a time,"], config, batch_size=2)
    for sample, completion in enumerate(expected):
        assert texts[None, 0.0, sample] == completion.text
        assert texts["2:3", 0.0, sample] == completion.text
    assert texts["2:3", 30.0, 0] != texts[None, 0.0, 0]
    (result,) = read_results([out])
    assert [table.title for table in result.section.tables] == ["Texts"]
    told = run_app("apps.steer", f"ckpt={whole}", "neuron=4:3,2:99", "offset=8", "bundle=none", check=2).stderr
    for text in ("4:3: the model's layers are 0 ... 3", "2:99: the model's neurons are 0 ... 31", "not a bundle"):
        assert text in told
    assert "Traceback" not in told


def test_a_dose_response_goes_on_where_it_was_and_becomes_a_section_of_the_report(whole, tmp_path):
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    run_app("apps.collect", f"ckpt={whole}", "tokens=4k", f"out={bundle}")
    fired = open_bundle(bundle).layer(2).stats.fired
    neuron = f"2:{int(fired.argsort()[16])}"  # of middling density, so that others are near
    arguments = [
        "apps.steer", "dose", f"ckpt={whole}", f"bundle={bundle}", f"neuron={neuron}", "offsets=[1x,4x]", "n_samples=3",
        "max_tokens=6", "controls=2", "density_tolerance=4", "concept.min_count=5", "bootstrap=100", f"out={out}",
    ]  # fmt: skip
    done = run_app(*arguments)
    assert f"{neuron} (reads " in done.stdout
    assert "2 controls cannot decide it" in done.stdout
    samples = out / "samples.jsonl"
    whole_file, result = samples.read_bytes(), (out / "result.json").read_bytes()
    assert whole_file.count(b"\n") == 3 * (1 + 2 * 3)
    samples.write_bytes(whole_file[:-40])  # as if it had been interrupted in the last cell
    again = run_app(*arguments)
    assert "an unfinished cell is made again" in again.stderr
    assert samples.read_bytes() == whole_file
    assert (out / "result.json").read_bytes() == result
    (read,) = read_results([out])
    curve, written = read.data["curves"]
    assert (curve["counted"], written["counted"], written["n_concept"]) == ("reads", "writes", 20)
    assert [dose["multiple"] for dose in curve["doses"]] == [1.0, 4.0]
    assert len(curve["controls"]) == 2
    assert (out / f"reads_{neuron.replace(':', '_')}.png").stat().st_size > 10_000
