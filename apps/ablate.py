"""Remove neurons one at a time, and see what it does to the loss: overall, and on their own top contexts.

    python -m apps.ablate ckpt=runs/quickstart/topk bundle=runs/quickstart/topk/bundles/0000000500 neurons=[3:44,2:7]
    python -m apps.ablate ckpt=RUN bundle=BUNDLE layers=[1,3] n=8 tokens=64k out=report/ablation
    python -m apps.ablate ckpt=RUN bundle=BUNDLE file=BUNDLE/candidates

Beside each neuron random ones of its layer and about its density; gradient x activation of all neurons, and what each
writes to the logits by itself. The same command again goes on where it was. Layers count from 0.
See docs/interventions.md.
"""

from __future__ import annotations

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.ablate ckpt=PATH bundle=PATH neurons=[3:44]")

from pathlib import Path

from apps._program import run, say, torch_device, torch_dtype
from topklm.interp.ablation import AblateConfig


def main(config: AblateConfig) -> None:
    from topklm import load_model
    from topklm.interp.ablation import ablation_result, make_plan, measure
    from topklm.optional import require
    from topklm.report.result import write_result

    require("matplotlib", "topklm[plots]")  # now, and not after an hour
    plan = make_plan(config)
    device = torch_device(config.device)
    model, _, loaded = load_model(plan.checkpoint, device, torch_dtype(config.dtype), config.alpha)
    result = ablation_result(config, plan, measure(config, plan, model, loaded), loaded)
    say(result.statements, write_result(result, Path(config.out)))


if __name__ == "__main__":
    run(main, AblateConfig, "ablate", __doc__ or "")
