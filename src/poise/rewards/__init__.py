"""Rewards: what is verified about a rollout. Form: `(completion, example) -> Verdict`; a failure is never a zero."""

from poise.rewards.registry import (
    Reward,
    check_row_names,
    from_trl_reward,
    from_verl_reward,
    is_trl_reward,
    names,
    only_score,
    register,
    resolve,
    stand_ins,
    trl_reward,
    verifier,
)
from poise.rewards.verdict import Verdict, Verifier, as_trl_reward, completion_text

__all__ = [
    "Reward",
    "Verdict",
    "Verifier",
    "as_trl_reward",
    "check_row_names",
    "completion_text",
    "from_trl_reward",
    "from_verl_reward",
    "is_trl_reward",
    "names",
    "only_score",
    "register",
    "resolve",
    "stand_ins",
    "trl_reward",
    "verifier",
]
