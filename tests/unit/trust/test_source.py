"""What the source code must not hold: ways to run what a file says."""

import ast
from pathlib import Path

import pytest

from tests.programs import ROOT

FILES = sorted(path for room in ("topklm", "apps", "scripts") for path in (ROOT / room).rglob("*.py"))
UNPICKLERS = ("topklm/checkpoint/trusted.py",)
"""Where a class of pickle is used: to restrict it."""


def dotted(node):
    """a.b.c of a name or attribute; "" of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def keyword(call, name):
    value = next((each.value for each in call.keywords if each.arg == name), None)
    return value.value if isinstance(value, ast.Constant) else value


def faults(source, path=""):
    """What of a module could run what a file says, or hand it to a shell."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else ""
            names = [alias.name for alias in node.names]
            if {"dill", "cloudpickle", "joblib", "marshal", "shelve"} & {module, *names}:
                yield node.lineno, "another pickle"
            if module == "pickle":
                yield node.lineno, "pickle by name"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        last = name.rpartition(".")[2]
        if name == "torch.load" and keyword(node, "weights_only") is not True:
            yield node.lineno, "torch.load without weights_only=True"
        if name in ("pickle.load", "pickle.loads", "pickle.Unpickler") and path not in UNPICKLERS:
            yield node.lineno, name
        if name.startswith("yaml.") and last in ("load", "load_all", "unsafe_load", "full_load"):
            yield node.lineno, name
        if name in ("eval", "exec", "os.system", "os.popen") or (name == "compile" and len(node.args) > 2):
            yield node.lineno, name
        if keyword(node, "shell") is True:
            yield node.lineno, "shell=True"
        if keyword(node, "allow_pickle") is True:
            yield node.lineno, "allow_pickle=True"
        if last in ("load", "memmap") and name.startswith("np.") and keyword(node, "allow_pickle") is not False:
            yield node.lineno, "np.load without allow_pickle=False"
        if keyword(node, "trust_remote_code") is True:
            yield node.lineno, "trust_remote_code=True"


@pytest.mark.parametrize("room", ["topklm", "apps", "scripts"])
def test_no_module_runs_what_a_file_says(room):
    found = []
    for path in FILES:
        name = str(path.relative_to(ROOT))
        if name.startswith(room):
            found += [f"{name}:{line}: {what}" for line, what in faults(path.read_text(encoding="utf-8"), name)]
    assert found == []


@pytest.mark.parametrize(
    "line",
    ["torch.load(f)", "torch.load(f, weights_only=False)", "pickle.loads(b)", "yaml.load(s)", "eval(x)", "exec(x)",
     "run(c, shell=True)", "np.load(p)", "np.load(p, allow_pickle=True)", "f(p, trust_remote_code=True)",
     "import dill", "from pickle import load", "os.system(c)"],
)  # fmt: skip
def test_the_search_finds(line):
    assert list(faults(line))


def test_there_is_something_to_search():
    assert len(FILES) > 200
    assert Path(ROOT / UNPICKLERS[0]).is_file()
