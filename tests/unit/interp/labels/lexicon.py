"""A WordNet of a few words, in the files' own format."""

from topklm.interp.labels.wordnet import CLASSES, POS

LICENCE = "  1 This software and database is being provided to you  \n"
TYPE = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}
SENSES = {
    # part of speech: lemma: [(class, times tagged), ...] in WordNet's order
    "noun": {
        "dog": [("noun.animal", 42), ("noun.person", 0)], "bread": [("noun.food", 9)], "cheese": [("noun.food", 3)],
        "saw": [("noun.artifact", 1)], "child": [("noun.person", 80)], "building": [("noun.artifact", 20)],
        "run": [("noun.act", 3)], "city": [("noun.location", 5)], "in": [("noun.quantity", 0)],
        "box": [("noun.artifact", 4)],
        "ash": [("noun.substance", 0), ("noun.plant", 0)], "state_of_war": [("noun.state", 0)],
    },
    "verb": {
        "see": [("verb.perception", 300)], "run": [("verb.motion", 50), ("verb.social", 60), ("verb.motion", 30)],
        "build": [("verb.creation", 90)], "dog": [("verb.motion", 1)], "make": [("verb.creation", 70)],
        "saw": [("verb.contact", 0)], "ash": [("verb.change", 0)],
    },
    "adj": {"red": [("adj.all", 12)], "nice": [("adj.all", 7)]},
    "adv": {"quickly": [("adv.all", 8)]},
}  # fmt: skip
EXCEPTIONS = {"noun": {"children": "child"}, "verb": {"saw": "see", "seen": "see", "ran": "run"}, "adj": {}, "adv": {}}


def write_lexicon(root, senses=SENSES, exceptions=EXCEPTIONS, counts="index.sense"):
    """Write the files to a directory; returns it."""
    root.mkdir(parents=True, exist_ok=True)
    tagged = []
    for pos in POS:
        data, index, offset = LICENCE, LICENCE, len(LICENCE)
        for lemma, found in sorted(senses.get(pos, {}).items()):
            offsets = []
            for order, (name, times) in enumerate(found, 1):
                line = f"{offset:08d} {CLASSES.index(name):02d} {pos[0]} 01 {lemma} 0 000 | a gloss; \xe9  \n"
                offsets.append(f"{offset:08d}")
                key = f"{lemma}%{TYPE[pos]}:{CLASSES.index(name):02d}:{order:02d}::"
                if counts == "index.sense":
                    tagged.append(f"{key} {offset:08d} {order} {times}\n")
                elif times:
                    tagged.append(f"{key} {order} {times}\n")
                data, offset = data + line, offset + len(line)
            n = len(offsets)
            index += f"{lemma} {pos[0]} {n} 2 @ ~ {n} 1 {' '.join(offsets)}  \n"
        (root / f"data.{pos}").write_text(data, encoding="latin-1")
        (root / f"index.{pos}").write_text(index, encoding="latin-1")
        if exceptions is not None:
            text = "".join(f"{form} {lemma}\n" for form, lemma in exceptions.get(pos, {}).items())
            (root / f"{pos}.exc").write_text(text)
    (root / counts).write_text("".join(sorted(tagged)))
    return root
