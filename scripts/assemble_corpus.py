"""Packages that scripts/fetch_corpus.sh fetched to documents: one JSONL file per source, markup removed.

python scripts/assemble_corpus.py RAW OUT. A source whose package is not in RAW is left out. Its files have `id` and
`text` and are read by configs/data/packages.yaml and packages_docs.yaml.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

Documents = Iterator[tuple[str, str]]
MIN_CHARACTERS = 100
"""Shorter pages are tables of contents, redirections and the like."""


def bible(raw: Path) -> Documents:
    """The King James Bible, a chapter a document."""
    verses = map(json.loads, (raw / "bible" / "data" / "kjv.jsonl").open(encoding="utf-8"))
    for (book, chapter), group in itertools.groupby(verses, key=lambda verse: (verse["book"], verse["chapter"])):
        yield f"{book} {chapter}", f"{book} {chapter}\n\n" + " ".join(verse["text"].strip() for verse in group)


def brown(raw: Path) -> Documents:
    """The Brown corpus, a sample of 2,000 words a document, without its tags."""
    for path in sorted(raw.glob("c[a-r][0-9][0-9]")):
        yield path.name, untagged(path.read_text(encoding="utf-8"))


def untagged(text: str) -> str:
    """Running text of `word/tag` tokens: punctuation stands at its word, quotation marks are quotation marks."""
    lines = (" ".join(token.rpartition("/")[0] or token for token in line.split()) for line in text.splitlines())
    text = "\n".join(lines)
    text = re.sub(r"`` ?", '"', re.sub(r" ?''", '"', text))
    text = re.sub(r" ([,.;:?!)\]])", r"\1", re.sub(r"([(\[]) ", r"\1", text))
    text = re.sub(r"([?!;])\1", r"\1", text)  # the corpus has these twice
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def moby_dick(raw: Path) -> Documents:
    """Moby Dick, a chapter a document."""
    text = (raw / "data" / "data.txt").read_text(encoding="utf-8")
    for chapter in re.split(r"\n(?=CHAPTER \d+\.|Epilogue\n|ETYMOLOGY\.)", text):
        yield chapter.strip().partition("\n")[0][:60], chapter.strip()


def sources_of(pattern: str, leave_out: str = r"$^") -> Callable[[Path], Documents]:
    """Plain files, a document each: reStructuredText and AsciiDoc stay as they were written."""

    def read(raw: Path) -> Documents:
        for path in sorted(raw.glob(pattern)):
            if not re.search(leave_out, path.as_posix()):
                yield path.relative_to(raw).as_posix(), path.read_text(encoding="utf-8", errors="replace").strip()

    return read


def pages_of(pattern: str) -> Callable[[Path], Documents]:
    """HTML pages, a document each."""

    def read(raw: Path) -> Documents:
        for path in sorted(raw.glob(pattern)):
            yield path.relative_to(raw).as_posix(), page_text(path.read_text(encoding="utf-8", errors="replace"))

    return read


def perl(raw: Path) -> Documents:
    """Perl's manual, a page a document, without POD's commands."""
    for path in sorted(raw.glob("usr/share/perl/*/pod/*.pod")):
        yield path.stem, pod_text(path.read_text(encoding="utf-8", errors="replace"))


def pod_text(text: str) -> str:
    """Headings and items stay as text, X<code> as code."""
    text = re.sub(r"^=(?:head\d|item) +", "", text, flags=re.M)
    text = re.sub(r"^=(?:begin|end|for|over|back|cut|pod|encoding|item)\b.*\n?", "", text, flags=re.M)
    for _ in range(3):  # they are nested
        text = re.sub(r"\b[BCFILSXZ](?:<<+ (.*?) >>+|<([^<>]*)>)", lambda m: m[1] or m[2] or "", text, flags=re.S)
    text = text.replace("E<gt>", ">").replace("E<lt>", "<")
    return re.sub(r"\n{3,}", "\n\n", text).strip()


class _Page(HTMLParser):
    """Text of a page of DocBook, without navigation."""

    BLOCKS = frozenset(
        ["p", "div", "h1", "h2", "h3", "h4", "h5", "li", "dt", "dd", "tr", "pre", "table", "ul", "ol", "dl", "br"]
    )
    SKIPPED = re.compile(r"\b(navheader|navfooter|toc|docnav|lot|banner)\b")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._skipping: list[str] = []
        self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = " ".join(value or "" for key, value in attrs if key in ("class", "id"))
        if self._skipping or tag in ("head", "script", "style") or self.SKIPPED.search(named):
            if tag not in ("br", "img", "hr", "meta", "link", "col", "input"):  # these have no end
                self._skipping.append(tag)
        elif tag in self.BLOCKS:
            self.parts.append("\n")
            self._verbatim += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if self._skipping:
            if tag == self._skipping[-1]:
                self._skipping.pop()
        elif tag in self.BLOCKS:
            self.parts.append("\n")
            self._verbatim -= tag == "pre"

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self.parts.append(data if self._verbatim else re.sub(r"\s+", " ", data))


def page_text(html: str) -> str:
    """The text of an HTML page: blocks on lines of their own, navigation left out."""
    page = _Page()
    page.feed(html)
    lines = "".join(page.parts).split("\n")
    text = "\n".join(line.rstrip() if line.startswith("  ") else line.strip() for line in lines)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


# Directory of the package in RAW, and how it is read.
SOURCES: dict[str, tuple[str, Callable[[Path], Documents]]] = {
    "bible": ("bible", bible),
    "brown": ("brown", brown),
    "moby_dick": ("moby_dick", moby_dick),
    "linux": ("linux-doc-6.1", sources_of("usr/share/doc/*/html/_sources/**/*.rst.txt", r"/translations/")),
    "python": ("python3.11-doc", sources_of("usr/share/doc/python3.11/html/_sources/**/*.rst.txt")),
    "postgresql": ("postgresql-doc-15", pages_of("usr/share/doc/*/html/*.html")),
    "git": ("git-doc", sources_of("usr/share/doc/git-doc/**/*.txt")),
    "debian_handbook": ("debian-handbook", pages_of("usr/share/doc/debian-handbook/html/en-US/*.html")),
    "perl": ("perl-doc", perl),
}


def main(raw: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, (package, read) in SOURCES.items():
        if not (raw / package).is_dir():
            continue
        part, n, size, short = out / f"{name}.jsonl.part", 0, 0, 0
        with part.open("w", encoding="utf-8") as file:
            for id_, text in read(raw / package):
                if len(text) < MIN_CHARACTERS:
                    short += 1
                    continue
                file.write(json.dumps({"id": id_, "text": text}, ensure_ascii=False) + "\n")
                n, size = n + 1, size + len(text.encode())
        if not n:
            raise SystemExit(f"{raw / package} holds no documents of {name}: another version of the package?")
        part.replace(out / f"{name}.jsonl")
        print(
            f"{name}: {n:,} documents, {size / 1e6:.1f} MB; {short} of less than {MIN_CHARACTERS} characters left out"
        )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
