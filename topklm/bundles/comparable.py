"""Whether figures of several bundles may stand side by side."""

from __future__ import annotations

from collections.abc import Sequence

from topklm.bundles.bundle import Bundle


def incomparable(bundles: Sequence[Bundle]) -> list[str]:
    """Why entropies of these bundles must not be compared, one reason a line; empty if they may.

    They must rest on the same tokens of the same corpus, cut into the same windows by the same tokenizer: an entropy
    grows with the tokens that it is measured on, and depends on the types that there are. Model, step, alpha and
    reading are what is compared.
    """
    reasons = []
    for other in bundles[1:]:
        first, names = bundles[0], f"{bundles[0].path} and {other.path}"
        a, b = first.meta.corpus, other.meta.corpus
        found = []
        if a.tokenizer_sha256 != b.tokenizer_sha256:
            found.append(f"their tokenizers ({a.tokenizer_sha256[:12]} and {b.tokenizer_sha256[:12]})")
        if [(p.source, p.split, p.fingerprint) for p in a.parts] != [
            (p.source, p.split, p.fingerprint) for p in b.parts
        ]:
            found.append("their corpora")
        if first.n_tokens != other.n_tokens:
            found.append(f"their numbers of tokens ({first.n_tokens:,} and {other.n_tokens:,})")
        if a.context != b.context:
            found.append(f"their context ({a.context} and {b.context} tokens)")
        if not found and first.meta.windows_sha256 != other.meta.windows_sha256:
            found.append("the windows that were read")
        if found:
            reasons.append(f"{names} differ in {', '.join(found)}")
    return reasons
