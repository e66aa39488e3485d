"""Prompts and rewards of a run: from settings to datasets in the shared form and to functions that TRL calls.

Everything that can be wrong with a user's data or reward is found here, before a model is loaded.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from poise.errors import ConfigError
from poise.rewards import Verdict, Verifier, is_trl_reward, only_score, resolve, stand_ins, trl_reward, verifier
from poise.rewards.verdict import DOES_NOT_APPLY
from poise.runs.configfile import suggest
from poise.runs.settings import DataSettings, RewardSettings
from poise.tasks import load_task, named_options, reward_of
from poise.tasks.files import KINDS, as_answer
from poise.tasks.procedural import is_procedural
from poise.tasks.rows import draw
from poise.tasks.select import contamination, prompt_tokens, without

# What TRL hands to every reward function besides the dataset's columns.
_GIVEN_BY_TRL = {"prompts", "prompt", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}


@dataclass
class Prompts:
    """The datasets of a run, and one sentence for everything that was left out of them.

    A generated task comes in the order it is to be trained on: more steps then only make it longer, and a run that is
    resumed with more steps goes on as if it had been planned that way.
    """

    train: Dataset
    held_out: Dataset | None
    shuffled: bool = True
    notes: list[str] = field(default_factory=list)
    longest: int = 0  # tokens of the longest prompt


def task_name(settings: DataSettings) -> str:
    """The name under which the tasks know the training data."""
    if settings.task is not None and settings.data is not None:
        raise ConfigError(f"--task {settings.task} and --data {settings.data} both name the prompts; give one of them")
    if settings.data is None:
        return settings.task or "tiny"
    is_local = Path(settings.data).exists() or is_file(settings.data)
    return settings.data if is_local or settings.data.startswith("hub:") else f"hub:{settings.data}"


def is_file(name: str) -> bool:
    """Whether a task is a local file."""
    return not name.startswith("hub:") and Path(name).suffix in KINDS


def task_options(settings: DataSettings) -> dict[str, Any]:
    """Options of the training task, the column names among them."""
    columns = {"prompt": settings.prompt_column, "answer": settings.answer_column, "domain": settings.domain_column}
    renamed = {name: column for name, column in columns.items() if column != name}
    return {**named_options("task", settings.task_options), **renamed}


def held_out_task(settings: DataSettings) -> tuple[str, dict[str, Any]]:
    """Name and options of the task whose test split a run holds out: all of it, where a file is named for that."""
    name, options, other = task_name(settings), task_options(settings), settings.eval_task
    if other is None:
        return name, options
    if not is_file(other):
        return other, {}
    whole = {"test_file": other}  # two files are read alike, column names and template included
    return (name, {**options, **whole}) if is_file(name) else (other, whole)


# Between the streams of two data seeds; training streams of one data seed are told apart by the run's seed.
_DATA_SEED_STRIDE = 65_537


def load_prompts(settings: DataSettings, needed: int, seed: int, tokenizer: Any) -> Prompts:
    """Training and held-out prompts, none of them too long, none on both sides.

    Args:
        settings: where they come from.
        needed: prompts that the whole run draws, for tasks that are generated.
        seed: the run's seed; a generated task gives each its own training prompts.
        tokenizer: the policy's, which says how long a prompt is.

    Raises:
        ConfigError: the task, file, dataset, column or option does not exist, or no prompt is left.
    """
    name, options = task_name(settings), task_options(settings)
    if is_procedural(name):
        stream = settings.data_seed * _DATA_SEED_STRIDE + seed
        train = load_task(name, "train", settings.train_size or needed, stream, **options)
    else:
        train = load_task(name, "train", settings.train_size, settings.data_seed, **options)
    prompts = Prompts(train, None, shuffled=settings.train_size is not None or not is_procedural(name))
    if settings.eval_size > 0:
        prompts.held_out = _held_out(settings)
        if settings.eval_task is not None or not is_procedural(name):
            _keep_apart(prompts)
    prompts.train = _short_enough(prompts.train, tokenizer, settings.max_prompt_tokens, "training", prompts)
    if prompts.held_out is not None:
        longest = settings.max_prompt_tokens
        prompts.held_out = _short_enough(prompts.held_out, tokenizer, longest, "held-out", prompts)
    if missing := sum(not answer.strip() for answer in prompts.train["answer"]):
        prompts.notes.append(f"{missing} of {len(prompts.train)} training prompts have no ground truth")
    return prompts


def _held_out(settings: DataSettings) -> Dataset:
    name, options = held_out_task(settings)
    try:
        return at_most(name, "test", settings.eval_size, settings.data_seed, options)
    except ConfigError as error:
        raise ConfigError(f"held-out prompts: {error} (--eval-size 0 trains without evaluation)") from error


def at_most(name: str, split: str, size: int | None, seed: int, options: Mapping[str, Any]) -> Dataset:
    """Rows of a task: `size` of them, or as many as there are; all (a generated task: its usual number) if None."""
    if size is None or is_procedural(name):
        return load_task(name, split, size, seed, **options)
    rows = load_task(name, split, None, seed, **options)
    return draw(rows, min(size, len(rows)), seed)


def _keep_apart(prompts: Prompts) -> None:
    """Drops training prompts that are held out as well."""
    assert prompts.held_out is not None
    shared = contamination(prompts.train, [prompts.held_out]).exact
    if shared:
        prompts.train = without(prompts.train, shared)
        prompts.notes.append(f"{len(shared)} training prompts are held out as well, and were dropped from training")
    if len(prompts.train) == 0:
        raise ConfigError("every training prompt is held out as well; give other held-out prompts with --eval-task")


def _short_enough(dataset: Dataset, tokenizer: Any, longest: int, which: str, prompts: Prompts) -> Dataset:
    lengths = [prompt_tokens(tokenizer, prompt) for prompt in dataset["prompt"]]
    kept = [index for index, length in enumerate(lengths) if length <= longest]
    if not kept:
        raise ConfigError(
            f"no {which} prompt has at most {longest} tokens (the shortest has {min(lengths)}); "
            "raise --max-prompt-tokens"
        )
    if len(kept) < len(dataset):
        prompts.notes.append(
            f"{len(dataset) - len(kept)} of {len(dataset)} {which} prompts exceed {longest} tokens, and were dropped"
        )
        dataset = dataset.select(kept)
    prompts.longest = max(prompts.longest, *(lengths[index] for index in kept))
    return dataset


def reward_names(settings: RewardSettings, data: DataSettings) -> tuple[str, ...]:
    """The rewards that are named, or the training task's own.

    Raises:
        ConfigError: the weights do not match the rewards.
    """
    return _weighed(settings.reward or (reward_of(task_name(data)),), settings.reward_weights)


def _weighed(names: tuple[str, ...], weights: tuple[float, ...]) -> tuple[str, ...]:
    if weights and len(weights) != len(names):
        raise ConfigError(
            f"{len(weights)} reward weights for {len(names)} rewards ({', '.join(names)}); give one weight per reward"
        )
    return names


def judged(
    dataset: Dataset, task: str, rewards: tuple[str, ...], weights: tuple[float, ...] = ()
) -> tuple[Dataset, Verifier, str]:
    """What an evaluation needs of its rewards, the task's own if none is named.

    Returns:
        The dataset with the columns that the rewards ask for, the verifier whose score is their weighted sum, and
        their names as one text.

    Raises:
        ConfigError: nothing has that name, a column or all ground truths are missing, or the weights do not match the
            rewards.
    """
    names = _weighed(rewards or (reward_of(task),), weights)
    said = " + ".join(names if not weights else (f"{w:g} {name}" for w, name in zip(weights, names, strict=True)))
    refuse_no_truth(names, dataset)
    return with_columns(dataset, names), total_reward(names, weights), said


def load_rewards(names: tuple[str, ...], prompts: Prompts) -> list[Callable[..., Any]]:
    """TRL reward functions, with the columns they ask for brought into the datasets.

    Raises:
        ConfigError: nothing has that name, or it asks for a column that the data does not have.
    """
    prompts.train = with_columns(prompts.train, names)
    if prompts.held_out is not None:
        _refuse_token_ids(names)
        prompts.held_out = with_columns(prompts.held_out, names)
    return [trl_reward(name) for name in names]


def _refuse_token_ids(names: tuple[str, ...]) -> None:
    """Evaluations sample text; a reward that cannot do without token ids would fail in all of them."""
    for name in names:
        needed = inspect.signature(resolve(name)).parameters.get("completion_ids")
        if needed is not None and needed.default is needed.empty:
            raise ConfigError(
                f"the reward {name} asks for completion_ids, which evaluations do not have; give that parameter a "
                "default, or train without evaluation (--eval-size 0)"
            )


def with_columns(dataset: Dataset, names: tuple[str, ...]) -> Dataset:
    """The dataset with the columns that rewards ask for by name, brought out of `info` where they are not columns."""
    for name in names:
        for column in _columns_asked_for(name):
            dataset = _with_column(dataset, column, name)
    return dataset


def _columns_asked_for(name: str) -> list[str]:
    reward = resolve(name)
    if not is_trl_reward(reward):
        return []
    parameters = inspect.signature(reward).parameters.values()
    named = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return [column for column in named if column not in _GIVEN_BY_TRL]


def _with_column(dataset: Dataset, column: str, reward: str) -> Dataset:
    if column in dataset.column_names:
        return dataset
    infos = [json.loads(text) for text in dataset["info"]] if "info" in dataset.column_names else []
    if infos and all(column in info for info in infos):
        try:
            return dataset.add_column(column, [info[column] for info in infos])  # pyright: ignore
        except (ValueError, TypeError, OverflowError) as error:  # pyarrow's errors are among them
            raise ConfigError(
                f"the column {column!r}, which the reward {reward} asks for, holds values of several types ({error}); "
                "make them all texts or all numbers"
            ) from error
    known = [*dataset.column_names, *(infos[0] if infos else ())]
    raise ConfigError(f"the reward {reward} asks for a column {column!r}, which the data lacks{suggest(column, known)}")


def total_reward(names: tuple[str, ...], weights: tuple[float, ...]) -> Verifier:
    """One verifier whose score is the weighted sum of the rewards' that apply; it fails where any of them fails."""
    verifiers = [verifier(name) for name in names]
    if len(verifiers) == 1 and weights in ((), (1.0,)):
        return verifiers[0]

    def verify(completion: str, example: Mapping[str, Any]) -> Verdict:
        verdicts = [each(completion, example) for each in verifiers]
        weighed = zip(weights or [1.0] * len(names), verdicts, strict=True)
        applying = [(weight, verdict) for weight, verdict in weighed if verdict.failure != DOES_NOT_APPLY]
        for verdict in [verdict for _, verdict in applying] or verdicts:
            if verdict.score is None:
                return verdict
        total = sum(weight * float(verdict.score or 0.0) for weight, verdict in applying)
        return Verdict(score=total, answer=applying[0][1].answer)

    return verify


def _is_built_in(name: str) -> bool:
    return resolve(name).__module__.startswith("poise.")


def refuse_no_truth(names: tuple[str, ...], dataset: Dataset) -> None:
    """Refuses a built-in reward that needs a ground truth where no row has one: it would fail on every rollout.

    Raises:
        ConfigError: the reward, what it says, and the columns that may hold the ground truth.
    """
    if "answer" not in dataset.column_names or any(answer.strip() for answer in dataset["answer"]):
        return
    row = dataset[0]
    for name in names:
        if _is_built_in(name) and (failure := verifier(name)("", row).failure):
            others = [column for column in json.loads(row.get("info") or "{}") if not column.startswith("_")]
            raise ConfigError(
                f"no row has a ground truth, without which the reward {name} fails ({failure}); name its column with "
                f"--answer-column, or --task-options answer=NAME (the data has: {', '.join(others) or 'no other'})"
            )


def answers_as_text(dataset: Dataset, options: Mapping[str, Any], names: tuple[str, ...] | None = None) -> list[str]:
    """A sentence if the data's ground truths are no text: rewards get them as text.

    Args:
        dataset: rows in the shared form; `info` has such a ground truth as it was.
        options: the task's, one of which may name the column of the ground truth.
        names: the rewards; built-in ones read text, so that nothing need be said. None: whatever the rewards.
    """
    if "info" not in dataset.column_names or (names is not None and all(map(_is_built_in, names))):
        return []
    column = options.get("answer", "answer")
    said = zip((json.loads(info).get(column) for info in dataset["info"]), dataset["answer"], strict=True)
    pairs = [(value, text) for value, text in said if not isinstance(value, str) and text and as_answer(value) == text]
    if not pairs:
        return []
    value, text = pairs[0]
    return [
        f"{len(pairs)} of {len(dataset)} answers are no text in the data, and rewards get them as text: {value!r:.40} "
        f"as {text!r:.40}"
    ]


def try_rewards(names: tuple[str, ...], rewards: list[Callable[..., Any]], dataset: Dataset) -> list[str]:
    """Calls each reward once on the first row with its own ground truth as the completion; says what came out.

    Raises:
        ConfigError: a reward raises, or returns something else than one number or None per rollout; or it needs ground
            truths, and there are none.
    """
    refuse_no_truth(names, dataset)
    row = dataset[0]
    truth = str(row.get("answer") or "")
    completion = truth if isinstance(row["prompt"], str) else [{"role": "assistant", "content": truth}]
    columns = {key: [value] for key, value in row.items() if key != "prompt"}
    said: list[str] = []
    for name, reward in zip(names, rewards, strict=True):
        try:
            if not is_trl_reward(resolve(name)):
                verifier(name)(truth, row)  # what it raises is caught in its other form
            scores = reward(prompts=[row["prompt"]], completions=[completion], **_given(reward), **columns)
            scores = asyncio.run(scores) if inspect.iscoroutine(scores) else scores
        except Exception as error:
            message = f"the reward {name} fails on the first row: {type(error).__name__}: {error}"
            raise ConfigError(message) from error
        said.append(f"reward {name} gives {only_score(name, scores)} to the first row's ground truth")
    return said


def _given(reward: Callable[..., Any]) -> dict[str, Any]:
    """Stand-ins for what TRL adds in a run, as far as the function asks for it."""
    ids = {"completion_ids": [[0]]} if "completion_ids" in inspect.signature(reward).parameters else {}
    return {**stand_ins(reward), **ids}
