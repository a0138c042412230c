"""Find neurons and give them names, from statistics bundles:

    python -m apps.label candidates bundle=BUNDLE                      # worth steering: coherent, persistent
    python -m apps.label words bundle=A bundle=B wordnet=data/wordnet  # top tokens, and classes of words by WordNet
    python -m apps.label llm bundle=BUNDLE neurons=4:17 base_url=URL model=NAME    # a language model's words, scored

Names are added to labels.jsonl beside the bundle, which the report on neurons and later candidates show; none is ever
erased. `python -m apps.label MODE --help` tells every key. WordNet: bash scripts/fetch_wordnet.sh. See docs/labels.md.
"""

from __future__ import annotations

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.label MODE bundle=PATH")

import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from apps._program import repeated, run, say, torch_device
from topklm.errors import ConfigError, Problem
from topklm.interp.labels import CandidatesConfig, LlmConfig, WordsConfig

if TYPE_CHECKING:
    from topklm.bundles import Bundle

log = logging.getLogger("topklm.interp")


def candidates(config: CandidatesConfig) -> None:
    from topklm.interp.candidates import find_candidates
    from topklm.report.neurons import read_measured
    from topklm.report.result import Result, write_result

    (measured,) = read_measured([config.bundle], config.preset)
    found = find_candidates(config, measured)
    left = ", ".join(f"{row['together']:,} {row['criterion']}" for row in found.funnel.rows[1:])
    statement = f"{measured.label}: of {found.funnel.rows[0]['alone']:,} neurons {left}."
    out = Path(config.out) if config.out is not None else Path(config.bundle) / "candidates"
    settings = ", ".join(f"{key} {value}" for key, value in asdict(config).items() if key not in ("bundle", "out"))
    result = Result(
        kind="candidates", title="Candidates for steering", statements=[statement],
        provenance=[measured.provenance(), f"settings: {settings}"],
        tables={"candidates": found.table, "criteria": found.funnel},
        data={
            "neurons": found.names, "found": found.found, "settings": asdict(config), "bundle": measured.bundle.sha256,
        },
    )  # fmt: skip
    paths = write_result(result, out)
    say([statement])
    for row in found.table.rows[:20]:
        line = f"{row['rank']:3d}  {row['name']:>8}  {row['coherence']:.3f}  {row['density']:7.2%}"
        say([f"{line} {' '.join(row['tokens'])}"])
    say([], [paths[0]])


def words(config: WordsConfig) -> None:
    from topklm.bundles import NamedBundle
    from topklm.bundles.labels import LABELS, append_labels
    from topklm.bundles.named import named
    from topklm.interp.labels.word_labels import class_labels, class_lines, token_lines
    from topklm.interp.labels.word_report import classed_model, words_result
    from topklm.interp.labels.wordnet import read_lexicon
    from topklm.interp.progress import PassProgress
    from topklm.optional import require
    from topklm.report.result import write_result

    lexicon = None
    if config.wordnet is not None:
        require("scipy.stats", "topklm[interp]")
        require("matplotlib", "topklm[plots]")
        lexicon = read_lexicon(config.wordnet)
    bundles = _open(config)
    found = []
    for bundle in bundles:
        lines = token_lines(bundle, config.top_tokens, config.min_count)
        if lexicon is not None:
            neurons = len(bundle.layers) * bundle.meta.model.dim
            with PassProgress(f"words {bundle.path.name}", neurons, True, unit="neurons") as progress:
                found.append(class_labels(config, bundle, lexicon, progress.advance))
            lines += class_lines(config, bundle, lexicon, found[-1])
        added = append_labels(bundle.path, lines)
        told = f"{bundle.path / LABELS}: {added:,} labels added, {len(lines) - added:,} were there"
        say([told])
    if lexicon is None:
        log.info(
            "labels from top tokens only; for classes of words: bash scripts/fetch_wordnet.sh, wordnet=data/wordnet"
        )
        return
    names = named([NamedBundle(bundle=bundle, name=bundle.meta.model.run) for bundle in bundles])
    models = [classed_model(config, name, each) for name, each in zip(names, found, strict=True)]
    result = words_result(config, models, found, lexicon)
    say(result.statements)
    out = Path(config.out) if config.out is not None else bundles[0].path / "labels"
    say([], [write_result(result, out)[0]])


def _open(config: WordsConfig) -> list[Bundle]:
    """The bundles, all problems at once."""
    from topklm.bundles import incomparable, open_bundles

    bundles, problems = open_bundles(config.bundle)
    reasons = [] if problems else incomparable(bundles)
    for reason in reasons:
        if config.force:
            log.warning("%s: their labels do not compare", reason)
        else:
            problems.append(Problem("bundle", f"{reason}; label them one by one, or all the same with force=true"))
    if problems:
        raise ConfigError(problems)
    return bundles


def llm(config: LlmConfig) -> None:
    from topklm.bundles.labels import LABELS, append_labels
    from topklm.interp.labels.llm_client import ChatClient, read_key
    from topklm.interp.labels.llm_report import llm_lines, llm_result
    from topklm.interp.labels.llm_run import ask_and_score, gather, plan
    from topklm.interp.progress import PassProgress
    from topklm.optional import require
    from topklm.report.result import write_result

    require("scipy.stats", "topklm[interp]")  # now, and not after the answers are paid for
    require("matplotlib", "topklm[plots]")
    cache = Path(config.cache) if config.cache is not None else Path(config.bundle) / "llm_cache"
    client = ChatClient(
        config.base_url, config.model, read_key(config.key_env), cache, temperature=config.temperature,
        timeout=config.timeout, retries=config.retries,
    )  # fmt: skip
    bundle, cases = gather(config, torch_device(config.device))
    planned = plan(config, client, cases)
    say([planned.sentence(config)])
    calls = planned.label_calls + planned.score_calls
    if calls and not config.yes:
        say(["nothing was sent; the same command with yes=true goes on"])
        return
    with PassProgress(f"ask {config.model}", calls + planned.cached, True, unit="calls") as progress:
        scored, used = ask_and_score(config, client, cases, progress.advance)
    lines = llm_lines(config, bundle, scored)
    added = append_labels(bundle.path, lines)
    result = llm_result(config, bundle, scored, used)
    say(result.statements)
    out = Path(config.out) if config.out is not None else bundle.path / "labels_llm"
    told = f"{bundle.path / LABELS}: {added:,} labels added; written: {write_result(result, out)[0]}"
    say([told])


MODES = {"candidates": (candidates, CandidatesConfig), "words": (words, WordsConfig), "llm": (llm, LlmConfig)}


if __name__ == "__main__":
    mode, args = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if mode not in MODES:
        print(__doc__)
        if mode not in ("", "-h", "--help"):
            print(f"label: {mode!r} is not one of {', '.join(MODES)}", file=sys.stderr)
        sys.exit(0 if mode in ("-h", "--help") else 2)
    main, schema = MODES[mode]
    run(main, schema, f"label {mode}", __doc__ or "", repeated(args, "bundle") if mode == "words" else args)
