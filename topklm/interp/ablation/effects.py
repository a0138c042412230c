"""What the loss does when one neuron is removed: per window, and at the tokens where the neuron is most active."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from topklm.bundles import Bundle
from topklm.interp.ablation.config import Variant
from topklm.interp.ablation.losses import Reader
from topklm.interp.ablation.plan import Plan
from topklm.interp.interventions import Intervention, bundle_means
from topklm.interp.neurons import Neuron


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Loss with the neuron removed at all positions, minus the loss of the model as it is, in nats."""

    neuron: Neuron
    variant: Variant
    overall: np.ndarray
    """float64 [w]: summed over the predicted tokens of each window of the plan."""
    windows: np.ndarray
    """float64 [v]: the same of each window that holds top contexts of the neuron."""
    at: np.ndarray
    """float64 [v]: summed over the predictions at these contexts alone: of the token after each."""
    contexts: np.ndarray
    """int64 [v]: top contexts in each."""

    def record(self) -> dict[str, Any]:
        """As it is kept."""
        arrays = {name: getattr(self, name).tolist() for name in ("overall", "windows", "at", "contexts")}
        return {"neuron": str(self.neuron), "variant": self.variant, **arrays}

    @staticmethod
    def of_record(record: dict[str, Any]) -> Effect:
        layer, index = map(int, record["neuron"].split(":"))
        return Effect(
            neuron=Neuron(layer, index), variant=record["variant"], contexts=np.array(record["contexts"], np.int64),
            **{name: np.array(record[name], np.float64) for name in ("overall", "windows", "at")},
        )  # fmt: skip


def removal(bundle: Bundle, neuron: Neuron, variant: Variant) -> Intervention:
    """The intervention that a variant stands for."""
    where = {"layer": neuron.layer, "neurons": [neuron.index], "site": "post"}
    if variant == "mean":
        return Intervention(**where, op="mean", value=bundle_means(bundle, neuron.layer, [neuron.index]))  # type: ignore[arg-type]
    return Intervention(**where, op="zero", refill=variant == "refill")  # type: ignore[arg-type]


class Effects:
    """Measures effects against the losses of the model as it is.

    Those are of the same batches: in other batches rounding is another, and a TopK layer may select otherwise.
    """

    def __init__(self, plan: Plan, reader: Reader, top_contexts: int) -> None:
        self.plan, self.reader, self._top = plan, reader, top_contexts
        self._overall = tuple(plan.windows.tolist())
        self._plain: dict[tuple[int, ...], np.ndarray] = {}

    def tokens(self, neuron: Neuron) -> int:
        """Tokens of one measurement, for a progress bar."""
        return (len(self._overall) + len(self._contexts(neuron)[0])) * self.plan.corpus.context

    def measure(self, neuron: Neuron, variant: Variant) -> Effect:
        """One neuron, removed in one way."""
        change = removal(self.plan.bundle, neuron, variant)
        starts, positions, begins = self._contexts(neuron)
        windows = self._delta(starts, change)
        # Prediction t of a window is made at its token t, of token t + 1.
        inside = [positions[begins == start] - start for start in starts]
        return Effect(
            neuron=neuron,
            variant=variant,
            overall=self._delta(self._overall, change).sum(1),
            windows=windows.sum(1),
            at=np.array([row[places].sum() for row, places in zip(windows, inside, strict=True)]),
            contexts=np.array([len(places) for places in inside], np.int64),
        )

    def _contexts(self, neuron: Neuron) -> tuple[list[int], np.ndarray, np.ndarray]:
        """(windows that hold top contexts of the neuron, positions of these, the window of each)."""
        positions = self.plan.top_positions(neuron, self._top)
        begins = self.plan.window_of(positions)
        return np.unique(begins).tolist(), positions, begins

    def _delta(self, starts: Sequence[int], change: Intervention) -> np.ndarray:
        """float64 [w, T - 1]"""
        key = tuple(starts)
        if key not in self._plain:
            # Beside those of the overall effect only the latest: the next removals are of the same neuron.
            self._plain = {known: losses for known, losses in self._plain.items() if known == self._overall}
            self._plain[key] = self.reader.losses(starts)
        return self.reader.losses(starts, [change]) - self._plain[key]
