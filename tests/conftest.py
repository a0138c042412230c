"""Real text, prepared once per test session with the program that a user runs, and runs on it."""

import shutil

import pytest

from tests.programs import prepare_speeches, run_app, tiny_run


@pytest.fixture(scope="session")
def speeches(tmp_path_factory):
    """Presidential addresses, a few documents, 512 SentencePiece pieces: the data.root_dir of a tiny run."""
    out = tmp_path_factory.mktemp("prepared")
    prepare_speeches(out)
    return out


@pytest.fixture(scope="session")
def tiny(speeches):
    """Arguments of a run of 96 k parameters on the speeches; `dump_dir` is appended by the test."""
    return tiny_run(speeches)


@pytest.fixture(scope="session")
def _whole(tiny, tmp_path_factory):
    dump_dir = tmp_path_factory.mktemp("whole") / "run"
    run_app("apps.train", *tiny, f"dump_dir={dump_dir}")
    return dump_dir


@pytest.fixture
def whole(_whole, tmp_path):
    """An uninterrupted run of one process; a copy that the test may change."""
    shutil.copytree(_whole, tmp_path / "whole")
    return tmp_path / "whole"
