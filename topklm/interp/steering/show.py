"""Steered texts on a terminal, beside those of the model as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from topklm.generate.text import TokenText
from topklm.interp.steering.plan import Plan, Target
from topklm.interp.steering.samples import Sample, SampleStore

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

COLUMN = 36
"""Characters that a text needs beside others; where there is less room, texts stand below each other."""
_SAFE: dict[int, int | str] = {**{i: 0x2400 + i for i in range(32)}, **dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)}
_SAFE |= {ord("\n"): "⏎ ", ord("\t"): " "}


def show_texts(console: Console, plan: Plan, store: SampleStore, prompt: str) -> None:
    """A table for each steered neuron: its texts at each offset, the unsteered of the same random numbers first."""
    for target in plan.targets:
        console.print(texts_table(plan, target, store, prompt, console.width))


def texts_table(plan: Plan, target: Target, store: SampleStore, prompt: str, width: int) -> Table:
    """The texts of one neuron, side by side where `width` allows. Tokens of its set are emphasised."""
    from rich import box
    from rich.table import Table

    unsteered = store.get(None, 0.0) or []
    columns = [("unsteered", unsteered)]
    columns += [(_name(target, offset), store.get(target.neuron, offset) or []) for offset in target.offsets]
    marked = set() if target.concept is None else set(target.concept.tokens.tolist())
    prompt_ids = plan.tokenizer.encode(prompt)

    def shown(sample: Sample) -> Text:
        return _text(plan, prompt_ids, sample, marked)

    table = Table(
        title=_title(plan, target), title_justify="left", box=box.SIMPLE_HEAD, show_lines=True, padding=(0, 1)
    )
    if len(columns) * COLUMN <= width:
        for name, _ in columns:
            table.add_column(name, ratio=1, overflow="fold")
        for row in zip(*(samples for _, samples in columns), strict=True):
            table.add_row(*map(shown, row))
        return table
    table.add_column("offset", no_wrap=True)
    table.add_column("text", overflow="fold")
    for number in range(len(unsteered)):
        for name, samples in columns:
            table.add_row(name, shown(samples[number]))
    return table


def _title(plan: Plan, target: Target) -> str:
    parts = [f"neuron {target.neuron} (the paper's {target.neuron.layer + 1}:{target.neuron.index})"]
    if target.scale is not None:
        parts.append(target.scale.words)
    if target.concept is not None and plan.bundle is not None:
        pieces = plan.bundle.tokens
        some = target.concept.tokens[:8].tolist()
        named = [plan.tokenizer.piece(token) if pieces is None else pieces[token] for token in some]
        parts.append("responds to " + " ".join(piece.strip() for piece in named))
    from rich.markup import escape

    return escape(", ".join(parts).translate(_SAFE))


def _name(target: Target, offset: float) -> str:
    multiple = target.multiple(offset)
    return f"{offset:+.3g}" + ("" if multiple is None else f" = {multiple:.3g}x")


def _text(plan: Plan, prompt_ids: list[int], sample: Sample, marked: set[int]) -> Text:
    from rich.text import Text

    if sample.finish_reason == "stop":  # the text ends before the tokens of the stop text
        return Text(sample.text.translate(_SAFE))
    text, tokens = Text(), TokenText(plan.tokenizer, prompt_ids)
    for token in sample.ids:
        text.append(tokens.push([token]).translate(_SAFE), "bold magenta" if token in marked else "")
    text.append(tokens.rest().translate(_SAFE))
    return text
