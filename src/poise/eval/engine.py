"""Evaluation of a policy on a task: sample k completions a prompt, verify each, estimate avg@k, pass@k and maj@k."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from poise.eval.results import Evaluation, PromptResult, summarise
from poise.eval.sampling import Completion, HFSampler, Sampler, Sampling
from poise.eval.store import SampleStore, prompt_key
from poise.rewards import Verdict, Verifier, verifier


def evaluate(
    model: Any,
    tokenizer: Any,
    dataset: Iterable[Mapping[str, Any]],
    verify: Verifier | str,
    *,
    k: int = 32,
    temperature: float = 0.6,
    top_p: float = 0.95,
    max_new_tokens: int = 8192,
    batch_size: int = 64,
    seed: int = 0,
    stop: tuple[str, ...] = (),
    template: Mapping[str, Any] | None = None,
    samples_path: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    correct_at: float = 1.0,
    resamples: int = 2000,
    on_prompt: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluates a transformers model on a dataset in the shared form.

    The model's mode and the random state are as before when it returns, so it may be called in the middle of training.

    Args:
        model, tokenizer: the policy, on the device it is to run on.
        dataset: rows with prompt, answer, domain, info.
        verify: a verifier, or the name of a reward.
        k, temperature, top_p, max_new_tokens, batch_size, seed, stop, template: see `Sampling`.
        samples_path: JSONL of finished prompts; if it exists they are not sampled again.
        settings: what else to record in the result (model and task names).
        correct_at: score from which a sample counts as correct in pass@k and maj@k.
        resamples: bootstrap resamples of the intervals.
        on_prompt: called as (finished, total) after each prompt is sampled.

    Raises:
        StateMismatchError: `samples_path` holds samples made under other settings.
    """
    sampling = Sampling(k, temperature, top_p, max_new_tokens, batch_size, seed, tuple(stop), dict(template or {}))
    return evaluate_with(
        HFSampler(model, tokenizer),
        dataset,
        verify,
        sampling,
        samples_path=samples_path,
        settings=settings,
        correct_at=correct_at,
        resamples=resamples,
        on_prompt=on_prompt,
    )


def evaluate_with(
    sampler: Sampler,
    dataset: Iterable[Mapping[str, Any]],
    verify: Verifier | str,
    sampling: Sampling | None = None,
    *,
    samples_path: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    correct_at: float = 1.0,
    resamples: int = 2000,
    on_prompt: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluates whatever a sampler samples from; see `evaluate`."""
    start = time.perf_counter()
    sampling = sampling or Sampling()
    check = verifier(verify)
    rows = list(dataset)
    store = SampleStore(
        samples_path, _fingerprint(rows, sampling, {**(settings or {}), **getattr(sampler, "settings", {})})
    )
    for index, completions in sampler([row["prompt"] for row in rows], sampling, store.done):
        store.add(index, completions)
        if on_prompt is not None:
            on_prompt(len(store.completions), len(rows))
    results = verify_samples(rows, store.completions, check)
    return summarise(
        results,
        {**(settings or {}), **asdict(sampling)},
        seconds=time.perf_counter() - start,
        correct_at=correct_at,
        resamples=resamples,
        seed=sampling.seed,
    )


def verify_samples(
    rows: list[Mapping[str, Any]], completions: Mapping[int, list[Completion]], verify: Verifier
) -> list[PromptResult]:
    """Verdicts of all samples, a result a prompt in the rows' order. An exception in the verifier is a failure."""

    def checked(text: str, row: Mapping[str, Any]) -> Verdict:
        try:
            return verify(text, row)
        except Exception as error:
            return Verdict.failed(f"{type(error).__name__}: {error}")

    # Verifiers that wait for other processes say how many samples they can look at side by side.
    with ThreadPoolExecutor(getattr(verify, "concurrency", 1)) as pool:
        verdicts = [
            [pool.submit(checked, completion.text, row) for completion in completions[index]]
            for index, row in enumerate(rows)
        ]
        seen: dict[str, int] = {}
        results = []
        for index, row in enumerate(rows):
            key = prompt_key(row)
            seen[key] = seen.get(key, 0) + 1
            result = _result(row, completions[index], [future.result() for future in verdicts[index]])
            # A prompt that occurs twice is two prompts: its second occurrence gets a key of its own.
            results.append(result if seen[key] == 1 else replace(result, key=f"{key}-{seen[key]}"))
    return results


def _result(row: Mapping[str, Any], completions: list[Completion], verdicts: list[Verdict]) -> PromptResult:
    return PromptResult(
        key=prompt_key(row),
        domain=str(row.get("domain") or "default"),
        scores=tuple(verdict.score for verdict in verdicts),
        answers=tuple(verdict.answer for verdict in verdicts),
        tokens=tuple(completion.tokens for completion in completions),
        truncated=tuple(completion.truncated for completion in completions),
        failures=tuple(verdict.failure for verdict in verdicts if verdict.failure is not None),
    )


def _fingerprint(rows: list[Mapping[str, Any]], sampling: Sampling, settings: Mapping[str, Any]) -> dict[str, Any]:
    prompts = hashlib.blake2b("".join(map(prompt_key, rows)).encode(), digest_size=8).hexdigest()
    names = ("model", "revision", "weights", "sampler", "dtype", "device", "engine")
    named = {name: settings[name] for name in names if name in settings}
    return {"prompts": len(rows), "prompts_hash": prompts, **named, **asdict(sampling)}
