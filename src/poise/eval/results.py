"""What an evaluation found, as data: one record a prompt, the estimates made of them, and the JSON two runs share."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from poise.errors import ConfigError
from poise.eval.metrics import Estimate, bootstrap, majority, pass_at_k

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class PromptResult:
    """The verified samples of one prompt.

    Args:
        key: hash of prompt and answer; the same prompt has the same key in every run.
        domain: domain of the row.
        scores: reward of each sample; None where the verification failed.
        answers: what the verifier extracted from each sample.
        tokens: generated tokens of each sample, the end-of-sequence token included.
        truncated: whether each sample hit the length limit.
        failures: reasons of the failed verifications.
    """

    key: str
    domain: str
    scores: tuple[float | None, ...]
    answers: tuple[str | None, ...]
    tokens: tuple[int, ...]
    truncated: tuple[bool, ...]
    failures: tuple[str, ...] = ()

    @property
    def verified(self) -> list[float]:
        """Scores of the samples whose verification went through."""
        return [score for score in self.scores if score is not None]

    @property
    def average(self) -> float:
        """Mean score of the verified samples; nan if there is none."""
        return math.fsum(self.verified) / len(self.verified) if self.verified else math.nan

    def passed(self, k: int, correct_at: float) -> float:
        """Unbiased pass@k; nan where fewer than k samples were verified."""
        verified = self.verified
        if len(verified) < k:
            return math.nan
        return pass_at_k(len(verified), sum(score >= correct_at for score in verified), k)

    def majority(self, correct_at: float) -> float:
        """Whether the most frequent answer is correct; nan if nothing was verified."""
        kept = [
            (answer, score >= correct_at)
            for answer, score in zip(self.answers, self.scores, strict=True)
            if score is not None
        ]
        voted = majority([answer for answer, _ in kept], [right for _, right in kept])
        return math.nan if voted is None else voted


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation's estimates, with the per-prompt results behind them.

    Args:
        settings: model, task and sampling settings, as given.
        results: one record a prompt, in the dataset's order.
        average: mean score, avg@k.
        pass_at: unbiased pass@k for k = 1, 2, 4, ... and the number of samples.
        majority: maj@k; domains whose verifier extracts no answers, but pays, are left out; None if nothing is left.
        domains: average of each domain.
        truncated: share of samples that hit the length limit.
        failed: number of samples whose verification failed; they are in none of the estimates.
        failures: reasons of the failures, with their counts.
        tokens: mean generated tokens a sample.
        seconds: wall time of sampling and verification.
    """

    settings: Mapping[str, Any]
    results: tuple[PromptResult, ...]
    average: Estimate
    pass_at: Mapping[int, Estimate]
    majority: Estimate | None
    domains: Mapping[str, Estimate]
    truncated: float
    failed: int
    failures: Mapping[str, int]
    tokens: float
    seconds: float

    @property
    def samples(self) -> int:
        return sum(len(result.scores) for result in self.results)

    def to_json(self, path: str | Path | None = None) -> str:
        """The evaluation as JSON text, also written to a file if a path is given."""
        fields = _without_nan({"schema": SCHEMA, **asdict(self)})
        text = json.dumps(fields, indent=1, ensure_ascii=False, default=str, allow_nan=False)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    @staticmethod
    def from_json(source: str | Path) -> Evaluation:
        """The evaluation in a JSON file (or text), equal to the one that wrote it.

        Raises:
            ConfigError: there is no such file, or it is not an evaluation of a known schema.
        """
        text = str(source)
        if not text.lstrip().startswith("{"):
            if not Path(source).is_file():
                raise ConfigError(f"there is no evaluation at {source}")
            text = Path(source).read_text(encoding="utf-8")
        try:
            return _from_fields(json.loads(text))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ConfigError(f"{str(source)[:80]} is not an evaluation of schema {SCHEMA}: {error!r}") from error


def summarise(
    results: Sequence[PromptResult],
    settings: Mapping[str, Any],
    *,
    seconds: float,
    correct_at: float = 1.0,
    resamples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """All estimates of an evaluation from its per-prompt results."""

    def estimate(values: Sequence[float]) -> Estimate:
        return bootstrap(values, resamples=resamples, seed=seed)

    most = max((len(result.scores) for result in results), default=0)
    ks = sorted({1 << power for power in range(most.bit_length()) if 1 << power <= most} | ({most} if most else set()))
    extracts = {result.domain for result in results if any(answer is not None for answer in result.answers)}
    unread = {result.domain for result in results if result.passed(1, correct_at) > 0} - extracts
    voted = [result.majority(correct_at) for result in results if result.domain not in unread] if extracts else []
    failures = Counter(reason for result in results for reason in result.failures)
    flags = [flag for result in results for flag in result.truncated]
    tokens = [count for result in results for count in result.tokens]
    return Evaluation(
        settings=dict(settings),
        results=tuple(results),
        average=estimate([result.average for result in results]),
        pass_at={k: estimate([result.passed(k, correct_at) for result in results]) for k in ks},
        majority=estimate(voted) if voted else None,
        domains={
            domain: estimate([result.average for result in results if result.domain == domain])
            for domain in sorted({result.domain for result in results})
        },
        truncated=sum(flags) / len(flags) if flags else math.nan,
        failed=sum(failures.values()),
        failures=dict(failures.most_common()),
        tokens=sum(tokens) / len(tokens) if tokens else math.nan,
        seconds=seconds,
    )


def _from_fields(fields: dict[str, Any]) -> Evaluation:
    if fields.pop("schema") != SCHEMA:
        raise KeyError("schema")
    fields["results"] = tuple(
        PromptResult(**{key: tuple(value) if isinstance(value, list) else value for key, value in result.items()})
        for result in fields["results"]
    )
    fields["average"] = _estimate(fields["average"])
    fields["pass_at"] = {int(k): _estimate(value) for k, value in fields["pass_at"].items()}
    fields["majority"] = _estimate(fields["majority"]) if fields["majority"] else None
    fields["domains"] = {domain: _estimate(value) for domain, value in fields["domains"].items()}
    return Evaluation(**fields)


def _estimate(fields: Mapping[str, Any]) -> Estimate:
    return Estimate(**{key: math.nan if value is None else value for key, value in fields.items()})


def _without_nan(value: Any) -> Any:
    """JSON has no nan; an estimate of nothing is written as null."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list | tuple) else value
