"""Reward functions that may break: a failed reward is marked as failed, never learnt from as a zero.

TRL's convention is kept: None means "does not apply to this rollout". What else is not a finite number - NaN, an
exception, a time-out - is a failure and travels through TRL's reward matrix as +inf, which no honest reward is.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.grpo_trainer import get_callable_name, is_async_callable

from poise.errors import RewardError

logger = logging.getLogger(__name__)
FAILED = math.inf
_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class RewardGuard:
    """Wraps reward functions so that a failure stays with the rollouts it concerns, and is remembered for the error.

    Args:
        timeout: seconds that one call may take; None for no limit. A call that takes longer is left behind in its
            (daemon) thread. Functions that need the main thread, such as those built on SIGALRM, cannot have one.
    """

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.last_failure = "every reward was NaN or None"

    def wrap(self, reward_func: Any) -> Any:
        """The guarded form of a reward function; a reward model passes as it is."""
        if isinstance(reward_func, nn.Module):
            return reward_func
        return self._guard_async(reward_func) if is_async_callable(reward_func) else self._guard(reward_func)

    def _guard(self, reward_func: Callable[..., Any]) -> Any:
        def guarded(**columns: Any) -> list[float | None]:
            _refuse_other_columns(reward_func, columns)
            try:
                call = functools.partial(reward_func, **columns)
                rewards = call() if self.timeout is None else _within(self.timeout, call)
            except (Exception, SystemExit) as error:
                return self._failed(reward_func, error, len(columns["completions"]))
            self.last_failure = getattr(reward_func, "last_failure", self.last_failure)
            return _checked(reward_func, rewards, len(columns["completions"]))

        return guarded

    def _guard_async(self, reward_func: Callable[..., Any]) -> Any:
        async def guarded(**columns: Any) -> list[float | None]:
            import asyncio

            _refuse_other_columns(reward_func, columns)
            try:
                rewards = await asyncio.wait_for(reward_func(**columns), self.timeout)
            except Exception as error:
                return self._failed(reward_func, error, len(columns["completions"]))
            return _checked(reward_func, rewards, len(columns["completions"]))

        return guarded

    def _failed(self, reward_func: Callable[..., Any], error: BaseException, count: int) -> list[float | None]:
        name = get_callable_name(reward_func)
        reason = str(error) or type(error).__name__
        self.last_failure = f"{name} raised {type(error).__name__}: {reason}"
        logger.warning("reward failed for %d rollouts, which leave the update: %s", count, self.last_failure)
        return [FAILED] * count


def mark_failed_models(rewards_BF: Tensor, reward_funcs: Sequence[Any]) -> Tensor:
    """A reward model applies to every rollout: where it says NaN, it failed."""
    is_model_F = torch.tensor([isinstance(function, nn.Module) for function in reward_funcs], device=rewards_BF.device)
    return torch.where(is_model_F & rewards_BF.isnan(), FAILED, rewards_BF)


def total_rewards(rewards_BF: Tensor, weights_F: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum of each rollout's applicable rewards, NaN where any failed or none applies.

    Args:
        rewards_BF: one column per reward function; NaN where it does not apply, inf where it failed.
        weights_F: weight of each function.

    Returns:
        rewards_B, and rewards_BF with the rows of failed rollouts turned to NaN, as TRL marks what it cannot score.
    """
    failed_B = rewards_BF.isinf().any(1) | rewards_BF.isnan().all(1)
    clean_BF = torch.where(failed_B[:, None], torch.nan, rewards_BF)
    rewards_B = torch.where(failed_B, torch.nan, (clean_BF * weights_F.to(clean_BF)).nansum(1))
    return rewards_B, clean_BF


def _refuse_other_columns(reward_func: Callable[..., Any], columns: dict[str, Any]) -> None:
    """Refuses a function that cannot be called with these columns: it is wrong, not a judge that failed."""
    try:
        signature = inspect.signature(reward_func)
    except (TypeError, ValueError):  # what is written in C may not say
        return
    try:
        signature.bind(**columns)
    except TypeError as error:
        raise RewardError(
            f"the reward {get_callable_name(reward_func)} takes ({', '.join(signature.parameters)}) and cannot be "
            f"called: {error}; {_way_out(signature, columns)}"
        ) from None


def _way_out(signature: inspect.Signature, columns: dict[str, Any]) -> str:
    parameters = signature.parameters
    if {"completion", "example", "row"} & set(parameters) and "completions" not in parameters:
        return "wrap a function of one completion and its row in poise.rewards.as_trl_reward"
    needed = [name for name, each in parameters.items() if each.default is each.empty and each.kind in _NAMED]
    if missing := [name for name in needed if name not in columns]:
        return f"the dataset has no column {', '.join(map(repr, missing))}"
    return "end its parameters with **columns, for those that it does not read"


def _checked(reward_func: Callable[..., Any], rewards: Any, count: int) -> list[float | None]:
    """One number or None for each rollout; a function that returns anything else is wrong, not a judge that failed."""
    name = get_callable_name(reward_func)
    try:
        values = [None if reward is None else float(reward) for reward in rewards]
    except (TypeError, ValueError):
        raise RewardError(
            f"{name} must return a list with one number or None per rollout, got {rewards!r:.80}"
        ) from None
    if len(values) != count:
        raise RewardError(f"{name} returned {len(values)} rewards for {count} rollouts; it must return one each")
    return [value if value is None or math.isfinite(value) else FAILED for value in values]


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["value"] = call()
        except (Exception, SystemExit) as error:
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True, name="reward")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no reward within {seconds:g} s")
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]
