"""`python -m apps.label` as a user runs it: candidates, classes of words, labels of a local endpoint, the report."""

import json

import pytest

from tests.programs import run_app
from tests.unit.interp.labels.endpoint import Endpoint, serving
from tests.unit.interp.labels.lexicon import write_lexicon
from topklm.bundles.labels import read_labels

pytestmark = pytest.mark.e2e
KEY = "sk-very-secret-0123456789"
SENSES = {
    "noun": {word: [("noun.group", 9)] for word in ("people", "nation", "government", "congress", "country", "war")}
    | {word: [("noun.time", 9)] for word in ("year", "day", "time", "peace", "law", "power")},
    "verb": {word: [("verb.social", 9)] for word in ("make", "give", "take", "work", "act", "find")},
    "adj": {word: [("adj.all", 9)] for word in ("great", "new", "good", "last", "general", "public")},
}  # fmt: skip


def test_neurons_are_found_named_scored_and_shown(whole, tmp_path):
    bundle, lexicon = tmp_path / "bundle", write_lexicon(tmp_path / "wordnet", SENSES)
    run_app("apps.collect", f"ckpt={whole}", "tokens=8k", f"out={bundle}", "snapshots=[]", "halves=false")
    run_app("apps.entropy", f"bundle={bundle}", "min_count=5", "draws=20", "null_sets=0")
    done = run_app(
        "apps.label", "words", f"bundle={bundle}", "min_count=5", "shuffles=2", f"wordnet={lexicon}"
    )  # fmt: skip
    for text in ("tested neurons", "with classes shuffled 2 times", "token types occurred", "labels added"):
        assert text in done.stdout, text
    loose = ("fdr=1", "max_density=1", "min_fired=1", "min_lift=0", "n=4")
    done = run_app("apps.label", "candidates", f"bundle={bundle}", *loose)
    names = json.loads((bundle / "candidates" / "result.json").read_text())["data"]["neurons"]
    assert len(names) == 4
    assert names[0] in done.stdout
    with serving(Endpoint([(429, {"Retry-After": "0"}, f"not so fast, {KEY}")])) as endpoint:
        llm = (
            "apps.label", "llm", f"bundle={bundle}", f"candidates={bundle / 'candidates'}", f"base_url={endpoint.url}",
            "model=stub", "before=1", "after=0", "price_input=1", "price_output=1",
        )  # fmt: skip
        planned = run_app(*llm, env={"OPENAI_API_KEY": KEY})
        assert "calls to" in planned.stdout
        assert "nothing was sent" in planned.stdout
        assert endpoint.requests == []
        done = run_app(*llm, "yes=true", env={"OPENAI_API_KEY": KEY})
        assert "stub named 4 of 4 neurons" in done.stdout
        assert {each.get("Authorization") for each in endpoint.headers} == {f"Bearer {KEY}"}
    found = read_labels(bundle)
    assert {label.source for label in found} >= {"tokens", "llm"}
    assert [label.name for label in found if label.source == "llm"] == names
    out = tmp_path / "report"
    results = f"results=[{bundle}/candidates,{bundle}/labels,{bundle}/labels_llm]"
    run_app("apps.report", f"bundles=[{bundle}]", results, f"out={out}")
    page = (out / "index.html").read_text()
    for text in ("Candidates for steering", "Classes of words", "Labels by a language model", "the word ", "(llm "):
        assert text in page, text
    assert KEY not in planned.stderr + planned.stdout + done.stderr + done.stdout
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and KEY.encode() in f.read_bytes()]


def test_mistakes_are_told(tmp_path):
    wrong = run_app("apps.label", "names", check=2)
    assert "'names' is not one of candidates, words, llm" in wrong.stderr
    wrong = run_app("apps.label", "words", f"bundle={tmp_path}", f"wordnet={tmp_path / 'wordnet'}", check=2)
    assert "bash scripts/fetch_wordnet.sh" in wrong.stderr
