"""A checkpoint that genuine Meta Lingua loads: for evaluation, generation, and as the start of a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from topklm.checkpoint import dcp
from topklm.checkpoint.integrity import FILES, digest, write_json
from topklm.checkpoint.lingua import TRAIN_STATE
from topklm.errors import ConfigError, Problem
from topklm.export.consolidated import check_reloads, told_topk, write_consolidated
from topklm.export.directory import export_directory
from topklm.export.source import Source
from topklm.model.lingua import lingua_sizes
from topklm.sparsity import TopKConfig, activation_tensors

log = logging.getLogger("topklm.export")

DENSE_WITHOUT_A_WORD = (
    "THIS IS A TOPK MODEL. Meta Lingua does not know TopK: unpatched, it loads these weights and runs them as a dense "
    "model, without an error or a word, and computes something else"
)


def export_lingua(source: Source, out: Path, *, overwrite: bool = False) -> Path:
    """Write the directory `out` for Meta Lingua; returns it.

    In it: torch.distributed.checkpoint files (Lingua's `checkpoint.init_ckpt_path`), `consolidated/` (what its eval and
    generate load), `params.json` in its schema, `tokenizer/`, and a card. It is a checkpoint here as well: `load_model`
    gives the same model, which is checked bit for bit. Raises `ConfigError` for what Lingua cannot hold, `ParityError`.
    """
    problems = list(_unknown_to_lingua(source))
    if problems:
        raise ConfigError(problems)
    params = _params(source, out.resolve() / "tokenizer")
    weights = dict(source.model.state_dict())
    if source.config.model.weight_tying:
        weights["output.tied_module.weight"] = weights["tok_embeddings.weight"]
    facts = source.facts("lingua")
    with export_directory(out, source.config.path, facts, overwrite=overwrite) as part:
        dcp.save({"model": weights}, part, None)
        write_json(part / "params.json", params)
        write_json(part / TRAIN_STATE, {"step": source.config.step, "acc_step": 0})
        write_consolidated(weights, source.config.step, params, part / "consolidated")
        if source.tokenizer is not None:
            source.tokenizer.save(part / "tokenizer")
        (part / "README.md").write_text(_card(source, params, facts), encoding="utf-8")
        files = (path for path in sorted(part.rglob("*")) if path.is_file())
        write_json(part / FILES, {str(path.relative_to(part)): digest(path) for path in files})
        check_reloads(source, part)
        check_reloads(source, part / "consolidated" / "consolidated.pth")
    if source.is_sparse:
        log.warning("%s. Put sparsify(...) into its programs first: docs/lingua.md and %s/README.md tell how.",
                    DENSE_WITHOUT_A_WORD, out)  # fmt: skip
    if source.tokenizer is not None and source.tokenizer.name == "hf":
        log.warning("Lingua has no tokenizer of the kind hf: its programs will stop at data.tokenizer.name")
    if source.config.model.document_mask:
        log.warning("Lingua does not know document_mask: it lets attention cross the documents of a packed sequence")
    return out


def _unknown_to_lingua(source: Source) -> list[Problem]:
    model, found = source.config.model, []
    if model.rope_scaling is not None:
        found.append(Problem("rope_scaling", "Lingua has one rule for rotary frequencies, without scaling"))
    if model.dim % model.heads:
        found.append(
            Problem("n_heads", f"Lingua refuses a dim ({model.dim}) that n_heads ({model.heads}) does not divide")
        )
    if state := activation_tensors(source.model):
        found.append(
            Problem(
                "to",
                f"the activations have {len(state)} tensors of their own (thresholds, scales, norms), for which "
                "Lingua's checkpoints have no place; take to=hf or to=consolidated",
            )
        )
    return found


def _params(source: Source, tokenizer_dir: Path) -> dict[str, Any]:
    """Lingua's params.json: what its programs read, and `topk`, at which its own training stops where that is given."""
    run, model = source.config.run, source.config.model
    dtype = (run.get("distributed") or {}).get("model_dtype")
    data: dict[str, Any] = {"root_dir": "", "sources": {}, "seq_len": model.max_seqlen}
    tokenizer = source.tokenizer
    if tokenizer is not None:
        file = None if tokenizer.file_name is None else str(tokenizer_dir / tokenizer.file_name)
        data["tokenizer"] = {"name": tokenizer.name, "path": file}
        data["add_bos"] = source.adds_bos()
    topk = told_topk(source)
    return {
        "name": source.name,
        "seed": run.get("seed", 42),
        "steps": run.get("steps", source.config.step or 0),
        "data": data,
        "model": {
            **lingua_sizes(model),
            "seed": model.seed,
            "vocab_size": model.vocab_size,
            "weight_tying": model.weight_tying,
            "sliding_window": None,
        },
        "distributed": {"model_dtype": dtype if dtype in ("fp32", "bf16") else "fp32"},
        **({} if topk is None else {"topk": topk}),
    }


def _card(source: Source, params: dict[str, Any], facts: dict[str, Any]) -> str:
    model, topk, alpha = source.config.model, source.config.topk, source.config.alpha
    lines = [f"# {source.name}, for Meta Lingua", ""]
    if source.is_sparse and topk is not None:
        names = ("k", "n_dense_tail", "activation", "anneal_form")
        options = {name: getattr(topk, name) for name in names}
        more = {name: getattr(topk, name) for name in ("k_per_layer", "options", "schedule")}
        options |= {name: value for name, value in more.items() if value != getattr(TopKConfig(), name)}
        arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
        lines += [
            f"> **{DENSE_WITHOUT_A_WORD}.**",
            "> After building the model and before wrapping, compiling or sharding it:",
            "",
            "```python",
            "from topklm import TopKConfig, set_alpha, sparsify",
            "",
            f"sparsify(model, TopKConfig({arguments}))",
            f"set_alpha(model, {alpha!r})  # 1 dense ... 0 TopK; {alpha!r} is where these weights were saved",
            "```",
            "",
            "Started with `config=params.json`, Lingua's own training stops at the key `topk`, which it does not know.",
            "",
        ]
    heads = f"{model.heads} query heads, {model.kv_heads} key/value heads of {model.head_width}"
    lines += [
        "| | |",
        "|---|---|",
        f"| parameters | {model.n_params:,} |",
        f"| sizes | dim {model.dim}, {model.n_layers} layers, {heads}, feed-forward {model.ffn_width} |",
        f"| vocabulary | {model.vocab_size}{', tied' if model.weight_tying else ''} |",
        *(f"| {key} | {value} |" for key, value in facts.items() if value is not None and key != "to"),
        *(f"| {key} | {value} |" for key, value in sorted(source.metrics().items()) if key.startswith("val/")),
        "",
        "- `checkpoint.init_ckpt_path` of Lingua: this directory. Its eval and generate: `consolidated/`.",
        "- Weights are fp32; Lingua loads `consolidated/` in `distributed.model_dtype`, "
        f"here {params['distributed']['model_dtype']}.",
    ]
    if model.ffn_dim is not None:
        lines.append(f"- feed-forward {model.ffn_dim} by Lingua's rule: multiple_of {params['model']['multiple_of']}, "
                     f"ffn_dim_multiplier {params['model']['ffn_dim_multiplier']}.")  # fmt: skip
    if model.document_mask:
        lines.append("- It was trained with attention inside documents (`document_mask`), which Lingua does not know.")
    if source.tokenizer is None:
        lines.append("- There is no tokenizer: set `data.tokenizer` in both `params.json`.")
    elif source.tokenizer.name == "hf":
        lines.append("- Its tokenizer is a `tokenizer.json`, a kind that Lingua does not have.")
    elif source.tokenizer.file_name is not None:
        lines.append(
            "- `data.tokenizer.path` in both `params.json` is where this was written: correct it after moving."
        )
    return "\n".join(lines) + "\n"
