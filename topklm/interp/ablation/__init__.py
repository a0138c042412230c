"""Ablation: what the loss does without a neuron, its first-order estimate, and what the neuron writes to the logits."""

from topklm.interp.ablation.config import AblateConfig
from topklm.interp.ablation.measure import measure
from topklm.interp.ablation.plan import make_plan
from topklm.interp.ablation.result import ablation_result

__all__ = ["AblateConfig", "ablation_result", "make_plan", "measure"]
