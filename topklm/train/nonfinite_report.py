"""What a run that ends for a non-finite number leaves: one message, and `nonfinite.json` with what every rank found."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch.distributed as dist

from topklm.errors import NonFiniteError
from topklm.train.diagnose import NO_MEMORY, STAGES, Finding
from topklm.train.parallel import World

log = logging.getLogger("topklm.train")
REPORT = "nonfinite.json"
_SHOWN = 8


def nonfinite_error(
    world: World,
    dump_dir: Path,
    title: str,
    finding: Finding | None,
    documents: Callable[[int | None], list[str]],
    figures: dict[str, Any],
) -> NonFiniteError:
    """The error of this rank, after the main rank has written `dump_dir/nonfinite.json`. Every rank calls it.

    `title` says what was not finite; `finding` is what this rank found when it looked again; `documents(micro_batch)`
    are those of this rank; `figures` go into the file.
    """
    micro_batch = None if finding is None else finding.micro_batch
    own: dict[str, Any] = {
        "rank": world.rank,
        "found": None if finding is None else finding.stage,
        "what": None if finding is None else finding.what,
        "layer": None if finding is None else finding.layer,
        "micro_batch": micro_batch,
        "numbers": None if finding is None else [finding.bad, finding.of],
        "documents": documents(micro_batch),
    }
    ranks = [own]
    if world.cpu_group is not None:
        ranks = [{}] * world.size
        dist.all_gather_object(ranks, own, group=world.cpu_group)
    order = [len(STAGES) if rank["found"] is None else STAGES.index(rank["found"]) for rank in ranks]
    first = ranks[order.index(min(order))]
    hit = [rank["rank"] for rank, at in zip(ranks, order, strict=True) if at == min(order) < len(STAGES)]
    path = dump_dir / REPORT
    if world.is_main:
        report = {
            **figures, **{key: first[key] for key in ("found", "what", "layer")}, "hit_ranks": hit, "ranks": ranks,
            "created_at": datetime.now(UTC).isoformat(),
        }  # fmt: skip
        part = path.with_suffix(".tmp")
        try:
            part.write_text(json.dumps(report, indent=1, allow_nan=False))
            part.replace(path)
        except OSError as failure:  # a full disk: the message is worth more
            log.warning("%s cannot be written: %s", path, failure.strerror)
    if world.cpu_group is not None:
        dist.barrier(world.cpu_group)  # no rank leaves, and has the others ended, before the file is there
    if not world.is_main:
        return NonFiniteError(f"{title}. What every rank found is in {path}.")
    return NonFiniteError(f"{title}.\n{_where(first, hit)}\n{_advice(first['found'])} All of it: {path}")


def _where(first: dict[str, Any], hit: list[int]) -> str:
    if first["found"] is None:
        return (
            "Computed once more from the same weights and batch, the step is finite on every rank: a transient error, "
            "such as of a device or its memory, and none of the data or the learning rate."
        )
    if first["found"] == NO_MEMORY:
        return "There is not enough memory to compute the step again without compiling it, and see where it began."
    layer = "" if first["layer"] is None else f" (layer {first['layer']})"
    part = "" if first["micro_batch"] is None else f", micro-batch {first['micro_batch']}"
    bad, of = first["numbers"]
    shown, more = first["documents"][:_SHOWN], len(first["documents"]) - _SHOWN
    where = f"rank {', '.join(map(str, hit))}" if len(hit) <= _SHOWN else f"{len(hit)} ranks, among them {hit[0]}"
    return (
        f"First, in the order of a step: {first['what']}{layer}, {where}{part}, {bad:,} of {of:,} numbers. Documents "
        f"there: {', '.join(shown)}{f' and {more} more' if more > 0 else ''}."
    )


def _advice(found: str | None) -> str:
    if found is None:
        return "Start the same command again; if it comes back, look at the machine."
    if found == "weight":
        return "Start the same command again, from the newest checkpoint; if it comes back, lower the learning rate."
    return (
        "Start again with a lower learning rate or other data, leave (more) such steps out by on_nonfinite=skip and "
        "max_nonfinite, or find the operation with distributed.detect_anomaly=true."
    )
