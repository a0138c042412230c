"""What a program draws with is asked for before it computes anything."""

import importlib

import pytest

from apps import ablate, steer, trace
from topklm import optional
from topklm.errors import ConfigError
from topklm.interp.ablation import AblateConfig
from topklm.interp.histories import MatchConfig, PersistenceConfig, TraceConfig
from topklm.interp.steering import DoseConfig


@pytest.mark.parametrize(
    ("main", "config"),
    [
        (ablate.main, AblateConfig(ckpt="none")),
        (steer.main, DoseConfig(ckpt="none")),
        (trace.trace, TraceConfig(run="none")),
        (trace.match, MatchConfig(run="none")),
        (trace.persistence, PersistenceConfig(run="none")),
    ],
)
def test_without_matplotlib_nothing_is_begun(main, config, monkeypatch):
    def missing(name):
        if name == "matplotlib":
            raise ImportError(name)
        return importlib.__import__(name)

    monkeypatch.setattr(optional.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match="matplotlib is needed"):
        main(config)
