"""docs/errors.md: every wrong input of the table with what is told then.

python -m tests.unit.wrong_inputs.page      # writes the page
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tests.programs import ROOT
from tests.unit.wrong_inputs import checkpoints, configurations, documents, prepared, programs
from tests.unit.wrong_inputs.case import Case, Outcome, run
from tests.unit.wrong_inputs.place import build_place
from topklm import errors

PAGE = ROOT / "docs" / "errors.md"
GROUPS: dict[str, list[Case]] = {
    title: cases
    for module in (configurations, prepared, documents, checkpoints, programs)
    for title, cases in module.GROUPS.items()
}
CASES = [case for cases in GROUPS.values() for case in cases]
KINDS = [kind for kind in errors.TopklmError.__subclasses__() if kind.__module__ == errors.__name__]
INTRODUCTION = """# What goes wrong, and what is told

A wrong input ends a program with one message, all mistakes in it, before a process group is opened, a GPU touched or a
file changed. It names the key or the file, shows the value, says the rule and what to do; `(...)` stands for
what another library says of it, and for what differs from time to time.
"""
OTHERS = {
    0: "done",
    1: "an error of the program itself, with its traceback: please report it; of `apps.sweep`: some runs failed; "
    "of `apps.plan`: it does not fit",
    errors.EXIT_PREEMPTED: "stopped by a signal after saving; start the same command again to go on",
    130: "stopped by Ctrl-C",
}


@cache
def outcome(case: Case) -> Outcome:
    """What the program does in a copy of the place in which this case's mistake was made."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="wrong-input-") as directory:
        here = Path(directory).resolve() / "here"
        shutil.copytree(right_place(), here)
        os.chdir(here)
        try:
            if case.make is not None:
                case.make()
            return run(case)
        finally:
            os.chdir(before)


@cache
def right_place() -> Path:
    """The place in which everything is right, made once in a process."""
    before, place = Path.cwd(), Path(tempfile.mkdtemp(prefix="wrong-input-place-"))
    os.chdir(place)
    try:
        build_place(place)
    finally:
        os.chdir(before)
    return place


def page() -> str:
    """The page with the messages of now."""
    codes = OTHERS | {
        kind.exit_code: " ".join((kind.__doc__ or "").split()).partition(". ")[0].rstrip(".") for kind in KINDS
    }
    table = [f"| {code} | {codes[code]} |" for code in sorted(codes)]
    parts = [INTRODUCTION, "| exit code | meaning |", "|---|---|", *table]
    for title, cases in GROUPS.items():
        parts += [f"\n## {title}"]
        for case in cases:
            parts += [f"\n**{case.mistake[0].upper()}{case.mistake[1:]}**: exit code {outcome(case).exit_code}"]
            parts += ["```", f"$ {case.command}", shown(case), "```"]
    return "\n".join(parts) + "\n"


def shown(case: Case) -> str:
    """The message, without what is not ours in it."""
    message = outcome(case).message
    if case.words_of is not None:
        message = re.sub(case.words_of, "(...)", message)
    return message


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
