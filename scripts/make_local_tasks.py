"""Three evaluation tasks of the held-out part of prepared data, for lm-evaluation-harness without a hub.

    python scripts/make_local_tasks.py data/quickstart data/quickstart/tasks [--limit 500]

last_word: LAMBADA's form (arXiv:1606.06031). A passage of whole sentences, 60 to 120 words, whose last word is to be
predicted: a lowercase word of four letters or more that stands in the passage before. Unlike LAMBADA's, the
passages are not chosen by people who needed the whole of one; many of these words are likely by the last sentence too.

minimal_pairs: BLiMP's form (arXiv:1912.00582). A sentence of 8 to 30 words, and the same with two neighbouring words
swapped; the sentence itself should be the more probable text. The place of the swap is drawn by a hash of the sentence,
among neighbours that are different lowercase words. Chance is 1/2.

documents: WikiText's form. Whole held-out documents, perplexity by word, byte and token in rolling windows.

All are functions of the held-out text alone: the same data give the same files. Evaluate with
`python -m apps.eval config=configs/eval/quickstart.yaml ckpt=RUN tasks_dir=...`; docs/evaluation.md says more.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from topklm.data.held_out import HeldOut, open_held_out
from topklm.errors import DataError, TopklmError

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")
PLAIN_WORD = re.compile(r"[a-z]+")

LAST_WORD_YAML = """\
# The last word of a passage from {origin}.
# Made by scripts/make_local_tasks.py, which says how the passages were chosen.
task: last_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: last_word.jsonl}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{passage}}}}"
doc_to_target: "{{{{' ' + word}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""

MINIMAL_PAIRS_YAML = """\
# A sentence from {origin}, or the same with two neighbouring words swapped?
# Made by scripts/make_local_tasks.py, which says how the sentences were chosen.
task: minimal_pairs
dataset_path: json
dataset_kwargs: {{data_files: {{test: minimal_pairs.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: ""
target_delimiter: ""
doc_to_choice: "{{{{[good, bad] if label == 0 else [bad, good]}}}}"
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""

DOCUMENTS_YAML = """\
# Documents of {origin}, as a whole.
# Made by scripts/make_local_tasks.py.
task: documents
dataset_path: json
dataset_kwargs: {{data_files: {{test: documents.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
metadata: {{version: 1.0}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="prepared data (out_dir of apps.prepare)")
    parser.add_argument("out", type=Path, help="directory of the tasks")
    parser.add_argument("--limit", type=int, default=500, help="documents of each task at most")
    args = parser.parse_args()
    held_out = open_held_out(args.data)
    origin = f"the held-out part of {', '.join(held_out.names)} ({held_out.fingerprint[:12]})"
    args.out.mkdir(parents=True, exist_ok=True)
    texts = list(documents(held_out))
    sentences = [sentences_of(text) for text in texts]
    tasks: list[tuple[str, Iterator[dict[str, Any]], str]] = [
        ("documents", ({"text": text} for text in texts), DOCUMENTS_YAML),
        ("last_word", (p for s in sentences for p in last_words(s)), LAST_WORD_YAML),
        ("minimal_pairs", (p for s in sentences for p in minimal_pairs(s)), MINIMAL_PAIRS_YAML),
    ]
    for name, made, yaml in tasks:
        found = list(made)
        if not found:
            raise DataError(f"{args.data} has too little held-out text for {name}; prepare more of it")
        # Evenly over all documents, where there are more than are wanted.
        n = min(args.limit, len(found))
        lines = [found[i * len(found) // n] for i in range(n)]
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (args.out / f"{name}.jsonl").write_text(content, encoding="utf-8")
        (args.out / f"{name}.yaml").write_text(yaml.format(origin=origin), encoding="utf-8")
        print(f"{args.out / name}.yaml: {n} of {len(found)} documents")


def documents(held_out: HeldOut) -> Iterator[str]:
    """The texts of all held-out documents, source by source."""
    for name, array in held_out.arrays.items():
        for start, end in itertools.pairwise(held_out.offsets[name].tolist()):
            yield held_out.tokenizer.decode(array.read(start, end).tolist())


def sentences_of(text: str) -> list[list[str]]:
    """The sentences of a text as lists of words with their punctuation. Only those that look whole."""
    found = [sentence.split() for sentence in SENTENCE_END.split(" ".join(text.split()))]
    return [words for words in found if words and words[-1][-1] in ".!?"]


def last_words(sentences: Iterable[list[str]]) -> Iterator[dict[str, str]]:
    """Passages, and the word that follows each. No sentence is in two."""
    passage: list[list[str]] = []
    for sentence in sentences:
        passage.append(sentence)
        while sum(map(len, passage)) > 120:
            del passage[0]
        words = [word for part in passage for word in part]
        last = words[-1].rstrip(".!?") if words else ""
        before = {word.strip(".,;:!?\"'()") for word in words[:-1]}
        if len(words) >= 60 and len(last) >= 4 and PLAIN_WORD.fullmatch(last) and last in before:
            yield {"passage": " ".join(words[:-1]), "word": last}
            passage = []


def minimal_pairs(sentences: Iterable[list[str]]) -> Iterator[dict[str, str | int]]:
    """Sentences and their swapped forms, with the place of the right one."""
    for words in sentences:
        places = [
            i
            for i, (a, b) in enumerate(itertools.pairwise(words))
            if a != b and PLAIN_WORD.fullmatch(a) and PLAIN_WORD.fullmatch(b)
        ]
        if not (8 <= len(words) <= 30 and places):
            continue
        drawn = int.from_bytes(hashlib.sha256(" ".join(words).encode()).digest()[:8], "big")
        i = places[(drawn >> 1) % len(places)]
        swapped = [*words[:i], words[i + 1], words[i], *words[i + 2 :]]
        yield {"good": " ".join(words), "bad": " ".join(swapped), "label": drawn & 1}


if __name__ == "__main__":
    try:
        main()
    except TopklmError as error:
        print(f"make_local_tasks: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
