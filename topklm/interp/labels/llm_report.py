"""What labelling by a language model leaves: lines of the label file, and a result with the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from topklm.bundles import Bundle, NamedBundle
from topklm.bundles.labels import Label
from topklm.interp.labels.detection import LEAST_NEURONS, mean_interval
from topklm.interp.labels.llm_config import LlmConfig
from topklm.interp.labels.llm_prompts import VERSION
from topklm.interp.labels.llm_run import Scored, balanced
from topklm.interp.labels.word_labels import make_label
from topklm.report.neurons.tokens import top_tokens
from topklm.report.result import Result
from topklm.report.table import Column, Table

COLUMNS = (
    Column("neuron", "neuron"),
    Column("label", "label"),
    Column("balanced", "balanced accuracy", "{:.2f}"),
    Column("low", "from", "{:.2f}"),
    Column("high", "to", "{:.2f}"),
    Column("control", "with another neuron's label", "{:.2f}"),
    Column("judged", "excerpts", "{:,}"),
    Column("unanswered", "not answered", "{:,}"),
    Column("tokens", "top tokens"),
)
PIECES, MIN_COUNT = 8, 20
_DECIDES = ("base_url", "model", "temperature", "top_contexts", "held_out", "per_call", "before", "after", "seed")


def llm_lines(config: LlmConfig, bundle: Bundle, scored: Sequence[Scored]) -> list[Label]:
    """A line for each neuron that got a label. Its score is the balanced accuracy; significant: the lower end of its
    95 % interval is above 0.5."""
    lines = []
    for each in scored:
        if each.label is None:
            continue
        own, control = each.own, balanced(each.control)
        settings = {key: getattr(config, key) for key in _DECIDES} | {"prompts": VERSION, "shown": len(each.case.shown)}
        if own is not None and own.balanced == own.balanced:
            settings |= {"interval": list(own.interval), "positives": own.positives, "negatives": own.negatives}
            settings |= {"unanswered": own.unanswered, "control": control if control == control else None}
            score, significant = own.balanced, own.interval[0] > 0.5
        else:
            score, significant = None, None
        lines.append(
            make_label(
                bundle, each.case.layer, each.case.neuron, "llm", each.label, settings, score=score,
                significant=significant,
            )
        )  # fmt: skip
    return lines


def llm_result(config: LlmConfig, bundle: Bundle, scored: Sequence[Scored], used: tuple[int, int]) -> Result:
    """Scores of all neurons, and their mean against exchanged labels."""
    named = NamedBundle(bundle=bundle, name=bundle.meta.model.run)
    both = [each for each in scored if balanced(each.own) == balanced(each.own)]
    own = [balanced(each.own) for each in both]
    pairs = [(a, b) for each, a in zip(both, own, strict=True) if (b := balanced(each.control)) == b]
    n = sum(each.label is not None for each in scored)
    statements = [
        f"{config.model} named {n:,} of {len(scored):,} neurons of {named.label}; {len(own):,} labels could be scored "
        f"on held-out excerpts{_too_few(scored)}."
    ]
    if own:
        mean, low, high = mean_interval(own)
        spread = f" (95 % interval over neurons {low:.2f} to {high:.2f})" if len(own) > 1 else ""
        statements.append(f"Detection: mean balanced accuracy {mean:.2f}{spread}; chance is 0.50.")
    if pairs:
        control, _, _ = mean_interval([b for _, b in pairs])
        gain, low, high = mean_interval([a - b for a, b in pairs])
        spread = f" ({low:+.2f} to {high:+.2f})" if len(pairs) > 1 else ""
        if len(pairs) < LEAST_NEURONS:
            verdict = f"fewer than {LEAST_NEURONS} are too few to tell whether labels are better than exchanged ones"
        elif low > 0:
            verdict = "labels tell something about their own neurons"
        else:
            verdict = "it is not shown that labels are better than exchanged ones"
        statements.append(
            f"With another neuron's label on the same excerpts {control:.2f}, {gain:+.2f}{spread} for the own label "
            f"over {len(pairs):,} neurons: {verdict}."
        )
    elif own:
        statements.append("There is no control: exchanging labels needs two neurons that have one.")
    tokens = top_tokens(bundle, [(each.case.layer, each.case.neuron) for each in scored], PIECES, MIN_COUNT)
    rows = [
        {
            "neuron": each.case.name, "label": each.label,
            "balanced": balanced(each.own), "control": balanced(each.control),
            "low": None if each.own is None else each.own.interval[0],
            "high": None if each.own is None else each.own.interval[1],
            "judged": 0 if each.own is None else each.own.positives + each.own.negatives,
            "unanswered": 0 if each.own is None else each.own.unanswered,
            "tokens": tokens[each.case.layer, each.case.neuron],
        }
        for each in scored
    ]  # fmt: skip
    settings = ", ".join(f"{key} {getattr(config, key)}" for key in _DECIDES)
    note = (
        f"{named.label}: balanced accuracy on excerpts that the label was not made from, with its 95 % interval; "
        "chance is 0.5."
    )
    return Result(
        kind="labels_llm",
        title="Labels by a language model",
        statements=statements,
        provenance=[named.provenance(), f"{settings}; prompts {VERSION}; {used[0]:,} and {used[1]:,} tokens were paid"],
        tables={"labels_llm": Table("Labels and how well they detect", note, COLUMNS, rows)},
        data={
            "neurons": [each.case.name for each in scored],
            "scores": [
                {
                    "neuron": each.case.name, "label": each.label, "balanced": balanced(each.own),
                    "control": balanced(each.control), "own": None if each.own is None else asdict(each.own),
                    "other": None if each.control is None else asdict(each.control),
                }
                for each in scored
            ],
            "settings": {key: getattr(config, key) for key in _DECIDES}, "bundle": bundle.sha256,
        },
    )  # fmt: skip


def _too_few(scored: Sequence[Scored]) -> str:
    without = [each.case.name for each in scored if not each.case.texts]
    if not without:
        return ""
    return (
        f" ({', '.join(without[:8])}{', ...' if len(without) > 8 else ''}: too few excerpts, or they fire everywhere)"
    )
