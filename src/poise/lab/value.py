"""`poise lab value`: is the probe any good on this model and task?

Rollouts of training prompts (two each) and held-out prompts (k each) from a frozen policy; probes and critics learn on
the former, and predict the pass rates of the latter from 8 of their rollouts; the others make the targets.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from poise.core.baselines import mean_of_others
from poise.lab.cache import Cache
from poise.lab.critic import fit_critic
from poise.lab.metrics import Targets, groups_of, interval, resample_weights, value_metrics
from poise.lab.policy import FrozenPolicy, Prompts, domains_of, load_policy, load_prompts, numbered
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
from poise.lab.rollouts import PROXIES, Rollouts, View, collect
from poise.lab.settings import CRITIC_SETTINGS, SIBLINGS, ValueSettings, described, folder_of
from poise.lab.study import Steps, show, write_study

Entry = tuple[str, str, float | None, Variant]  # table, name, place along a sweep, variant


@dataclass
class Measured:
    """Predictions of one method for the held-out prompts.

    Args:
        table, name, x: where it stands.
        predictions_PF: from each of the first rollouts of a prompt.
        seconds: processor seconds of training; nan for what trains nothing.
        rows: training rows.
    """

    table: str
    name: str
    x: float | None
    predictions_PF: Tensor
    seconds: float = float("nan")
    rows: int = 0


def run(settings: ValueSettings) -> int:
    """The study from settings to folder; returns the exit status.

    Raises:
        PoiseError: something asked for does not exist or cannot work, or the folder holds another study.
    """
    began, console = time.perf_counter(), Console()
    prompts = load_prompts(settings, settings.train_prompts, settings.held_out_prompts)
    policy = load_policy(settings)
    folder, steps = folder_of(settings, "value"), Steps(console)
    with steps.progress:
        training, held_out, prompts = gather(settings, prompts, policy, folder, steps)
        critics = Cache(folder / "critics", _key(settings, prompts, *CRITIC_SETTINGS))
        measured = _rivals(settings, prompts, policy, training, held_out, critics, steps)
        domains = prompts.domains
        domains_P = domains_of(prompts)
        entries = variants(settings, policy, len(numbered(prompts)))
        with steps.step("fitting probes", len(entries)) as done:
            measured += _probes(settings, entries, training, held_out, domains_P, done)
        rows, targets = compare(measured, held_out, domains, settings)
    from poise.lab.value_page import page, write_predictions

    write_predictions(measured, targets, held_out, domains, folder)
    study = page(rows, measured, targets, settings)
    write_study(study, folder, settings, time.perf_counter() - began)
    show(study, folder, console)
    return 0


def gather(
    settings: ValueSettings, prompts: Prompts, policy: FrozenPolicy, folder, steps: Steps
) -> tuple[Training, Rollouts, Prompts]:
    """Rollouts of both splits, as far as they were verified."""
    cache, views = Cache(folder / "rollouts", _key(settings, prompts)), _views(settings, policy)
    with steps.step("training rollouts", len(prompts.train)) as done:
        train = collect(policy.drawing(settings, 2, 2, views), prompts.train, prompts.verify, cache, "train", done)
    with steps.step("held-out rollouts", len(prompts.held_out)) as done:
        drawing = policy.drawing(settings, settings.k, SIBLINGS, views)
        test = collect(drawing, prompts.held_out, prompts.verify, cache, "test", done)
    return verified(prompts, train, test, least=2)


def variants(settings: ValueSettings, policy: FrozenPolicy, domains: int) -> list[Entry]:
    """Every probe of the study; the first is the published form."""
    base = reference(settings, policy.prompt, policy.reasoning)
    entries: list[Entry] = [("rivals", "probe", None, base)]
    if domains > 1:
        entries.append(("rivals", "probe, one per domain", None, replace(base, per_domain=True)))
    logistic, outcome = with_config(base, head="logistic"), with_config(base, sibling_outcome=True)
    both = with_config(logistic, sibling_outcome=True)
    last = (policy.depth, settings.state_window)
    entries += [
        ("rivals", "probe, logistic", None, logistic),
        ("rivals", "probe + sibling's outcome", None, outcome),
        ("rivals", "probe, logistic + sibling's outcome", None, both),
        ("rivals", "probe, logistic + sibling's outcome, last layer", None, replace(both, prompt=last, reasoning=last)),
        ("rivals", "probe, score-weighted", None, replace(base, weights=PROXIES[0])),
    ]
    for parts in (("prompt",), ("reasoning",), ("entropy",), ("length",)):
        entries.append(("features", parts[0], None, replace(base, parts=parts)))
    entries.append(("features", "all", None, base))
    entries.append(("features", "all + length", None, replace(base, parts=(*ALL, "length"))))
    entries.append(("features", "all + sibling's reward alone", None, replace(outcome, parts=WITHOUT_SURPRISE)))
    entries.append(("features", "all + sibling's outcome", None, outcome))
    for layer in _layers(settings, policy):
        view = (layer, settings.state_window)
        entries.append(("layer", f"layer {layer}", layer, replace(base, prompt=view, reasoning=view)))
    for window in settings.windows:
        seen = replace(base, prompt=(base.prompt[0], window), reasoning=(base.reasoning[0], window))
        entries.append(("window", f"{window} tokens", window, seen))
    most = 2 * settings.train_prompts
    for count in [count for count in settings.row_counts if count < most] + [most]:
        entries.append(("rows", f"{count} rows", count, replace(base, rows=count)))
    for head, variant in (("ridge", base), ("logistic", logistic), ("MLP", replace(base, mlp=True))):
        entries.append(("head", head, None, variant))
    for count in settings.component_counts:
        kept = None if count < 0 else count
        name = "no PCA" if kept is None else f"{count} components"
        entries.append(
            ("components", name, count, with_config(base, prompt_components=kept, reasoning_components=kept))
        )
    kept = ["no PCA" if n < 0 else str(n) for n in (settings.prompt_components, settings.reasoning_components)]
    entries.append(("components", " + ".join(kept), None, base))
    for alpha in settings.alphas:
        entries.append(("alpha", f"alpha {alpha:g}", alpha, with_config(base, alpha=alpha)))
    return entries


def compare(
    measured: Sequence[Measured], held_out: Rollouts, domains: Sequence[str], settings: ValueSettings
) -> tuple[list[dict], Targets]:
    """A row for each method and set of prompts (all, each domain): metrics with intervals, and against the probe."""
    targets = Targets.of(held_out.rewards_PK[:, SIBLINGS:])
    rows: list[dict] = []
    for domain, chosen_P in groups_of(domains).items():
        weights_RP = resample_weights(int(chosen_P.sum()), settings.resamples, settings.seed)
        here = targets.select(chosen_P)
        found = [value_metrics(each.predictions_PF.double().numpy()[chosen_P], here, weights_RP) for each in measured]
        probe = next(found[place] for place, each in enumerate(measured) if each.name == "probe")
        for each, metrics in zip(measured, found, strict=True):
            rows.append(
                {
                    "table": each.table,
                    "name": each.name,
                    "x": each.x,
                    "domain": domain,
                    "prompts": int(chosen_P.sum()),
                    "rows": each.rows,
                    "seconds": each.seconds,
                    "metrics": {name: interval(values) for name, values in metrics.items()},
                    "mse_true_minus_probe": interval(metrics["mse_true"] - probe["mse_true"]),
                }
            )
    return rows, targets


def _probes(
    settings: ValueSettings, entries: Sequence[Entry], training: Training, held_out: Rollouts, domains_P: Tensor, done
) -> list[Measured]:
    """Fits every variant, each different one once."""
    found: dict[Variant, tuple[Tensor, float]] = {}
    measured: list[Measured] = []
    for table, name, x, variant in entries:
        if variant not in found:
            found[variant] = fit_and_predict(variant, training, held_out, domains_P, settings.seed)
        rows = min(int(training.usable_B.sum()), variant.rows or 1 << 60)
        measured.append(Measured(table, name, x, *found[variant], rows))
        done()
    return measured


def _rivals(
    settings: ValueSettings,
    prompts: Prompts,
    policy: FrozenPolicy,
    training: Training,
    held_out: Rollouts,
    cache: Cache,
    steps: Steps,
) -> list[Measured]:
    """What the probe is compared with: the constant, rewards of siblings, and the critics."""
    rewards_PF = held_out.rewards_PK[:, :SIBLINGS]
    rows = int(training.usable_B.sum())
    measured = [
        Measured("rivals", "constant", None, torch.full_like(rewards_PF, training.mean)),
        Measured("rivals", "sibling's reward (RLOO-2)", None, rewards_PF),
        Measured("rivals", "mean of the other 7 (RLOO-8)", None, mean_of_others(rewards_PF)),
    ]
    total = 2 * settings.critic_epochs * len(settings.critic_rates)
    with steps.step("critics", total) as done:
        for name in ("prompt", "response"):
            tensors, meta = cache.once(
                name, lambda name=name: critic(name, settings, prompts, policy, training, held_out, done)
            )
            reads = "prompt" if name == "prompt" else "prompt and response"
            measured.append(
                Measured("rivals", f"critic ({reads})", None, tensors["predictions"], meta["seconds"], rows)
            )
    return measured


def critic(name: str, settings, prompts: Prompts, policy: FrozenPolicy, training: Training, held_out: Rollouts, done):
    """Trains one critic; its predictions for every held-out rollout, and what training took."""
    train, test = _sequences(name, prompts, policy, training.rollouts, 2, held_out)
    usable = training.usable_B.nonzero()[:, 0]
    sequences, targets_B, groups_B = [train[i] for i in usable.tolist()], training.targets_B[usable], usable // 2
    if name == "prompt":  # both rollouts of a prompt are the same sequence: one pass with their mean is the same loss
        sequences, groups_B = sequences[::2], groups_B[::2]
        targets_B = targets_B.view(-1, 2).mean(1)
    fit = fit_critic(
        policy.model, sequences, targets_B, groups_B, settings.critic_rates, settings.critic_epochs, settings.seed, done
    )
    captured = held_out.entropy_PFE.shape[1]
    if name == "prompt":
        predictions_PF = fit.predict(test[::captured])[:, None].expand(-1, captured)
    else:
        predictions_PF = fit.predict(test).view(-1, captured)
    keys = ("seconds", "total_seconds", "rate", "epochs", "loss")
    return {"predictions": predictions_PF.detach().clone()}, {key: getattr(fit, key) for key in keys}


def _sequences(name: str, prompts: Prompts, policy: FrozenPolicy, train: Rollouts, k: int, test: Rollouts):
    captured = test.entropy_PFE.shape[1]
    found = []
    for rows, rollouts, count in ((prompts.train, train, k), (prompts.held_out, test, captured)):
        sequences = []
        for place, row in enumerate(rows):
            prompt = policy.encode(row)
            responses = rollouts.responses(place)[:count]
            sequences += [prompt + response if name == "response" else prompt for response in responses]
        found.append(sequences)
    return found


def _views(settings: ValueSettings, policy: FrozenPolicy) -> tuple[View, ...]:
    wanted = {policy.prompt, policy.reasoning}
    wanted |= {(layer, settings.state_window) for layer in _layers(settings, policy)}
    wanted |= {(view[0], window) for view in (policy.prompt, policy.reasoning) for window in settings.windows}
    return tuple(sorted(wanted))


def _layers(settings: ValueSettings, policy: FrozenPolicy) -> list[int]:
    count = min(settings.sweep_layers, policy.depth)
    return (
        sorted({int(layer) for layer in np.linspace(1, policy.depth, count).round()}) if count > 1 else [policy.depth]
    )


def _key(settings: ValueSettings, prompts: Prompts, *more: str) -> dict:
    names = ("batch_size", "train_prompts", "held_out_prompts", "k", "end_of_reasoning", "prompt_layer")
    names += ("reasoning_layer", "state_window", "sweep_layers", "windows")
    return described(settings, prompts.fingerprint, (*names, *more))
