"""Steering: a constant added to one neuron's pre-activation, its texts, and how their concept follows the dose."""

from topklm.interp.neurons import Neuron
from topklm.interp.steering.concept import Concept, ConceptSettings, concepts_of
from topklm.interp.steering.config import DoseConfig, SteerConfig
from topklm.interp.steering.dose import measure
from topklm.interp.steering.offsets import Offset
from topklm.interp.steering.plan import Plan, make_plan
from topklm.interp.steering.result import dose_result, text_result
from topklm.interp.steering.session import make_texts
from topklm.interp.steering.show import show_texts

__all__ = [
    "Concept",
    "ConceptSettings",
    "DoseConfig",
    "Neuron",
    "Offset",
    "Plan",
    "SteerConfig",
    "concepts_of",
    "dose_result",
    "make_plan",
    "make_texts",
    "measure",
    "show_texts",
    "text_result",
]
