"""An export takes its place only when it is whole, and destroys nothing that is not an export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from topklm.errors import ConfigError, ParityError
from topklm.export.directory import MARK, export_directory

SOURCE = Path("runs/tiny/checkpoints/0000000010")


def write(out: Path, content: str, **options) -> None:
    with export_directory(out, SOURCE, {"to": content}, **options) as part:
        assert [path.name for path in part.iterdir()] == [MARK]  # by which it is known when it is left behind
        (part / "weights").write_text(content)


def write_and_fail(out: Path, error: Exception) -> None:
    with export_directory(out, SOURCE, {}) as part:
        (part / "weights").write_text("half")
        raise error


def test_it_appears_whole_and_replaces_an_earlier_export(tmp_path) -> None:
    out = tmp_path / "deep" / "out"
    write(out, "first")
    write(out, "second")
    assert {path.name for path in out.iterdir()} == {"weights", MARK}
    assert json.loads((out / MARK).read_text()) == {"to": "second"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize(("error", "left"), [(ValueError, ["out"]), (ParityError, ["out", "out.tmp"])])
def test_after_an_error_the_earlier_export_stands(error, left, tmp_path) -> None:
    out = tmp_path / "out"
    write(out, "first")
    with pytest.raises(error):
        write_and_fail(out, error("no"))
    assert (out / "weights").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    write(out, "third")  # what was left is no obstacle
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_export_is_not_touched(tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write(out, "an empty directory is free")
    (out / MARK).unlink()
    with pytest.raises(ConfigError, match="overwrite=true"):
        write(out, "second")
    assert (out / "weights").read_text() == "an empty directory is free"
    write(out, "third", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        write(tmp_path / "file", "x", overwrite=True)


def test_the_checkpoint_itself_is_not_overwritten(tmp_path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "0000000010"
    checkpoint.mkdir(parents=True)
    for out in (tmp_path / "run", checkpoint):
        with (
            pytest.raises(ConfigError, match="holds the checkpoint"),
            export_directory(out, checkpoint, {}, overwrite=True),
        ):
            pass
    assert checkpoint.is_dir()


def test_what_lies_where_it_is_written_first_is_not_touched(tmp_path) -> None:
    for name in ("out.tmp", "out.old.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years")
        with pytest.raises(ConfigError, match="move it away"):
            write(tmp_path / "out", "x", overwrite=True)
        assert (tmp_path / name / "thesis.txt").read_text() == "years"
        (tmp_path / name / "thesis.txt").unlink()
        (tmp_path / name).rmdir()
