"""Steer a neuron: add a constant to its pre-activation at every position, and read what the model writes then.

    python -m apps.steer ckpt=runs/quickstart/topk neuron=3:44 offset=8
    python -m apps.steer ckpt=RUN bundle=RUN/bundles/0000000500 neuron=3:44,2:7 offsets=[0.5x,1x,2x] n_samples=3
    python -m apps.steer dose ckpt=RUN bundle=RUN/bundles/0000000500 neuron=3:44 out=report/steering

Texts stand beside the unsteered ones of the same random numbers. `dose` measures: at each dose the share of tokens in
the neuron's top-token set and the perplexity under the unsteered model, with intervals, against random neurons of
equal density; the same command again goes on where it was. Layers count from 0 (paper_layers=true: from 1). See
docs/interventions.md.
"""

from __future__ import annotations

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.steer ckpt=PATH neuron=LAYER:INDEX offset=8")

import logging
import sys
from pathlib import Path

from apps._program import run, say, torch_device, torch_dtype
from topklm.interp.steering import DoseConfig, SteerConfig

log = logging.getLogger("topklm.interp")


def main(config: SteerConfig) -> None:
    from rich.console import Console

    from topklm import load_model
    from topklm.evaluate.harness_marks import marks_for
    from topklm.interp.steering import dose_result, make_plan, make_texts, measure, show_texts, text_result
    from topklm.optional import require
    from topklm.report.result import write_result

    if isinstance(config, DoseConfig):
        require("matplotlib", "topklm[plots]")  # now, and not after an hour
    plan = make_plan(config)
    device = torch_device(config.device)
    model, _, loaded = load_model(plan.checkpoint, device, torch_dtype(config.dtype), config.alpha)
    marks = marks_for(plan.tokenizer, loaded.run, config.bos, loaded.path)
    plan, store = make_texts(config, plan, model, loaded, marks.bos)
    if isinstance(config, DoseConfig):
        result = dose_result(config, plan, store, loaded, measure(plan, store, config))
        say(result.statements)
    else:
        result = text_result(config, plan, store, loaded)
        show_texts(Console(), plan, store, config.prompt)
    if config.out is not None:
        written = write_result(result, Path(config.out))
        say([], written)


if __name__ == "__main__":
    if sys.argv[1:2] == ["dose"]:
        run(main, DoseConfig, "steer dose", __doc__ or "", sys.argv[2:])
    run(main, SteerConfig, "steer", __doc__ or "")
