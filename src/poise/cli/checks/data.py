"""Checks of prompts and rewards, with the tokenizer of the policy they are meant for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from poise.cli.checks import Check
from poise.runs.policy import Policy
from poise.runs.prompts import Prompts, answers_as_text, task_options
from poise.runs.settings import TrainSettings
from poise.tasks.select import prompt_tokens


def check_data(settings: TrainSettings, policy: Policy, prompts: Prompts, names: tuple[str, ...]) -> Iterator[Check]:
    """Columns, lengths, ground truths, and whether the reward tells right from wrong."""
    train = prompts.train
    form = "text" if isinstance(train[0]["prompt"], str) else "messages"
    held_out = len(prompts.held_out) if prompts.held_out is not None else 0
    columns = ", ".join(train.column_names)
    yield Check("ok", "prompts", f"{len(train)} for training, {held_out} held out, as {form}; columns {columns}")
    for note in prompts.notes:
        yield Check("warning", "prompts", note, "raise --max-prompt-tokens" if "exceed" in note else "")
    for note in answers_as_text(train, task_options(settings.data), names):
        yield Check("warning", "ground truth", note, "let the reward read text")
    needed = settings.optimisation.steps * settings.optimisation.prompts_per_step
    if len(train) < needed:
        found = f"the run draws {needed} prompts from {len(train)}: {needed / len(train):.1f} times each"
        yield Check("ok", "epochs", found)
    empty = sum(not str(answer).strip() for answer in train["answer"]) if "answer" in train.column_names else len(train)
    if empty:
        fix = "name the right --answer-column, unless the reward needs none"
        yield Check("warning", "ground truth", f"{empty} of {len(train)} rows have none", fix)
    yield from _solutions(train, names)
    yield _context(settings, policy, train)
    for name in names:
        yield _reward(name, train[0])


def _solutions(train: Dataset, names: tuple[str, ...]) -> Iterator[Check]:
    """Ground truths of several lines, where the reward compares all of it; `math` reads what is behind `####`."""
    if "answer" not in train.column_names or not {"exact", "math"} & set(names):
        return
    answers = [str(answer).strip() for answer in train["answer"]]
    long = sum("\n" in answer and ("exact" in names or "####" not in answer) for answer in answers)
    if long:
        fix = "keep the final answer alone in the answer column, without its working"
        yield Check("warning", "ground truth", f"{long} of {len(train)} rows have several lines", fix)


def _context(settings: TrainSettings, policy: Policy, train: Dataset) -> Check:
    """Whether the longest prompt and the longest completion fit the model's context together."""
    longest = max(prompt_tokens(policy.tokenizer, prompt) for prompt in train["prompt"])
    room = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    found = f"prompts up to {longest} tokens, completions up to {settings.generation.max_completion_tokens}"
    if room is not None and longest + settings.generation.max_completion_tokens > room:
        fix = "lower --max-completion-tokens, or --max-prompt-tokens"
        return Check("warning", "context", f"{found}: more than the model's {room}", fix)
    return Check("ok", "context", f"{found}; the model has {room or 'no limit'}")


def _reward(name: str, row: dict[str, Any]) -> Check:
    """Scores the row's own ground truth in the forms that rewards read, and an empty completion."""
    from poise.rewards import verifier

    truth = str(row.get("answer", ""))
    forms = [truth, f"<answer>{truth}</answer>", f"Answer: {truth}", f"\\boxed{{{truth}}}", f"#### {truth}"]
    what, verify = f"reward {name}", verifier(name)
    try:
        verdicts = {form: verify(form, row) for form in ["", *forms]}
    except Exception as error:
        return Check(
            "error", what, f"fails on the first row: {type(error).__name__}: {error}", "fix the reward or the data"
        )
    failed = [verdict.failure for verdict in verdicts.values() if verdict.score is None]
    if failed:
        return Check("error", what, f"cannot verify the first row: {failed[0]}", "correct the reward or the data")
    scores = {form: float(verdict.score or 0.0) for form, verdict in verdicts.items()}
    best = max(forms, key=lambda form: scores[form])
    found = f"{scores['']:g} for an empty completion, {scores[best]:g} for {best!r}"
    if scores[best] > scores[""]:
        return Check("ok", what, found)
    return Check("warning", what, found, "check that it can recognise a right answer in the form your model writes")
