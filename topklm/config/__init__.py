"""YAML and dotlist arguments to frozen dataclasses, with every mistake told at once."""

from topklm.config.build import build, to_dict
from topklm.config.describe import describe
from topklm.config.load import Verbatim, load_config, overlay, put, read_yaml, resolved, save_config

__all__ = [
    "Verbatim", "build", "describe", "load_config", "overlay", "put", "read_yaml", "resolved", "save_config", "to_dict",
]  # fmt: skip
