"""The bundle of the very checkpoint that is to be changed or measured."""

from __future__ import annotations

import logging
from pathlib import Path

from topklm.bundles import Bundle, open_bundle
from topklm.checkpoint.load import content_hash
from topklm.errors import DataError, Problem

log = logging.getLogger("topklm.interp")


def open_own_bundle(path: str, checkpoint: Path, force: bool) -> tuple[Bundle | None, list[Problem]]:
    """Open a bundle of the model as it is (post activations, no cut of a control) and of this checkpoint, told by its
    hash, or by its place where there is none. With `force` one of another checkpoint is taken, with a warning."""
    try:
        bundle = open_bundle(path)
    except DataError as error:
        return None, [Problem("bundle", str(error))]
    source, reading, problems = bundle.meta.model, bundle.meta.reading, []
    mine = content_hash(checkpoint)
    if source.sha256 != mine or (mine is None and Path(source.path).resolve() != checkpoint.resolve()):
        told = (
            f"{path} is of step {source.step} of {source.run} ({(source.sha256 or 'no hash')[:12]}), not of "
            f"{checkpoint} ({(mine or 'no hash')[:12]})"
        )
        if force:
            log.warning("%s; taken all the same", told)
        else:
            problems.append(Problem("bundle", f"{told}; collect one of this checkpoint, or take it with force=true"))
    if source.init == "random":
        problems.append(Problem("bundle", f"{path} is of initial weights, a control, not of the checkpoint"))
    if reading.site != "post" or reading.read_topk is not None:
        problems.append(Problem("bundle", f"{path} is another reading; collect one without site and read_topk"))
    return bundle, problems
