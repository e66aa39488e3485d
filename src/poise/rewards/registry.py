"""Names of rewards: from a built-in name or `module:function` to something that can verify.

This is where the `verify` step of the flow is chosen. A reward is either a verifier of ours, `(completion, example) ->
Verdict`, or a function with TRL's signature, `(prompts, completions, **columns) -> list`; the two are told apart by
their parameters, and each can be asked for in the other's form.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping
from threading import RLock
from typing import Any

from poise.errors import ConfigError
from poise.rewards.imports import import_attribute, nearest
from poise.rewards.verdict import DOES_NOT_APPLY, Verdict, Verifier, as_trl_reward, verdict_of

TRLReward = Callable[..., Any]
Reward = Verifier | TRLReward

# A string is `module:function`, imported when it is first asked for: math-verify and sandboxes are not free.
_REWARDS: dict[str, Reward | str] = {
    "arithmetic": "poise.rewards.arithmetic:verify",
    "exact": "poise.rewards.exact:verify",
    "math": "poise.rewards.mathematics:MathVerifier",
    "code": "poise.rewards.programs:CodeVerifier",
    "code-partial": "poise.rewards.programs:PartialCode",
    "code-sandbox-fusion": "poise.rewards.programs:FusionCode",
    "code-unsafe-local": "poise.rewards.programs:UnsafeLocalCode",
    "instructions": "poise.rewards.instructions:verify",
    "instructions-partial": "poise.rewards.instructions:verify_partial",
    "tools": "poise.rewards.tools:verify",
    "mixed": "poise.rewards.mixed:verify",
    "number": "poise.rewards.exact:verify_number",
    "procedural": "poise.rewards.procedural:verify",
    "procedural-partial": "poise.rewards.procedural:verify_partial",
}
# Rewards that run code with no sandbox: only who starts the run may ask for one.
_UNGUARDED = {"code-unsafe-local"}
# What was made of a user's class that a spec named: a judge that loads a model loads it once.
_MADE: dict[type, Reward] = {}
# Held while a reward is imported and made: verl's reward workers ask for one from many threads at once.
_MAKING = RLock()


def register(name: str, reward: Reward | str) -> None:
    """Adds a reward under a name: a function, or `module:function` to be imported at its first use.

    Raises:
        ConfigError: the name is taken by another reward.
    """
    if name in _REWARDS and _REWARDS[name] is not reward and _REWARDS[name] != reward:
        raise ConfigError(f"the reward name {name!r} is already taken by {_REWARDS[name]!r}; choose another name")
    _REWARDS[name] = reward


def names() -> list[str]:
    """Every built-in and registered reward name, sorted."""
    return sorted(_REWARDS)


def resolve(spec: str | Reward) -> Reward:
    """The verifier or TRL reward that a spec names.

    Args:
        spec: a built-in name (see `names`), `module:function`, `path/to/file.py:function`, or the function itself.

    Raises:
        ConfigError: nothing has that name, the module cannot be imported, or the function has neither signature.
    """
    if not isinstance(spec, str):
        return _accepted(spec, repr(spec))
    if spec in _REWARDS:
        with _MAKING:
            found = _REWARDS[spec]
            if isinstance(found, str):
                # A class is made once, so that what it needs (a sandbox, a library) is missed before any training.
                _REWARDS[spec] = found = _accepted(import_attribute(found), spec)
        return found
    if ":" in spec:
        with _MAKING:
            found = import_attribute(spec)
            if not isinstance(found, type):
                return _accepted(found, spec)
            if found not in _MADE:
                _MADE[found] = _accepted(found, spec)
            return _MADE[found]
    if spec.endswith(".py"):
        raise ConfigError(f"{spec} is a file; name the function in it, as {spec}:FUNCTION")
    raise ConfigError(f"no reward is called {spec!r}{nearest(spec, names())}; or name your own as 'module:function'")


def verifier(spec: str | Reward) -> Verifier:
    """The reward that a spec names, in our form `(completion, example) -> Verdict`."""
    reward = resolve(spec)
    if is_trl_reward(reward):
        return from_trl_reward(reward)
    return reward if reward.__module__.startswith("poise.") else _in_verdicts(reward)


def check_row_names(name: str) -> None:
    """Refuses a reward that a data row may not name.

    Rows come from files and the hub. They may choose among the rewards there are, but not what code is imported, nor
    that code runs with no sandbox.

    Raises:
        ConfigError: the name is no registered one, or that of a reward without a sandbox.
    """
    allowed = [known for known in names() if known not in _UNGUARDED]
    if name not in allowed:
        raise ConfigError(
            f"data rows may name registered rewards only, not {name!r}{nearest(name, allowed)}; any other is named "
            "where the run starts: --reward, or +reward.custom_reward_function.reward_kwargs.reward under verl"
        )


def _in_verdicts(reward: Callable[..., Any]) -> Verifier:
    """A user's verifier, which may say a number where ours say a Verdict; it keeps its name and attributes."""

    def verify(completion: str, example: Mapping[str, Any]) -> Verdict:
        return verdict_of(reward(completion, example))

    return functools.update_wrapper(verify, reward)


def trl_reward(spec: str | Reward) -> TRLReward:
    """The reward that a spec names, in TRL's form: columns in, one float (NaN: failed) or None per rollout out."""
    reward = resolve(spec)
    if is_trl_reward(reward):
        return reward
    return as_trl_reward(reward, name=spec.rsplit(":", 1)[-1] if isinstance(spec, str) else None)


def is_trl_reward(reward: Reward) -> bool:
    """Whether a callable takes TRL's keyword columns rather than one completion and its example."""
    parameters = inspect.signature(reward).parameters
    only_keywords = {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.VAR_KEYWORD}
    return bool({"completions", "completion_ids"} & set(parameters)) or only_keywords


def from_trl_reward(reward: TRLReward) -> Verifier:
    """A verifier from a TRL reward function, called with one rollout at a time; None becomes a failure."""

    def verify(completion: str, example: Mapping[str, Any]) -> Verdict:
        prompt = example.get("prompt", "")
        columns = {key: [value] for key, value in example.items() if key not in ("prompt", "prompts", "completions")}
        said = completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]
        scored = reward(prompts=[prompt], completions=[said], **{**stand_ins(reward), **columns})
        score = only_score(verify.__name__, asyncio.run(scored) if inspect.iscoroutine(scored) else scored)
        return Verdict.failed(DOES_NOT_APPLY) if score is None else Verdict(score=score)

    verify.__name__ = getattr(reward, "__name__", type(reward).__name__)
    return verify


def only_score(name: str, scores: Any) -> float | None:
    """The score of a single rollout, as the trainer reads it: numbers of numpy and torch are numbers.

    Raises:
        ConfigError: what a reward of TRL's form returned is no list of one number or None.
    """
    try:
        (score,) = scores
        return None if score is None else float(score)
    except (TypeError, ValueError):
        raise ConfigError(
            f"the reward {name} must return a list with one number or None per rollout, got {scores!r:.80}"
        ) from None


def stand_ins(reward: TRLReward) -> dict[str, Any]:
    """What TRL adds in a run, as far as the function asks for it, for calls outside of one: step 0, and no log."""

    def unheard(*said: Any) -> None: ...

    parameters = inspect.signature(reward).parameters
    given: dict[str, Any] = {name: unheard for name in ("log_extra", "log_metric") if name in parameters}
    if "trainer_state" in parameters:
        from transformers import TrainerState

        given["trainer_state"] = TrainerState(max_steps=1)
    return given


def from_verl_reward(reward: Callable[..., Any]) -> Verifier:
    """A verifier from verl's `compute_score(data_source, solution_str, ground_truth, extra_info)`."""

    def verify(completion: str, example: Mapping[str, Any]) -> Verdict:
        scored = reward(
            data_source=example.get("domain", ""),
            solution_str=completion,
            ground_truth=example.get("answer", ""),
            extra_info={"info": example.get("info", "{}")},
        )
        return Verdict(score=float(scored["score"] if isinstance(scored, Mapping) else scored))

    verify.__name__ = getattr(reward, "__name__", type(reward).__name__)
    return verify


def _accepted(reward: Any, spec: str) -> Reward:
    if isinstance(reward, type):
        try:
            reward = reward()
        except TypeError as error:
            raise ConfigError(f"the reward {spec} is a class that cannot be made without arguments: {error}") from error
    if not callable(reward):
        raise ConfigError(f"the reward {spec} is of type {type(reward).__name__} and cannot be called")
    try:
        parameters = inspect.signature(reward).parameters
    except ValueError as error:
        raise ConfigError(f"the reward {spec} does not say what it takes: {error}") from error
    if is_trl_reward(reward):
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            raise ConfigError(
                f"the reward {spec} takes ({', '.join(parameters)}), but is given every column of the data: "
                f"write ({', '.join(parameters)}, **columns)"
            )
        return reward
    if "solution_str" in parameters:
        return from_verl_reward(reward)
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    if len(positional) >= 2 >= len(required):
        _refuse_other_second(positional[1].name, parameters, spec)
        return reward
    raise ConfigError(
        f"the reward {spec} takes ({', '.join(parameters)}); expected (completion, example) -> Verdict or number, "
        "or TRL's (prompts, completions, **columns) -> list of floats"
    )


def _refuse_other_second(name: str, parameters: Mapping[str, Any], spec: str) -> None:
    """The second argument is the whole row; a function that calls it `answer` would read something else into it."""
    if name not in ("example", "row") and not name.startswith("_"):
        raise ConfigError(
            f"the reward {spec} takes ({', '.join(parameters)}): the second argument is the whole row; name it "
            f"`example` and read example[{name!r}], or write (completions, {name}, **columns)"
        )
