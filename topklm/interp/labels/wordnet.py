"""WordNet's lexicographer files: which of 45 classes (noun.food, verb.motion, ...) an English word belongs to.

Reads WordNet 3.0 or 3.1 as its packages have it (wndb(5WN)): `index.POS` (each lemma's senses), `data.POS` (each
sense's lexicographer file), how often each sense was tagged in text (`index.sense`, or `cntlist.rev`), and, where there
are, the exception lists `POS.exc`. scripts/fetch_wordnet.sh brings a copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from topklm.errors import ConfigError, DataError, Problem

FETCH = "bash scripts/fetch_wordnet.sh"
CLASSES = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute",
    "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant", "noun.possession",
    "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time",
    "verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition", "verb.consumption",
    "verb.contact", "verb.creation", "verb.emotion", "verb.motion", "verb.perception", "verb.possession",
    "verb.social", "verb.stative", "verb.weather", "adj.ppl",
)  # fmt: skip
"""Names of the lexicographer files by their number (lexnames(5WN))."""
POS = ("noun", "verb", "adj", "adv")
SUFFIXES = {
    "noun": (("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
             ("ies", "y")),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip
"""WordNet's own rules of detachment (morphy(7WN))."""
FUNCTION_WORDS = frozenset(
    """a an the this that these those some any no every each either neither both all half such what whatever
    which whichever whose i me my mine myself we us our ours ourselves you your yours yourself yourselves he him
    his himself she her hers herself it its itself they them their theirs themselves who whom one ones someone
    somebody something anyone anybody anything everyone everybody everything nobody nothing none other others
    another much many more most few fewer less least several of in to for with on at from by about as into like
    through after over between out against during without before under around among above below across behind
    beyond plus except but up down off near upon within along toward towards per via than since until till
    despite throughout onto beside besides amid amidst amongst concerning regarding whereas and or nor so yet if
    because while although though unless whether lest once be am is are was were been being have has had having
    do does did doing done will would shall should can could may might must cannot ought need dare not never else
    there here where when why how then now thus hence also too very just only even still again ever always
    however therefore moreover whereby wherein thereby therein thereof whereof hereby herein
    """.split()  # noqa: SIM905 - readable as prose, not as quoted words
)
"""English words of grammar. WordNet has no senses of them as such, but has "in" as a metal, "as" as a poison, "us" as a
country and "may" as a month: left in, they would be the most frequent members of those classes."""


@dataclass(frozen=True)
class Entry:
    """What a word is taken for."""

    lemma: str
    """Its base form in WordNet."""
    number: int
    """Its class: an index of `CLASSES`."""


class Lexicon:
    """The words of one copy of WordNet. Make it with `read_lexicon`."""

    def __init__(
        self,
        senses: dict[str, dict[str, list[int]]],
        tagged: dict[tuple[str, int], int],
        exceptions: dict[str, dict[str, list[str]]],
        sha256: str = "",
    ) -> None:
        """senses: by part of speech and lemma the classes of its senses, in WordNet's order; tagged: how often a lemma
        stood in tagged text with a sense of a class; exceptions: by part of speech and form its irregular lemmas."""
        self._senses, self._tagged, self._exceptions = senses, tagged, exceptions
        self.sha256 = sha256
        """Over the files that were read."""
        self.has_exceptions = any(exceptions.values())
        """Whether irregular forms (children, went) are known."""

    def lookup(self, word: str) -> Entry | None:
        """The class of a word, in any case and inflection, and the lemma that it has it by; None for what is not in
        WordNet and for `FUNCTION_WORDS`.

        A word of several senses counts once, in its most frequent class: of all (lemma, class) that it can be, the
        one that was tagged most often in WordNet's corpus. Equal ones, most of them never tagged: the earlier sense,
        then noun, verb, adjective, adverb.
        """
        word = word.lower()
        if word in FUNCTION_WORDS:
            return None
        best: tuple[int, int] | None = None
        entry = None
        for pos in POS:
            for lemma in self.base_forms(word, pos):
                for order, number in enumerate(self._senses[pos][lemma]):
                    rank = (-self._tagged.get((lemma, number), 0), order)
                    if best is None or rank < best:
                        best, entry = rank, Entry(lemma, number)
        return entry

    def base_forms(self, word: str, pos: str) -> list[str]:
        """The lemmas of one part of speech that a lower-case form can be: itself, its irregular ones, and only where it
        has none of these, what is left without an ending."""
        known = self._senses[pos]
        listed = self._exceptions[pos].get(word, [])
        forms = [word, *listed]
        if not listed:
            forms += [word[: -len(end)] + new for end, new in SUFFIXES[pos] if word.endswith(end)]
        return [form for form in dict.fromkeys(forms) if form in known]


@cache
def read_lexicon(directory: str) -> Lexicon:
    """Read WordNet from a directory, or from `dict` in it. Raises `ConfigError` with all files that are missing,
    `DataError` for one that is not WordNet's."""
    root = next((d for d in (Path(directory) / "dict", Path(directory)) if d.is_dir()), None)
    if root is None:
        raise ConfigError([Problem("wordnet", f"{directory} does not exist; fetch it: {FETCH} {directory}")])
    needed = [root / f"{kind}.{pos}" for pos in POS for kind in ("index", "data")]
    counts = next((root / name for name in ("index.sense", "cntlist.rev") if (root / name).is_file()), None)
    missing = [path.name for path in needed if not path.is_file()]
    missing += [] if counts else ["index.sense or cntlist.rev"]
    if missing or counts is None:
        raise ConfigError([Problem("wordnet", f"{root} lacks {', '.join(missing)}; fetch it: {FETCH} {directory}")])
    digest = hashlib.sha256()

    def lines(path: Path) -> Iterator[str]:
        content = path.read_bytes()
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(content).digest())
        for line in content.decode("latin-1").split("\n"):
            if line and not line.startswith("  "):  # the licence stands indented at the top
                yield line

    try:
        senses = {}
        for pos in POS:
            numbers = {line[:8]: int(line[9:11]) for line in lines(root / f"data.{pos}")}
            senses[pos] = {
                fields[0]: [numbers[offset] for offset in fields[-int(fields[2]) :]]
                for fields in (line.split() for line in lines(root / f"index.{pos}"))
            }
        tagged: dict[tuple[str, int], int] = {}
        for fields in (line.split() for line in lines(counts)):
            lemma, sense = fields[0].split("%")
            key = (lemma, int(sense.split(":")[1]))
            tagged[key] = tagged.get(key, 0) + int(fields[-1])
        exceptions: dict[str, dict[str, list[str]]] = {pos: {} for pos in POS}
        for pos in POS:
            if (root / f"{pos}.exc").is_file():
                for form, *lemmas in (line.split() for line in lines(root / f"{pos}.exc")):
                    exceptions[pos].setdefault(form, []).extend(lemmas)
        if not all(0 <= n < len(CLASSES) for each in senses.values() for found in each.values() for n in found):
            raise ValueError("a lexicographer file of an unknown number")
    except (ValueError, KeyError, IndexError) as error:
        raise DataError(f"{root} is not WordNet's database ({error!r}); fetch it again: {FETCH} {directory}") from error
    return Lexicon(senses, tagged, exceptions, digest.hexdigest())
