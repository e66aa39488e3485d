"""Methods of the comparison: tables of settings, and the runs that a comparison is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from poise.errors import ConfigError
from poise.lab.compare_settings import CompareSettings
from poise.runs.configfile import differences, overlay, read_settings, read_toml, suggest
from poise.runs.plan import make_plan
from poise.runs.settings import TrainSettings

_HERE = Path(__file__).parent
# Seeds of tuning runs, far from any that a race has.
FIRST_TUNING_SEED = 1000
TUNING, RACE, MATCHED = "tuning", "race", "matched"


@dataclass(frozen=True)
class Method:
    """A method: its name in folders, its title in figures, and the settings it lays over the common ones."""

    name: str
    title: str
    table: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class Run:
    """One training run of the comparison.

    Args:
        arm: "tuning", "race" or "matched".
    """

    arm: str
    method: Method
    learning_rate: float
    seed: int
    settings: TrainSettings

    @property
    def folder(self) -> Path:
        return Path(self.settings.run.out)

    @property
    def budget(self) -> int:
        return self.settings.optimisation.rollout_budget


def load_methods(settings: CompareSettings) -> dict[str, Method]:
    """The methods that race, in the order of their tables.

    Raises:
        ConfigError: a table is none, a method that is asked for does not exist, or the reference does not race.
    """
    found: dict[str, Method] = {}
    for path in (_HERE / "methods.toml", *([Path(settings.methods)] if settings.methods else [])):
        for name, table in read_toml(path).items():
            if not isinstance(table, Mapping):
                raise ConfigError(f"{path}: {name!r} is no method; write [{name}] with its settings below it")
            rest = dict(table)
            found[name] = Method(name, str(rest.pop("title", name)), rest, f"{path}: [{name}]")
    for name in (*settings.only, settings.reference):
        if name not in found:
            raise ConfigError(f"no method is called {name!r}{suggest(name, found)}")
    chosen = {name: method for name, method in found.items() if name in (settings.only or found)}
    if settings.reference not in chosen:
        raise ConfigError(
            f"the reference {settings.reference} does not race; add it to --only, or name another --reference"
        )
    for name in settings.matched_only:
        if name not in chosen:
            raise ConfigError(f"--matched-only names {name!r}, which does not race{suggest(name, chosen)}")
    return chosen


def matched_methods(settings: CompareSettings, methods: Mapping[str, Method]) -> dict[str, Method]:
    """Those of the matched arm: the named ones and the reference that they are compared with."""
    named = (*settings.matched_only, settings.reference) if settings.matched_only else tuple(methods)
    return {name: method for name, method in methods.items() if name in named}


def make_run(
    settings: CompareSettings, method: Method, arm: str, learning_rate: float, seed: int, update_norm: float = 0.0
) -> Run:
    """The run of one method: common settings, the method's own on top, and what the comparison fixes for all.

    Raises:
        ConfigError: a setting of the method is unknown, or its batch cannot be split.
    """
    common = read_settings(Path(settings.base) if settings.base else _HERE / "compare_base.toml", TrainSettings())
    own = overlay(common, method.table, method.source)
    is_tuning = arm == TUNING
    budget = settings.tuning_rollouts if is_tuning else settings.rollouts
    group = own.optimisation.rollouts_per_prompt
    if settings.rollouts_per_step % group:
        raise ConfigError(
            f"{method.source}: groups of {group} do not fill a step of --rollouts-per-step {settings.rollouts_per_step}"
        )
    steps = budget // settings.rollouts_per_step
    # Runs of another norm must not be taken for those of this one when a comparison is resumed.
    stretched = f"norm{update_norm:g}-" if update_norm else ""
    # A method that drops rollouts makes fewer steps of its budget, so it is evaluated after fewer of them.
    every = max(1, math.ceil(steps / settings.evaluations) // (2 if own.poise.dynamic_sampling else 1))
    fixed = replace(
        own,
        data=replace(
            own.data,
            train_size=settings.train_size,
            eval_size=settings.held_out,
            # Another draw of prompts, so that tuning does not fit what the race is judged by. Of a task of fixed size
            # it may have some of the same: the page counts them.
            data_seed=own.data.data_seed + is_tuning,
        ),
        optimisation=replace(
            own.optimisation,
            steps=steps,
            prompts_per_step=settings.rollouts_per_step // group,
            learning_rate=learning_rate,
            rollout_budget=budget,
            update_norm=update_norm,
        ),
        evaluation=replace(own.evaluation, eval_every=every, eval_samples=settings.eval_samples, measure_drift=True),
        run=replace(
            own.run,
            out=str(settings.folder / arm / method.name / f"{stretched}lr{learning_rate:g}-seed{seed}"),
            seed=seed,
            save_every=every,
            keep_checkpoints=1,
            report=False,
        ),
    )
    named = {f"{section}.{key}" for section, keys in method.table.items() for key in keys}
    if lost := sorted(named & differences(own, fixed).keys()):
        raise ConfigError(f"{method.source}: {', '.join(lost)} is the comparison's to set, alike for all; take it out")
    make_plan(fixed, devices=1)
    return Run(arm, method, learning_rate, seed, fixed)


def tuning_runs(settings: CompareSettings, methods: Mapping[str, Method]) -> list[Run]:
    """Every method at every rate of the grid, on seeds of their own; none where there is nothing to choose."""
    if len(settings.learning_rates) == 1:
        return []
    seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + settings.tuning_seeds)
    return [
        make_run(settings, method, TUNING, rate, seed)
        for seed in seeds
        for method in methods.values()
        for rate in settings.learning_rates
    ]


def race_runs(
    settings: CompareSettings, methods: Mapping[str, Method], rates: Mapping[str, float], update_norm: float = 0.0
) -> list[Run]:
    """Every method at its own rate on every seed; with an update norm, the matched arm.

    All methods of a seed come before the next seed, so that a comparison that is stopped early is a fair one.
    """
    arm = MATCHED if update_norm else RACE
    return [
        make_run(settings, method, arm, rates[method.name], seed, update_norm)
        for seed in range(settings.seeds)
        for method in methods.values()
    ]
