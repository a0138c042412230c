"""One self-contained page: statements, figures with their provenance, tables. No script, nothing from elsewhere.

The browser is told so too (`_POLICY`), since figures are files whose contents stand in the page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from topklm.report.table import Table

# Colours of the figures, light and dark. Those of the palette stay but for black and the darkest blue.
_COLOURS = {
    "#ffffff": ("paper", "#ffffff", "#15181c"), "#222222": ("ink", "#222222", "#e8e8e8"),
    "#444444": ("soft", "#444444", "#c4c8cc"), "#555555": ("faint", "#555555", "#aeb4ba"),
    "#666666": ("edge", "#666666", "#8d949b"), "#dddddd": ("grid", "#dddddd", "#343a41"),
    "#888888": ("shade", "#888888", "#9aa4ae"), "#000000": ("black", "#000000", "#f2f2f2"),
    "#0072b2": ("blue", "#0072b2", "#3aa0e0"),
}  # fmt: skip
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { color-scheme: light dark; LIGHT }
@media (prefers-color-scheme: dark) { :root { DARK } }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.5rem; font-size: 1.3rem; } h3 { font-size: 1.05rem; margin-bottom: .2rem; }
.says { border-left: 4px solid var(--blue); padding: .4rem 1rem; font-size: 1.05rem; }
.warns { border-left: 4px solid #d55e00; padding: .4rem 1rem; }
figure { margin: 1rem 0 2rem; } figure svg { width: 100%; height: auto; }
figcaption, .note { color: var(--faint); font-size: .85rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; max-width: 7rem; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n { white-space: nowrap; } td.t { min-width: 20rem; white-space: normal; }
td:first-child { white-space: nowrap; }
code { font: .85em/1.7 ui-monospace, monospace; border: 1px solid var(--grid); border-radius: 3px; padding: 0 .25em;
  white-space: pre-wrap; unicode-bidi: isolate; }
figcaption summary { font-size: inherit; font-weight: 400; margin: .2rem 0; }
summary { cursor: pointer; font-size: 1.05rem; font-weight: 600; margin: .8rem 0; }
nav a { margin-right: 1rem; } a { color: var(--blue); }
"""


@dataclass(frozen=True)
class Picture:
    """A figure on the page."""

    title: str
    svg: Path
    """The file that was saved."""
    text: str
    """What it shows, for those who do not see it and below it."""
    provenance: str
    """Where it comes from, a line a bundle."""


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    title: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[tuple[str, Sequence[Table]]] = field(default=())
    """Tables behind a line that opens them."""
    statements: Sequence[str] = ()
    """What the part shows, above its figures."""


def page(title: str, statements: Sequence[str], warnings: Sequence[str], sections: Sequence[Section]) -> str:
    """The page as HTML. All text is escaped; figures are inline SVG in the reader's light or dark colours."""
    light, dark = (" ".join(f"--{name[0]}: {name[i]};" for name in _COLOURS.values()) for i in (1, 2))
    style = _STYLE.replace("LIGHT", light).replace("DARK", dark)
    parts = [
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{escape(title)}</title>",
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">',
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<style>{style}</style></head><body>\n<h1>{escape(title)}</h1>",
        *(f"<p class=says>{escape(text)}</p>" for text in statements),
        *(f"<p class=warns>{escape(text)}</p>" for text in warnings),
        "<nav>" + "".join(f'<a href="#s{i}">{escape(s.title)}</a>' for i, s in enumerate(sections)) + "</nav>",
    ]
    figures = 0
    for i, section in enumerate(sections):
        parts.append(f"<section id=s{i}><h2>{escape(section.title)}</h2>")
        parts += [f"<p class=says>{escape(text)}</p>" for text in section.statements]
        for picture in section.pictures:
            parts.append(_figure(picture, f"f{figures}-"))
            figures += 1
        parts += [_table(table) for table in section.tables]
        for name, tables in section.folded:
            inner = "".join(map(_table, tables))
            state = " open" if name == section.folded[0][0] else ""
            parts.append(f"<details{state}><summary>{escape(name)}</summary>{inner}</details>")
        parts.append("</section>")
    return "\n".join(parts) + "\n</body></html>\n"


def _figure(picture: Picture, prefix: str) -> str:
    lines = "<br>".join(escape(line) for line in picture.provenance.split("\n"))
    told = f"<details><summary>where it comes from, as text</summary>{lines}</details>"
    label = escape(f"{picture.title}. {picture.text}", quote=True)
    svg = inline_svg(picture.svg.read_text(encoding="utf-8"), prefix)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return f"<figure>{svg}<figcaption>{escape(picture.text)}{told}</figcaption></figure>"


def inline_svg(svg: str, prefix: str) -> str:
    """A figure's SVG file as an element of a page: ids of its own, colours that follow light and dark."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Only what is referred to keeps its id: equal images have equal ones, and the others are not needed.
    needed = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in needed else "", svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}", svg)
    # A path without a colour of its own, as the glyphs are, is black in SVG: they take their group's, which has one.
    return re.sub(
        r"(fill|stroke): ?(#[0-9a-fA-F]{6})",
        lambda m: f"{m[1]}: var(--{_COLOURS[c][0]})" if (c := m[2].lower()) in _COLOURS else m[0],
        svg,
    )


def _table(table: Table) -> str:
    head = "".join(f"<th{' class=n' if table.is_number(c) else ''}>{escape(c.title)}</th>" for c in table.columns)
    body = []
    for row in table.rows:
        cells = []
        for column in table.columns:
            value = row.get(column.key)
            if isinstance(value, list):
                cells.append("<td class=t>" + " ".join(f"<code>{escape(piece)}</code>" for piece in value) + "</td>")
            else:
                kind = " class=n" if table.is_number(column) else ""
                cells.append(f"<td{kind}>{escape(table.cell(row, column))}</td>")
        body.append("<tr>" + "".join(cells) + "</tr>")
    rows = f"<div class=scroll><table><tr>{head}</tr>{''.join(body)}</table></div>" if body else "<p>None.</p>"
    return f"<h3>{escape(table.title)}</h3><p class=note>{escape(table.note)}</p>{rows}"
