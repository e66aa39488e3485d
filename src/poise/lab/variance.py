"""`poise lab variance`: what each baseline does to the variance of the policy gradient, at a fixed rollout budget.

Rollouts of training prompts teach the probes and the critic; of held-out prompts, n rollouts give full gradients and
their inner products, and further ones the oracles' pass rates and squared score norms.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from poise.core.baselines import BASELINES
from poise.lab.cache import Cache
from poise.lab.critic import fit_critic
from poise.lab.gradients import METRICS, Gradients, Measuring, measure, preconditioner, second_moment
from poise.lab.metrics import groups_of, interval, mean_ranks, ratio, resample_weights
from poise.lab.moments import (
    Method,
    crossed,
    fixed,
    of_rewards,
    optimal_baseline_M,
    second_moment_M,
    signal_R,
    total_variance_R,
    within_and_mean_M,
)
from poise.lab.policy import FrozenPolicy, Prompts, domains_of, load_policy, load_prompts
from poise.lab.probes import (
    ALL,
    WITHOUT_SURPRISE,
    Training,
    Variant,
    fit_and_predict,
    reference,
    verified,
    with_config,
)
from poise.lab.rollouts import PROXIES, Rollouts, collect
from poise.lab.scores import Projection
from poise.lab.settings import CRITIC_SETTINGS, VarianceSettings, described, folder_of
from poise.lab.streamed import streamed, taught
from poise.lab.study import Steps, show, write_study

RLOO_2 = "RLOO"
OUTCOME = "probe, score-weighted + sibling's outcome"
# The form that training uses by default (`poise.core.presets`): that probe and the means, combined as did best.
DEFAULT = "self-choosing"
ALLOCATIONS = (1, 2, 4, 8)


def run(settings: VarianceSettings) -> int:
    """The study from settings to folder; returns the exit status.

    Raises:
        PoiseError: something asked for does not exist or cannot work, or the folder holds another study.
    """
    began, console = time.perf_counter(), Console()
    prompts = load_prompts(settings, settings.train_prompts, settings.prompts)
    policy = load_policy(settings)
    folder, steps = folder_of(settings, "variance"), Steps(console)
    with steps.progress:
        training, rollouts, prompts = gather(settings, prompts, policy, folder, steps)
        predictions = predict(settings, prompts, policy, training, rollouts, folder, steps)
        default = self_choosing(settings, prompts, policy, training, rollouts)
        gradients = take(settings, prompts, policy, training, rollouts, folder, steps)
        with steps.step("variances", 1) as done:
            rows = analyse(settings, gradients, predictions, default, rollouts, prompts.domains)
            done()
    from poise.lab.variance_page import page, write_moments

    write_moments(gradients, rollouts, prompts.domains, folder)
    study = page(rows, gradients, rollouts, settings)
    write_study(study, folder, settings, time.perf_counter() - began)
    show(study, folder, console)
    return 0


def gather(
    settings: VarianceSettings, prompts: Prompts, policy: FrozenPolicy, folder: Path, steps: Steps
) -> tuple[Training, Rollouts, Prompts]:
    """Rollouts of both splits, as far as they were verified."""
    cache, views = Cache(folder / "rollouts", _key(settings, prompts)), tuple(sorted({policy.prompt, policy.reasoning}))
    with steps.step("training rollouts", len(prompts.train)) as done:
        train = collect(policy.drawing(settings, 2, 2, views), prompts.train, prompts.verify, cache, "train", done)
    k = settings.rollouts + settings.oracle_rollouts
    with steps.step("held-out rollouts", len(prompts.held_out)) as done:
        drawing = policy.drawing(settings, k, k, views)
        test = collect(drawing, prompts.held_out, prompts.verify, cache, "test", done)
    return verified(prompts, train, test, least=4)


def predict(
    settings: VarianceSettings,
    prompts: Prompts,
    policy: FrozenPolicy,
    training: Training,
    rollouts: Rollouts,
    folder: Path,
    steps: Steps,
) -> dict[str, Tensor]:
    """Predictions of each probe from every rollout (M, n), and of the critic (M,)."""
    domains_P, n = domains_of(prompts), settings.rollouts
    found: dict[str, Tensor] = {}
    chosen = probes(settings, policy, len(domains_P.unique()))
    with steps.step("fitting probes", len(chosen)) as done:
        for name, variant in chosen.items():
            found[name] = fit_and_predict(variant, training, rollouts, domains_P, settings.seed)[0][:, :n]
            done()
    usable_P = training.rollouts.rewards_PK.isfinite().all(1).nonzero()[:, 0]
    sequences = [policy.encode(prompts.train[place]) for place in usable_P.tolist()]

    def make(done: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        targets_P = training.rollouts.rewards_PK[usable_P].mean(1)
        rates, epochs = settings.critic_rates, settings.critic_epochs
        fit = fit_critic(policy.model, sequences, targets_P, usable_P, rates, epochs, settings.seed, done)
        return {"predictions": fit.predict([policy.encode(row) for row in prompts.held_out]).detach()}, {}

    with steps.step("critic", settings.critic_epochs * len(settings.critic_rates)) as done:
        cache = Cache(folder / "critics", _key(settings, prompts, *CRITIC_SETTINGS))
        found["critic"] = cache.once("prompt", lambda: make(done))[0]["predictions"]
    found["constant"] = torch.full_like(found["critic"], training.mean)
    return found


def self_choosing(
    settings: VarianceSettings, prompts: Prompts, policy: FrozenPolicy, training: Training, rollouts: Rollouts
) -> Method:
    """The default form, after the training rollouts."""
    variant = weighted_with_outcome(settings, policy)
    return streamed(DEFAULT, taught(variant, training), variant, rollouts, domains_of(prompts))


def weighted_with_outcome(settings: VarianceSettings, policy: FrozenPolicy) -> Variant:
    """The probe of the default form."""
    base = replace(reference(settings, policy.prompt, policy.reasoning), weights=PROXIES[0])
    return with_config(base, sibling_outcome=True)


def probes(settings: VarianceSettings, policy: FrozenPolicy, domains: int) -> dict[str, Variant]:
    """The probes whose baselines are compared; the first is the paper's."""
    base = reference(settings, policy.prompt, policy.reasoning)
    outcome = with_config(base, sibling_outcome=True)
    weighted = replace(base, weights=PROXIES[0])
    found = {
        "probe": base,
        "probe, logistic": with_config(base, head="logistic"),
        "probe + sibling's reward alone": replace(outcome, parts=WITHOUT_SURPRISE),
        "probe + sibling's outcome": outcome,
        "probe, score-weighted": weighted,
        OUTCOME: weighted_with_outcome(settings, policy),
        "probe, length-weighted": replace(base, weights="length"),
        "prompt-only probe": replace(base, parts=("prompt",)),
        "prompt-only probe, score-weighted": replace(weighted, parts=("prompt",)),
    }
    if domains > 1:
        found["probe, one per domain"] = replace(base, per_domain=True)
    assert found["probe"].parts == ALL
    return found


def take(
    settings: VarianceSettings,
    prompts: Prompts,
    policy: FrozenPolicy,
    training: Training,
    rollouts: Rollouts,
    folder: Path,
    steps: Steps,
) -> Gradients:
    """Inner products of score vectors of every held-out rollout."""
    count = sum(parameter.numel() for parameter in policy.model.parameters())
    projection = Projection(count, settings.project, settings.seed, policy.model.device)
    measuring = Measuring(policy.model, settings.temperature, settings.gradient_batch, projection)
    cache = Cache(folder / "gradients", _key(settings, prompts, "pilot_prompts", "project", "gradient_batch"))
    pilot = range(min(settings.pilot_prompts, len(prompts.train)))
    pairs = [(policy.encode(prompts.train[p]), each) for p in pilot for each in training.rollouts.responses(p)]
    advantages_B = (training.rollouts.rewards_PK[: len(pilot)] - training.mean).nan_to_num(0.0).flatten()
    with steps.step("second moments", 1) as done:
        inverse_D = preconditioner(second_moment(measuring, pairs, advantages_B, cache))
        done()
    n, wanted = settings.rollouts, []
    for place, row in enumerate(prompts.held_out):
        prompt, responses = policy.encode(row), rollouts.responses(place)
        pairs = [(prompt, response) for response in responses]
        wanted.append((pairs[:n], pairs[n:]))
    with steps.step("gradients, prompts", len(wanted)) as done:
        rewards_MK = rollouts.rewards_PK
        return measure(measuring, wanted, rewards_MK[:, :n], rewards_MK[:, n:], inverse_D, cache, done)


def methods_of(
    metric: str, gradients: Gradients, predictions: dict[str, Tensor], default: Method, rollouts: Rollouts
) -> list[Method]:
    """Every baseline; the variance-optimal one depends on the metric."""
    rewards_MK = gradients.oracle_rewards_MK.double()
    count = rewards_MK.shape[1]
    found = [fixed("no baseline", torch.zeros(len(rewards_MK))), fixed("constant", predictions["constant"])]
    found += [of_rewards(RLOO_2, BASELINES["leave-one-out"]), of_rewards("shrinkage", BASELINES["shrinkage"])]
    found += [Method("GRPO mean, rescaled", _rescaled_group_mean, 2), default]
    for name, values in predictions.items():
        if values.dim() == 2 and not name.startswith("prompt-only"):
            found.append(crossed(name, values))
        elif name != "constant":
            # Read off the prompt: the same from every rollout.
            found.append(fixed(name, values if values.dim() == 1 else values[:, 0]))
    found.append(fixed("oracle p(x)", rewards_MK.mean(1), rewards_MK.var(1) / count))
    found.append(fixed("oracle b*", optimal_baseline_M(gradients.norms_K[metric], rewards_MK)))
    for place, proxy in enumerate(PROXIES):
        weights_MK = proxy_MK(rollouts, place, rewards_MK.shape[1], metric)
        found.append(fixed(f"oracle, {proxy} for |s|²", optimal_baseline_M(weights_MK, rewards_MK)))
    return found


def _rescaled_group_mean(rewards_Mm: Tensor, chosen: list[int]) -> Tensor:
    """The baseline with which (r − b) is m/(m − 1) times what the group's mean gives: its gradient is not shrunk."""
    m = len(chosen)
    return rewards_Mm - m / (m - 1) * (rewards_Mm - BASELINES["group-mean"](rewards_Mm, rewards_Mm))


def proxy_MK(rollouts: Rollouts, place: int, count: int, metric: str) -> Tensor:
    """A proxy of the oracle rollouts' squared norms in a metric."""
    weights_MK = rollouts.proxies_PFX[:, -count:, place].double()
    return weights_MK / rollouts.lengths_PK[:, -count:].square() if metric == "token-mean" else weights_MK


def analyse(
    settings: VarianceSettings,
    gradients: Gradients,
    predictions: dict[str, Tensor],
    default: Method,
    rollouts: Rollouts,
    domains: Sequence[str],
) -> list[dict[str, Any]]:
    """Rows of every table: variances by metric, domain, method and allocation; the decomposition; the proxies."""
    rows: list[dict[str, Any]] = []
    for metric in METRICS:
        methods = methods_of(metric, gradients, predictions, default, rollouts)
        seconds = _seconds(gradients, metric, methods)
        for domain, chosen_M in groups_of(domains).items():
            rows += variance_rows(settings, gradients, metric, domain, chosen_M, seconds)
        rows += decomposition_rows(settings, gradients, metric, methods)
        rows += proxy_rows(gradients, rollouts, metric)
    return rows


def _seconds(gradients: Gradients, metric: str, methods: Sequence[Method]) -> dict[tuple[str, int], np.ndarray]:
    """E‖G‖² given x of every method at every allocation that it can have."""
    most = gradients.rewards_Mn.shape[1]
    return {
        (method.name, m): second_moment_M(gradients.grams[metric], gradients.rewards_Mn, method, m).numpy()
        for method in methods
        for m in ALLOCATIONS
        if method.smallest <= m <= most
    }


def variance_rows(
    settings: VarianceSettings,
    gradients: Gradients,
    metric: str,
    domain: str,
    chosen_M: np.ndarray,
    seconds: dict[tuple[str, int], np.ndarray],
) -> list[dict[str, Any]]:
    """Total variance at the budget, alone, relative to RLOO-2 as a divisor of the default form's; within prompts."""
    weights_RM = resample_weights(int(chosen_M.sum()), settings.resamples, settings.seed)
    signal = signal_R(gradients.across[metric].numpy()[np.ix_(chosen_M, chosen_M)], weights_RM)
    gram_Mnn, rewards_Mn = gradients.grams[metric], gradients.rewards_Mn
    _, mean_M = within_and_mean_M(gram_Mnn, rewards_Mn, fixed("p", gradients.oracle_rewards_MK.mean(1)))
    base = total_variance_R(seconds[RLOO_2, 2][chosen_M], signal, weights_RM, 2, settings.budget)
    default = total_variance_R(seconds[DEFAULT, 2][chosen_M], signal, weights_RM, 2, settings.budget)
    rows: list[dict[str, Any]] = []
    for (name, m), second_M in seconds.items():
        variance = total_variance_R(second_M[chosen_M], signal, weights_RM, m, settings.budget)
        within = m / settings.budget * (weights_RM @ (second_M - mean_M.numpy())[chosen_M])
        rows.append(
            {
                "table": "variance",
                "metric": metric,
                "domain": domain,
                "name": name,
                "m": m,
                "prompts": int(chosen_M.sum()),
                "variance": interval(variance),
                "relative": interval(ratio(variance, base, 0.0)),
                "default_relative": interval(ratio(default, variance, 0.0)),
                "within_prompts": interval(within),
                "signal": interval(signal),
                "noise_to_signal": interval(ratio(variance, signal, 0.0)),
            }
        )
    return rows


def decomposition_rows(
    settings: VarianceSettings, gradients: Gradients, metric: str, methods: Sequence[Method]
) -> list[dict[str, Any]]:
    """Proposition 1 out of sample: Σ_within/B + (m/B) Σ_between from one half of the prompts, measured on the other."""
    count, budget = len(gradients.rewards_Mn), settings.budget
    order = np.random.default_rng(settings.seed).permutation(count)
    first, second = np.sort(order[: count // 2]), np.sort(order[count // 2 :])
    across_MM, rewards_Mn = gradients.across[metric].numpy(), gradients.rewards_Mn
    weights_1, weights_2 = (
        resample_weights(len(h), settings.resamples, settings.seed + i) for i, h in enumerate((first, second))
    )
    signal_1, signal_2 = (signal_R(across_MM[np.ix_(h, h)], w) for h, w in ((first, weights_1), (second, weights_2)))
    rows: list[dict[str, Any]] = []
    for method in methods:
        if not method.is_fixed or method.name.startswith("oracle,"):
            continue
        within_M, mean_M = (x.numpy() for x in within_and_mean_M(gradients.grams[metric], rewards_Mn, method))
        within, between = weights_1 @ within_M[first], weights_1 @ mean_M[first] - signal_1
        for m in [m for m in ALLOCATIONS if m <= rewards_Mn.shape[1]]:
            predicted = within / budget + m / budget * between
            measured_M = second_moment_M(gradients.grams[metric], rewards_Mn, method, m).numpy()
            measured = total_variance_R(measured_M[second], signal_2, weights_2, m, budget)
            rows.append(
                {
                    "table": "decomposition",
                    "metric": metric,
                    "name": method.name,
                    "m": m,
                    "within": interval(within / budget),
                    "between": interval(m / budget * between),
                    "predicted": interval(predicted),
                    "measured": interval(measured),
                    "ratio": interval(ratio(measured, predicted, 0.0)),
                }
            )
    return rows


def proxy_rows(gradients: Gradients, rollouts: Rollouts, metric: str) -> list[dict[str, Any]]:
    """How well each proxy follows the squared norm: over all rollouts, in ranks, and within prompts."""
    true_MK = gradients.norms_K[metric].double()
    rows: list[dict[str, Any]] = []
    for place, proxy in enumerate(PROXIES):
        weights_MK = proxy_MK(rollouts, place, true_MK.shape[1], metric)
        ranks = [torch.from_numpy(mean_ranks(x.flatten().numpy())) for x in (weights_MK, true_MK)]
        centred = [x - x.mean(1, keepdim=True) for x in (weights_MK, true_MK)]
        rows.append(
            {
                "table": "proxies",
                "metric": metric,
                "name": proxy,
                "pearson": _correlation(weights_MK, true_MK),
                "spearman": _correlation(*ranks),
                "pearson_within_prompts": _correlation(*centred),
            }
        )
    return rows


def _correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


def _key(settings: VarianceSettings, prompts: Prompts, *more: str) -> dict[str, Any]:
    names = ("batch_size", "train_prompts", "prompts", "rollouts", "oracle_rollouts", "end_of_reasoning")
    names += ("prompt_layer", "reasoning_layer", "state_window")
    return described(settings, prompts.fingerprint, (*names, *more))
