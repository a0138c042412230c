"""The prepared sources of a run, opened and checked together, before any process group or GPU is touched."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from topklm.data.config import DataConfig
from topklm.data.expectations import contradictions, tokenizer_file_is_missing, unprepared_lingua
from topklm.data.held_out import HeldOut
from topklm.data.order import ORDER_VERSION, SampleOrder, n_unused_tokens, n_windows
from topklm.data.shards import Manifest, read_manifest
from topklm.data.split import BY_FILES
from topklm.data.token_array import TokenArray
from topklm.errors import DataError

PREPARE = "python -m apps.prepare config=FILE"


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """Tokens of all sources of a run and the order in which training reads them. Make it with `open_data`."""

    config: DataConfig
    """What it was opened with."""
    manifests: dict[str, Manifest]
    """By source, in sorted order: the numbering of the sources everywhere."""
    train: dict[str, TokenArray]
    """Training tokens by source."""
    val: dict[str, TokenArray]
    """Held-out tokens by source."""

    @property
    def names(self) -> list[str]:
        """The sources; their place in this list is their number in batches."""
        return list(self.manifests)

    @property
    def seq_len(self) -> int:
        return self.config.seq_len

    @property
    def tokenizer_dir(self) -> Path:
        """Directory of the tokenizer that all sources were prepared with."""
        return Path(self.config.root_dir) / self.names[0] / "tokenizer"

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return int(self.manifests[self.names[0]].tokenizer["vocab_size"] or 0)

    @cached_property
    def weights(self) -> dict[str, float]:
        """What the numbers of sequences from each source are proportional to."""
        return self._weights_of_documents() if self.config.weights_of == "documents" else self.config.sources

    def _weights_of_documents(self) -> dict[str, float]:
        """Sequences in proportion to the tokens of so many documents of each source."""
        return {
            name: weight * len(self.train[name]) / self.train[name].n_documents
            for name, weight in self.config.sources.items()
        }

    @property
    def shares(self) -> dict[str, float]:
        """The share of the sequences that comes from each source; they sum to 1."""
        return _normalised(self.weights)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over all that decides which tokens sample n holds. The batch size is not part of it."""
        decides = {
            "order": ORDER_VERSION,
            "sources": {name: manifest.fingerprint() for name, manifest in self.manifests.items()},
            "shares": self.shares,
            "seed": self.config.seed,
            "seq_len": self.config.seq_len,
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    @cached_property
    def held_out(self) -> HeldOut:
        """The held-out part, for validation."""
        return HeldOut(arrays=self.val, tokenizer_dir=self.tokenizer_dir)

    def order(self) -> SampleOrder:
        """A new order of the samples (it caches what it last used, so every thread takes its own)."""
        windows = {name: n_windows(len(tokens), self.seq_len) for name, tokens in self.train.items()}
        return SampleOrder(windows, self.weights, self.config.seed)

    def summary(self) -> list[str]:
        """One line for each source, for the log: its tokens, and the tail that is in no window. What could not be
        checked follows."""
        lines = [
            f"{name}: {len(tokens):,} tokens in {tokens.n_documents:,} documents, "
            f"{n_windows(len(tokens), self.seq_len):,} windows of {self.seq_len} "
            f"({n_unused_tokens(len(tokens), self.seq_len)} tokens at the end fill none), "
            f"{len(self.val[name]):,} held-out tokens, {self.shares[name]:.1%} of the batches"
            for name, tokens in self.train.items()
        ]
        by_files = [name for name, manifest in self.manifests.items() if manifest.split == BY_FILES]
        if by_files:
            lines.append(
                f"{', '.join(by_files)}: held out are the documents of *.val.jsonl; whether some of them are trained "
                "on as well was not looked for"
            )
        if self.config.weights_of == "sequences" and len(self.manifests) > 1 and self._is_of_lingua():
            others = ", ".join(f"{name} {x:.1%}" for name, x in _normalised(self._weights_of_documents()).items())
            lines.append(f"in Lingua the weights are of documents, which would be {others}: data.weights_of=documents")
        if tokenizer_file_is_missing(self.config):
            lines.append(f"data.tokenizer.path {self.config.tokenizer.path} is not there, so it was not compared")
        return lines

    def _is_of_lingua(self) -> bool:
        return any(manifest.origin.get("kind") == "lingua" for manifest in self.manifests.values())


def open_data(config: DataConfig) -> TrainData:
    """Open all prepared sources of a configuration. Raises one `DataError` with everything that is wrong."""
    root = Path(config.root_dir)
    if not root.is_dir():
        raise DataError(
            f"data.root_dir {root} does not exist; prepare the sources first: {PREPARE} out_dir={root} (if you have "
            "Meta Lingua's JSONL files, give their directory as data.root_dir: the answer is the command for them)"
        )
    problems: list[str] = []
    unprepared, advice = unprepared_lingua(config)
    if unprepared:
        problems.append(advice)
    manifests: dict[str, Manifest] = {}
    train: dict[str, TokenArray] = {}
    val: dict[str, TokenArray] = {}
    for name in sorted(config.sources.keys() - unprepared):
        if not (root / name).is_dir():
            problems.append(f"source {name} is not in {root}{_nearest(name, root)}; prepare it: {PREPARE}")
            continue
        try:
            manifests[name] = read_manifest(root / name)
            train[name] = TokenArray(root / name, manifests[name], "train")
            val[name] = TokenArray(root / name, manifests[name], "val")
            if config.verify:
                train[name].verify()
                val[name].verify()
        except DataError as error:
            problems.append(str(error))
            continue
        if n_windows(len(train[name]), config.seq_len) < 1:
            problems.append(
                f"source {name} has {len(train[name])} training tokens, too few for one window of data.seq_len + 1 = "
                f"{config.seq_len + 1}; use a smaller data.seq_len or more documents"
            )
    problems += _tokenizer_problems(manifests)
    problems += _split_problems(manifests)
    problems += contradictions(config, manifests)
    if not config.sources:
        problems.append("data.sources is empty")
    if problems:
        head = "" if len(problems) == 1 else f"{len(problems)} problems with the prepared data:\n  - "
        raise DataError(head + "\n  - ".join(problems))
    return TrainData(config=config, manifests=manifests, train=train, val=val)


def _normalised(weights: dict[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _tokenizer_problems(manifests: dict[str, Manifest]) -> list[str]:
    problems = [
        f"the manifest of source {name} lacks its tokenizer's sha256 or vocab_size; prepare it again: {PREPARE}"
        for name, manifest in manifests.items()
        if not (
            isinstance(manifest.tokenizer.get("sha256"), str) and isinstance(manifest.tokenizer.get("vocab_size"), int)
        )
    ]
    hashes = {name: str(manifest.tokenizer.get("sha256")) for name, manifest in manifests.items()}
    if len(set(hashes.values())) > 1:
        shown = ", ".join(f"{name} {sha[:12]}" for name, sha in hashes.items())
        problems.append(f"the sources have different tokenizers ({shown}); prepare them with one: {PREPARE}")
    return problems


def _split_problems(manifests: dict[str, Manifest]) -> list[str]:
    """Pairs of sources where the training part of one may hold a text that the other holds out.

    Equal texts are on one side only under one rule. With one salt the held-out sets are nested (a larger
    val_fraction adds to them), so it is the source with the smaller fraction that trains on held-out texts of the
    other; with different salts it is either. A source that holds nothing out cannot be leaked from.
    """

    def may_leak(trained: Manifest, held_out: Manifest) -> bool:
        if not any(shard.split == "val" for shard in held_out.shards):
            return False
        a, b = trained.split, held_out.split
        if BY_FILES in (a, b):  # whoever made the files answers for them; `summary` says so
            return False
        share_a, share_b = a.get("val_fraction"), b.get("val_fraction")
        same_hash = all(a.get(key) == b.get(key) for key in ("rule", "salt"))
        if same_hash and isinstance(share_a, int | float) and isinstance(share_b, int | float):
            return share_a < share_b
        return a != b

    pairs = [(a, b) for a in manifests for b in manifests if a != b and may_leak(manifests[a], manifests[b])]
    if not pairs:
        return []
    rules = ", ".join(
        f"{name}: val_fraction {manifests[name].split.get('val_fraction')}, salt {manifests[name].split.get('salt')!r}"
        for name in sorted({name for pair in pairs for name in pair})
    )
    leaks = "; ".join(f"{a} trains on texts that {b} may hold out" for a, b in pairs[:5])
    more = f" and {len(pairs) - 5} more" if len(pairs) > 5 else ""
    return [
        f"the sources were divided into train and held-out by different rules ({rules}): {leaks}{more}; prepare them "
        f"with one val_fraction and split_salt: {PREPARE}"
    ]


def _nearest(name: str, root: Path) -> str:
    there = sorted(path.parent.name for path in root.glob("*/manifest.json"))
    near = difflib.get_close_matches(name, there, n=1)
    if near:
        return f" (did you mean {near[0]}?)"
    return f" (there: {', '.join(there)})" if there else ""
