"""The model card: what a stranger who meets the directory must know of the model in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from topklm.export.parity import Parity, PrecisionParity
from topklm.export.source import Source
from topklm.export.tables import parity_rows
from topklm.sparsity.registry import activation_class

_PAPER = "https://arxiv.org/abs/2506.21468"


def model_card(
    source: Source,
    parity: Parity,
    facts: dict[str, Any],
    *,
    license: str | None,
    title: str | None,
    n_texts: int | None,
) -> str:
    """`README.md` with the YAML head that the hub reads. `n_texts`: texts on which the tokenizer was tried."""
    kind = "TopK language model" if source.is_sparse else "language model (Llama)"
    blocks = [
        "\n".join(_head(source, license)),
        f"# {title or source.name}\n\nA {kind} of {source.config.model.n_params:,} parameters, {_origin(source)}.",
        "\n".join(_use(source)),
        *(["\n".join(_topk(source))] if source.is_sparse else []),
        "\n".join(_configuration(source)),
        "\n".join(_data(source, facts["add_bos"], n_texts)),
        "\n".join(_metrics(source)),
        "\n".join(_parity(source, parity)),
        "\n".join(_provenance(facts)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _begun_from(source: Source) -> str | None:
    """Name of the model whose weights the training began with."""
    run = source.config.run
    path = run.get("init_from") or (run.get("checkpoint") or {}).get("init_ckpt_path")
    return Path(str(path)).name if path else None


def _origin(source: Source) -> str:
    if "huggingface" in source.config.run:
        return "converted by topklm from a model that was not trained with it"
    begun = _begun_from(source)
    return "trained with topklm" + (f", from the weights of {begun} on" if begun else "")


def _head(source: Source, license: str | None) -> Iterator[str]:
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    if license:
        yield f"license: {license}"
    yield "tags:"
    for tag in ("llama", *(("topk", "sparse", "interpretability") if source.is_sparse else ())):
        yield f"- {tag}"
    yield "---"


def _use(source: Source) -> Iterator[str]:
    trust = ", trust_remote_code=True" if source.is_sparse else ""
    yield "## Use\n"
    yield "```python"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    yield f"model = AutoModelForCausalLM.from_pretrained(path{trust})"
    yield f"tokenizer = AutoTokenizer.from_pretrained(path{trust})"
    yield 'inputs = tokenizer("The people of", return_tensors="pt")'
    yield "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))"
    yield "```"
    if source.is_sparse:
        yield "\nWith topklm installed, `topklm.export.register()` makes it load without remote code."


def _topk(source: Source) -> Iterator[str]:
    topk, alpha, n = source.config.topk, source.config.alpha, source.config.model.n_layers
    assert topk is not None
    n_sparse = n - topk.n_dense_tail
    states = f"`hidden_states[1]` to `hidden_states[{n_sparse}]`" if n_sparse > 1 else "`hidden_states[1]`"
    yield "## The residual stream is sparse\n"
    if topk.activation == "topk" and topk.k_per_layer is None:
        kept = f"its k = {topk.k} largest of {source.config.model.dim} entries per token"
    else:
        kept = f"what the activation `{topk.activation}` keeps (defined in `modeling_topklm.py`)"
    yield (
        f"After each of the first {n_sparse} of {n} blocks the residual stream keeps {kept} "
        f"([TopK Language Models]({_PAPER})); the last {topk.n_dense_tail} "
        f"blocks stay dense. One dimension is one feature, the same in every sparse block."
    )
    yield (
        f"With `output_hidden_states=True`, {states} are these sparse states: entry i + 1 is the stream after block i. "
        "The submodule `activation` of a sparse block has the stream before the cut as its input."
    )
    if alpha:
        yield (
            f"\n**This model was exported in the middle of annealing: alpha = {alpha:g}** (1 dense ... 0 TopK), so the "
            f"states are not sparse yet. `config.topk` holds it."
        )
    yield (
        "\n**The cut is in `modeling_topklm.py`, not in the weights.** Loaded as a plain Llama (the code removed, "
        "`model_type` changed, by converters and inference engines that know only Llama) the same weights run as a "
        "dense model, without a word, and with another quality."
    )


def _configuration(source: Source) -> Iterator[str]:
    model, topk = source.config.model, source.config.topk
    rows = [
        ("width D", model.dim),
        ("blocks", model.n_layers),
        ("heads", f"{model.heads} (keys and values: {model.kv_heads})"),
        ("feed-forward width", model.ffn_width),
        ("vocabulary", model.vocab_size),
        ("context", model.max_seqlen),
        ("head tied to the embedding", "yes" if model.weight_tying else "no"),
        ("parameters", f"{model.n_params:,}"),
    ]
    if topk is not None and source.is_sparse:
        rows += [
            ("activation", topk.activation),
            *([("k", topk.k_per_layer or topk.k)] if activation_class(topk.activation).uses_k else []),
            ("dense tail", topk.n_dense_tail),
            *([("options", topk.options)] if topk.options else []),
            ("alpha", f"{source.config.alpha:g}"), ("annealing", f"{topk.anneal_form}, {topk.anneal_steps} steps"),
        ]  # fmt: skip
    yield "## Configuration\n"
    yield from _table(("", ""), rows)
    if model.document_mask:
        yield (
            "\n**Trained with attention inside documents.** transformers has no such mask: give it one document per "
            "row, not several in a row."
        )


def _data(source: Source, add_bos: bool, n_texts: int | None) -> Iterator[str]:
    yield "## Data\n"
    weights = (source.config.run.get("data") or {}).get("sources") or {}
    total = sum(weights.values())
    rows = []
    for name, weight in weights.items():
        manifest = source.manifests.get(name)
        size = f"{manifest.n_tokens('train'):,}" if manifest is not None else "not known here"
        rows.append((name, f"{weight / total:.1%}", size))
    if rows:
        yield from _table(("source", "share of the batches", "training tokens in it"), rows)
    seen = source.tokens_seen()
    since = f" since {begun}" if (begun := _begun_from(source)) else ""
    yield f"\nTokens seen in training{since}: {'not known' if seen is None else f'{seen:,}'}."
    if n_texts is None:
        yield "The tokenizer is not part of this directory."
    elif source.tokenizer is not None:
        begins = "begins" if add_bos else "does not begin"
        yield (
            f"The tokenizer (kind `{source.tokenizer.name}`) {begins} a text with BOS by itself, never ends it with "
            f"EOS, and reads the names of special tokens as ordinary text. Its ids were compared with the "
            f"trained model's tokenizer on {n_texts} texts."
        )


def _metrics(source: Source) -> Iterator[str]:
    figures = source.metrics()
    wanted = ("val/loss@", "val/ppl@", "topk/l0_mean", "topk/l0_max", "topk/dead")
    rows = [(key, f"{value:.6g}") for key, value in figures.items() if key.startswith(wanted)]
    if rows:
        yield f"## Held-out text, step {figures['global_step']}\n"
        yield from _table(("", ""), rows)


def _parity(source: Source, parity: Parity) -> Iterator[str]:
    yield "## Does it compute what the trained model computes?\n"
    yield f"Compared by topklm with the checkpoint ({parity.text}); all figures are in `parity.json`.\n"
    rows = list(parity_rows(parity.precisions))
    if source.is_sparse:
        rows.append(("entries that are not zero per token: mean, max", *map(_l0, parity.precisions)))
    yield from _table(("", *(p.precision for p in parity.precisions)), rows)


def _l0(p: PrecisionParity) -> str:
    means, most = [layer.l0_mean or 0.0 for layer in p.layers], max(layer.l0_max or 0 for layer in p.layers)
    return f"{sum(means) / len(means):.1f}, {most}"


def _provenance(facts: dict[str, Any]) -> Iterator[str]:
    yield "## Provenance\n"
    rows = [(f"`{key}`", value) for key, value in facts.items() if value is not None]
    yield from _table(("", ""), rows)


def _table(head: tuple[str, ...], rows: list[Any]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
