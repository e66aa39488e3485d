"""Every error that POISE raises on purpose: what happened, the actual values, how to fix it."""


class PoiseError(Exception):
    """Root of all errors raised by this package."""


class ConfigError(PoiseError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class StateMismatchError(PoiseError, ValueError):
    """A checkpoint that was written under other settings than the ones it is loaded into."""


class SaveError(PoiseError, OSError):
    """A checkpoint or model that could not be written: a full disk, a folder that takes no files."""


class CaptureError(PoiseError, RuntimeError):
    """The policy's forward pass did not deliver the internal states that were asked for."""


class RewardError(PoiseError, RuntimeError):
    """Rewards that are broken beyond a single rollout."""
