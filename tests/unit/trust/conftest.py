"""The place of the wrong inputs, as the working directory."""

import os
import shutil

import pytest

from tests.unit.wrong_inputs.page import right_place


@pytest.fixture
def place(tmp_path, monkeypatch):
    shutil.copytree(right_place(), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delitem(os.environ, name, raising=False)
    return tmp_path
