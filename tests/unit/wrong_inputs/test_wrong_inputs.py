"""Every wrong input: one clear message, its exit code, and nothing touched."""

import collections
import re
import sys

import pytest

from tests.programs import run_app
from tests.unit.wrong_inputs.page import CASES, GROUPS, KINDS, PAGE, outcome, page

DOCUMENTED = {kind.exit_code for kind in KINDS}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.program}: {case.mistake}")
def test_it_is_told_in_one_message_that_helps(case):
    found = outcome(case)
    assert found.n_messages == 1, found.log
    assert "Traceback" not in found.log
    for expected in (case.key, case.value, case.remedy, *case.also):
        assert expected in found.message
    assert found.exit_code == case.exit_code
    assert case.exit_code in DOCUMENTED


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.program}: {case.mistake}")
def test_no_file_is_changed(case):
    """Opening a process group or a GPU raises in `outcome`."""
    leaves = outcome(case).changed
    kept = [path for path in leaves if not any(path == own or path.startswith(f"{own}/") for own in case.leaves)]
    assert kept == []
    assert not any("marker" in path for path in leaves)


def test_the_table_is_of_distinct_mistakes():
    assert len(CASES) >= 60
    titles = collections.Counter((title, case.mistake) for title, cases in GROUPS.items() for case in cases)
    commands = collections.Counter((case.program, case.args, case.make, str(case.environment)) for case in CASES)
    assert max(titles.values()) == max(commands.values()) == 1


def test_messages_are_no_code():
    """No name of an exception, no address of an object, no path of a place that is gone."""
    for case in CASES:
        assert not re.search(r"\b[A-Z]\w+Error\b| at 0x[0-9a-f]{6}|wrong-input-", outcome(case).message)


@pytest.mark.skipif(sys.platform != "linux", reason="the system's words in messages are those of Linux")
def test_the_page_is_what_the_table_gives():
    assert page() == PAGE.read_text(encoding="utf-8"), "run: python -m tests.unit.wrong_inputs.page"


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("apps.train", "config=configs/quickstart/topk.yaml", "topk.k=999", "dump_dir={}/run"), 2, "topk.k: 999"),
        (("apps.prepare", "config=configs/data/quickstart.yaml", "sources.sotu.glob=none*", "out_dir={}/o",
          "tokenizer={{name: bytes}}"), 2, "no files at"),
        (("apps.generate", "ckpt={}", "prompt=a"), 5, "is no run"),
    ],
)  # fmt: skip
def test_a_real_process_tells_the_same(args, code, text, tmp_path):
    done = run_app(*(arg.format(tmp_path) for arg in args), check=code)
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
