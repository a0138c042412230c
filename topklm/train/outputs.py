"""The files that a run opens or writes when it begins: configuration, provenance, log, metrics."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

import topklm
from topklm.config import save_config, to_dict
from topklm.data import TrainData
from topklm.errors import storing
from topklm.model.lingua import lingua_sha256
from topklm.sparsity.registry import activation_class
from topklm.train.config import TrainConfig
from topklm.train.evaluation import EVAL_METRICS, VALIDATION_METRICS
from topklm.train.metrics import MetricsWriter, rewind_metrics
from topklm.train.parallel import World
from topklm.train.watch import SKIPPED, SPIKES

log = logging.getLogger("topklm.train")


def open_outputs(
    stack: ExitStack,
    config: TrainConfig,
    data: TrainData,
    world: World,
    *,
    step: int,
    source: dict[str, Any] | None,
    n_checkpoints: int,
) -> MetricsWriter | None:
    """Open what a run writes to; None on all ranks but the main one, which alone writes. `stack` closes it.

    `step` is what the run goes on from: later lines of an earlier process are put aside. `source` is where the first
    weights came from, if this process took them from somewhere. Raises `StorageError`.
    """
    if not world.is_main:
        return None
    dump_dir = Path(config.dump_dir)
    with storing(dump_dir):
        handler = _RunLog(dump_dir / "train.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger("topklm").addHandler(handler)
        stack.callback(logging.getLogger("topklm").removeHandler, handler)
        stack.callback(handler.close)
        save_config(config, dump_dir / "config.yaml")
        part = dump_dir / "provenance.json.tmp"
        source = source or (_earlier_source(dump_dir) if step else None)
        part.write_text(json.dumps(_provenance(config, data, world, source), indent=1))
        part.replace(dump_dir / "provenance.json")
    log.info(
        "%s: %.1f M parameters, %s, %d rank(s) on %s, global batch %d x %d tokens, checkpoints found: %d",
        config.name, config.model.n_params / 1e6, _kind(config), world.size, world.device.type,
        config.data.global_batch_size, config.data.seq_len, n_checkpoints,
    )  # fmt: skip
    for line in data.summary():
        log.info("%s", line)
    if step == 0 and (dump_dir / "metrics.jsonl").exists():
        log.warning("no checkpoint in %s: the run begins anew, lines of metrics are put aside", config.checkpoint_dir)
    for name in (VALIDATION_METRICS, EVAL_METRICS, SKIPPED, SPIKES):
        rewind_metrics(dump_dir / name, step)
    return stack.enter_context(MetricsWriter(config.logging, dump_dir, config.name, to_dict(config), step))


class _RunLog(logging.FileHandler):
    """train.log. Where it cannot be written that is said once: a run does not end for its log."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            print(f"{self.baseFilename} cannot be written: {error.strerror}", file=sys.stderr)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def _kind(config: TrainConfig) -> str:
    topk = config.topk
    if topk is None:
        return "dense"
    name = "TopK" if topk.activation == "topk" else topk.activation
    return f"{name} k={topk.k_per_layer or topk.k}" if activation_class(topk.activation).uses_k else name


def _provenance(config: TrainConfig, data: TrainData, world: World, source: dict[str, Any] | None) -> dict[str, Any]:
    """What decides the run's figures and is not in its configuration."""
    device = world.device
    lingua = {"lingua/transformer.py": lingua_sha256()} if config.model.backend == "lingua" else {}
    return {
        "source": source,
        "data_fingerprint": data.fingerprint,
        "tokenizer_sha256": data.manifests[data.names[0]].tokenizer["sha256"],
        "n_parameters": config.model.n_params,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "ranks": world.size,
        "versions": {"topklm": topklm.__version__, "torch": torch.__version__, **lingua},
    }


def _earlier_source(dump_dir: Path) -> dict[str, Any] | None:
    """What the process that began this run wrote of its source, which need not be there any more."""
    try:
        return json.loads((dump_dir / "provenance.json").read_text())["source"]
    except (OSError, json.JSONDecodeError, KeyError):
        return None
