"""The statistics of one layer by their definitions: token by token, in Python and float64."""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from topklm.bundles import (
    Corpus,
    CorpusPart,
    LayerStats,
    Made,
    Meta,
    ModelSource,
    Reading,
    Settings,
    Sketch,
    TokenTable,
)  # fmt: skip
from topklm.bundles.exponent import N_CODES, STRATA, STRATUM_LOW

SETTINGS = Settings(near_miss=0.1, top_contexts=3, sample_contexts=2, positive_part=True, token_fired=True)


@dataclass
class Tokens:
    """What one layer did on n tokens."""

    types: np.ndarray
    """[n] token types"""
    positions: np.ndarray
    """[n], no two equal"""
    values: np.ndarray
    """[n, N] activations"""
    fired: np.ndarray
    """bool [n, N]"""
    next_fired: np.ndarray | None = None
    pre: np.ndarray | None = None
    """[n, N] what entered the selection; None in a dense layer"""
    selected: np.ndarray | None = None
    runs: np.ndarray | None = None
    """[n, N] in how many layers in a row, this one the last, the neuron fired; None: this is layer 0"""
    layer: int = 0
    extra: dict = field(default_factory=dict)

    def __getitem__(self, rows):
        pick = {k: v[rows] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **pick)


def code(value):
    """Bin of one number, from its float32 rounding, by logarithms instead of bits."""
    with np.errstate(over="ignore"):
        value = float(np.float32(value))
    sign = 256 if value < 0 or (value == 0 and math.copysign(1, value) < 0) else 0
    if value == 0 or abs(value) < 2.0**-126:
        return sign
    if math.isinf(value):
        return sign + 255
    return sign + 127 + math.frexp(abs(value))[1] - 1


def hash_key(position, neuron):
    """Priority of a context in the sample, as docs/bundles.md defines it."""

    def mix(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    product = (mix(position) >> 32) * ((mix(neuron) >> 32) | 1) % 2**32
    return product - 2**32 if product >= 2**31 else product


def brute(tokens, vocab, settings=SETTINGS):
    """`LayerStats` of the tokens."""
    n, width = tokens.values.shape
    sparse = tokens.pre is not None
    tables = {name: np.zeros((vocab, width), t) for name, t in (("sum", float), ("positive", float), ("fired", int))}
    s = {name: np.zeros(width) for name in ("sum", "square_sum", "positive_sum")}
    c = {name: np.zeros(width, np.int64) for name in ("fired", "fired_next", "near_misses")}
    maximum, last = np.full(width, -np.inf), np.full(width, -1)
    histogram, margins, l0 = np.zeros((N_CODES, width), np.int64), [], np.zeros(width + 1, np.int64)
    positive = {i: [] for i in range(width)}
    runs = np.zeros((tokens.layer + 1, width), np.int64)
    for t in range(n):
        v, row = int(tokens.types[t]), tokens.values[t].astype(np.float64)
        l0[int(tokens.fired[t].sum())] += 1
        for i in range(width):
            a, f = row[i], bool(tokens.fired[t, i])
            tables["sum"][v, i] += a
            tables["positive"][v, i] += max(a, 0)
            tables["fired"][v, i] += f
            s["sum"][i] += a
            s["square_sum"][i] += a * a
            s["positive_sum"][i] += max(a, 0)
            c["fired"][i] += f
            maximum[i] = max(maximum[i], a)
            histogram[code(a if a else 0.0), i] += 1
            if f:
                runs[0 if tokens.runs is None else tokens.runs[t, i] - 1, i] += 1
                last[i] = max(last[i], tokens.positions[t])
                if tokens.next_fired is not None:
                    c["fired_next"][i] += bool(tokens.next_fired[t, i])
            if a > 0:
                positive[i].append((float(a), int(tokens.positions[t])))
        if sparse and 0 < tokens.selected[t].sum() < width:
            cut = tokens.pre[t][tokens.selected[t]].min()
            margins.append(float(cut) - float(tokens.pre[t][~tokens.selected[t]].max()))
            for i in range(width):
                x = float(tokens.pre[t, i])
                near = not tokens.selected[t, i] and x > float(cut) - settings.near_miss * abs(float(cut))
                c["near_misses"][i] += near
    top, sample = Sketch(width, settings.top_contexts), Sketch(width * STRATA, settings.sample_contexts)
    for i, found in positive.items():
        for place, (a, p) in enumerate(sorted(found, key=lambda e: (-e[0], e[1]))[: settings.top_contexts]):
            top.key[i, place], top.position[i, place], top.value[i, place] = -a, p, a
        strata = {}
        for a, p in found:
            if code(a) == 0:  # below the normal numbers
                continue
            strata.setdefault(min(max(code(a) - STRATUM_LOW, 0), STRATA - 1), []).append((hash_key(p, i), p, a))
        for stratum, entries in strata.items():
            for place, (key, p, a) in enumerate(sorted(entries)[: settings.sample_contexts]):
                cell = i * STRATA + stratum
                sample.key[cell, place], sample.position[cell, place], sample.value[cell, place] = key, p, a
    types = np.unique(tokens.types).astype(np.int64)
    keep = ["sum", *(["positive"] if settings.positive_part and not sparse else [])]
    keep += ["fired"] if settings.token_fired else []
    margin_histogram = np.zeros(N_CODES, np.int64)
    for margin in margins:
        margin_histogram[code(margin)] += 1
    return LayerStats(
        tables={name: TokenTable(types=types, rows=tables[name][types]) for name in keep},
        **s, maximum=maximum, fired=c["fired"], last_fired=last, histogram=histogram,
        fired_next=None if tokens.next_fired is None else c["fired_next"],
        fired_runs=runs,
        l0_histogram=l0 if sparse else None,
        near_misses=c["near_misses"] if sparse else None,
        margin_count=np.array([len(margins)]) if sparse else None,
        margin_sum=np.array([math.fsum(margins)]) if sparse else None,
        margin_least=np.array([min(margins, default=np.inf)]) if sparse else None,
        margin_histogram=margin_histogram if sparse else None,
        top=top, sample=sample,
    )  # fmt: skip


def random_tokens(seed, n=40, width=6, vocab=9, sparse=True, last=False, dtype=np.float32):
    """Tokens with ties, zeros and silent neurons among them."""
    rng = np.random.default_rng(seed)
    pre = rng.normal(size=(n, width)).astype(dtype).round(2)
    pre[:, 0] = -5.0  # silent
    positions = rng.permutation(1000)[:n].astype(np.int64)
    made = Tokens(rng.integers(0, vocab, n), positions, pre, pre > 0)
    if sparse:
        order = np.argsort(-pre, axis=1, kind="stable")[:, :3]
        selected = np.zeros_like(pre, dtype=bool)
        np.put_along_axis(selected, order, True, axis=1)
        made = replace(made, pre=pre, selected=selected, values=np.where(selected, np.maximum(pre, 0), 0))
        made.fired = made.values > 0
    if not last:
        made.next_fired = rng.random((n, width)) < 0.4
    return made


def assert_equal(a, b, rtol=1e-12, but=()):
    """Two `LayerStats` are the same: integers exactly, sums to `rtol`; arrays named in `but` apart."""
    x, y = a.to_arrays(), b.to_arrays()
    assert x.keys() == y.keys()
    for name, value in x.items():
        if name in but:
            continue
        assert value.dtype == y[name].dtype, name
        assert value.shape == y[name].shape, name
        if value.dtype.kind in "iu":
            assert np.array_equal(value, y[name]), name
        else:
            np.testing.assert_allclose(value, y[name], rtol=rtol, atol=rtol * 100, err_msg=name)


def meta_of(n_windows, context, windows_sha256, layers, width=6, vocab=9, settings=SETTINGS):
    """Meta of a bundle of planted statistics."""
    return Meta(
        model=ModelSource(run="planted", path="nowhere", sha256="c" * 64, step=7, init="checkpoint", alpha=0.0,
                          dtype="float32", dim=width, n_layers=len(layers), vocab_size=vocab, model={"dim": width},
                          topk={"k": 3}),
        reading=Reading(site="post", read_topk=None),
        corpus=Corpus(parts=[CorpusPart(source="a", split="val", n_tokens=600, fingerprint="f" * 64),
                             CorpusPart(source="b", split="val", n_tokens=400, fingerprint="g" * 64)],
                      tokenizer_sha256="t" * 64, tokenizer_name="bytes", context=context, document_mask=False,
                      choice="all"),
        settings=settings,
        n_tokens=n_windows * context, n_windows=n_windows, windows_sha256=windows_sha256, layers=layers,
        made=[Made(topklm="0", torch="0", device="cpu", world_size=1, batch_size=2)],
    )  # fmt: skip
