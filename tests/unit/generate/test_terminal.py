"""What a reader sees, what is read, and what is written."""

import io
import json

import pytest

from topklm.errors import DataError
from topklm.generate import Completion, Piece
from topklm.generate.prompts import read_prompts
from topklm.generate.record import write_completions
from topklm.generate.terminal import TerminalStream


def piece(prompt, sample, text, end=None):
    return Piece(prompt=prompt, sample=sample, text=text, finish_reason=end)


def test_the_first_unfinished_completion_is_live_and_the_others_wait_for_their_turn():
    out = io.StringIO()
    stream = TerminalStream(out, 2, 2, ["one", "two"])
    shown = []
    for p in (
        piece(0, 0, " a"), piece(0, 1, " b"), piece(1, 0, " c"), piece(1, 0, "", "eos"), piece(0, 0, " d", "length"),
        piece(1, 1, " e", "stop"), piece(0, 1, " f", "length"),
    ):  # fmt: skip
        stream(p)
        shown.append(out.getvalue())
        out.seek(0)
        out.truncate()
    assert shown == [
        "--- prompt 1, sample 1\none a", "", "", "", " d\n--- prompt 1, sample 2\none b", "",
        " f\n--- prompt 2, sample 1\ntwo c\n--- prompt 2, sample 2\ntwo e\n",
    ]  # fmt: skip


def test_one_completion_has_no_title_and_a_terminal_gets_no_control_characters():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for out, text in ((Terminal(), "x a\u241b[2Jb\n\tc\n"), (io.StringIO(), "x a\x1b[2Jb\n\tc\n")):
        TerminalStream(out, 1, 1, ["x"])(piece(0, 0, " a\x1b[2Jb\n\tc", "eos"))
        assert out.getvalue() == text


def test_prompts_are_read_from_lines_json_lines_and_standard_input(tmp_path, monkeypatch):
    lines = tmp_path / "p.txt"
    lines.write_bytes(b"one: 1\r\n\n  two # 2\n")
    assert read_prompts(str(lines)) == ["one: 1", "  two # 2"]
    (tmp_path / "p.jsonl").write_text('"a\\nb"\n{"prompt": "c", "text": "no"}\n{"text": ""}\n')
    assert read_prompts(str(tmp_path / "p.jsonl")) == ["a\nb", "c", ""]
    monkeypatch.setattr("sys.stdin", io.StringIO("x\ny"))
    assert read_prompts("-") == ["x", "y"]
    for text, message in (("", "no prompt"), ("{", "line 1 is not valid JSON"), ("1\n", "line 1 is neither a text")):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(DataError, match=message):
            read_prompts(str(tmp_path / "bad.jsonl"))
    with pytest.raises(DataError, match=r"none\.txt"):
        read_prompts(str(tmp_path / "none.txt"))


def test_completions_are_written_with_what_made_them(tmp_path):
    made = Completion(prompt_ids=[1, 2], ids=[3], text="é\n", logprobs=[-0.5], finish_reason="length")
    path = tmp_path / "new" / "out.json"
    write_completions(path, ["p", "q"], [[made, made], [made]], {"step": 7})
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["provenance"] == {"step": 7}
    assert [len(prompt["samples"]) for prompt in record["prompts"]] == [2, 1]
    assert record["prompts"][0]["prompt_ids"] == [1, 2]
    assert record["prompts"][1]["samples"] == [
        {"ids": [3], "text": "é\n", "logprobs": [-0.5], "finish_reason": "length"}
    ]
    assert [p.name for p in path.parent.iterdir()] == ["out.json"]
