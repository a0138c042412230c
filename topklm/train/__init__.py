"""Training: the loop, the optimizer, parallelism, metrics."""

from topklm.train.config import TrainConfig
from topklm.train.trainer import train

__all__ = ["TrainConfig", "train"]
