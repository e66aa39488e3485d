"""POISE for TRL: `PoiseTrainer` in place of `GRPOTrainer`, `PoiseConfig` in place of `GRPOConfig`."""

from poise.trl.checkpoint import STATE_FILE
from poise.trl.config import PoiseConfig
from poise.trl.trainer import PoiseTrainer

__all__ = ["STATE_FILE", "PoiseConfig", "PoiseTrainer"]
