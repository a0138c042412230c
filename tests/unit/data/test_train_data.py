"""Prepared sources opened together: those that were divided into train and held-out by different rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.data.synthetic import documents, write_source
from topklm.data import DataConfig, open_data
from topklm.errors import DataError


def open_pair(root: Path, a: tuple[float, str], b: tuple[float, str], *, a_val: bool = True, b_val: bool = True):
    write_source(root, "a", documents(100), documents(50, 20_000) if a_val else (), split=a)
    write_source(root, "b", documents(100), documents(50, 30_000) if b_val else (), split=b)
    return open_data(DataConfig(root_dir=str(root), sources={"a": 1.0, "b": 1.0}, seq_len=8))


def test_another_salt_may_train_on_texts_that_are_held_out_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"different rules.*\n?.*") as error:
        open_pair(tmp_path, (0.1, "x"), (0.1, "y"))
    for part in ("a trains on texts that b may hold out", "b trains on texts that a may hold out", "'x'", "'y'"):
        assert part in str(error.value)


def test_a_smaller_share_trains_on_what_a_larger_one_holds_out(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        open_pair(tmp_path, (0.1, "x"), (0.2, "x"))
    assert "a trains on texts that b may hold out" in str(error.value)
    assert "b trains on texts" not in str(error.value)


def test_what_cannot_leak_is_taken(tmp_path: Path) -> None:
    open_pair(tmp_path / "same", (0.1, "x"), (0.1, "x"))
    open_pair(tmp_path / "larger holds nothing", (0.1, "x"), (0.2, "x"), b_val=False)
    open_pair(tmp_path / "none holds any", (0.1, "x"), (0.2, "y"), a_val=False, b_val=False)
    with pytest.raises(DataError, match="a trains on texts that b may hold out"):
        open_pair(tmp_path / "nothing held out of one", (0.0, "x"), (0.1, "x"), a_val=False)
