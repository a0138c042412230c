"""The table over the seeds for a paper: LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from topklm.report.sweeps.groups import Group, shown
from topklm.report.sweeps.rows import PERPLEXITY, Rows
from topklm.report.sweeps.spread import Spread
from topklm.report.sweeps.tables import main_scores

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
}  # fmt: skip


def escape(text: str) -> str:
    """Text with every character that LaTeX takes for a command made harmless."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def latex_table(groups: Sequence[Group], found: Rows, swept: Sequence[str], caption: str, label: str) -> str:
    """A table environment: a row per point, mean and standard deviation over the seeds in one cell."""
    heads = ["model", *(key.rpartition(".")[2] for key in swept), "seeds"]
    scores = main_scores(found)
    for key in found.views:
        heads += [f"ppl @{key.removeprefix(PERPLEXITY)}", "x dense"]
    heads += [column.title for column in scores.values()]
    lines = []
    for one in groups:
        cells = ["dense" if one.is_dense else "TopK"]
        cells += [shown(one.swept[key]) if key in one.swept else "--" for key in swept]
        cells = [escape(cell) for cell in cells] + [f"{one.finished}/{one.planned}"]
        for key in found.views:
            cells += [_spread(one.values(key), 2), _spread(one.ratios(key), 3)]
        cells += [_spread(one.values(key), 3 if column.scale == "mean" else 2) for key, column in scores.items()]
        lines.append(" & ".join(cells) + r" \\")
    n_text = 1 + len(swept)
    layout = "l" * n_text + "r" * (len(heads) - n_text)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{{label}}}",
            r"\centering",
            rf"\begin{{tabular}}{{{layout}}}",
            r"\toprule",
            " & ".join(escape(head) for head in heads) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _spread(spread: Spread, digits: int) -> str:
    if spread.mean is None:
        return "--"
    sd = "" if spread.sd is None else rf" \pm {spread.sd:.{digits}f}"
    return f"${spread.mean:.{digits}f}{sd}$"
