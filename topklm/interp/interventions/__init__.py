"""Changing neurons while a model runs: what is changed, where, how, at which positions (docs/interventions.md)."""

from topklm.interp.interventions.intervene import intervene
from topklm.interp.interventions.intervention import Intervention
from topklm.interp.interventions.means import bundle_means

__all__ = ["Intervention", "bundle_means", "intervene"]
