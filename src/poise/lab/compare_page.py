"""What a comparison shows: standings, costs, step sizes, learning rates, and a plain reading that claims no more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from poise.lab.compare_curves import Curve, judges
from poise.lab.compare_figures import figures
from poise.lab.compare_intervals import CALLED_AT, Bounds, chance_of_a_call
from poise.lab.compare_methods import MATCHED, RACE, Method
from poise.lab.compare_settings import CompareSettings
from poise.lab.compare_stats import (
    Standing,
    areas_by_rate,
    best_rates,
    grouped,
    own_update_norms,
    rank_correlation,
    standings,
)
from poise.lab.study import Shown, Study

# Fewer seeds say hardly anything about the spread between seeds.
_ENOUGH_SEEDS = 5
_POISE = "poise"
_ARMS = {RACE: "each method's own step size", MATCHED: "every update of one norm"}


def page(
    curves: Mapping[str, Sequence[Curve]], methods: Mapping[str, Method], settings: CompareSettings, norm: float
) -> Study:
    """Tables, pictures and sentences from the curves of the arms "tuning", "race" and "matched"."""
    found = {arm: standing for arm in (RACE, MATCHED) if (standing := _standings(curves[arm], settings))}
    # The same methods again, against POISE: that B is not told apart from A, nor C from A, says nothing of B and C.
    to_poise = {arm: _standings(curves[arm], settings, _POISE) for arm in found if settings.reference != _POISE}
    titles = {name: method.title for name, method in methods.items()}
    shown = [standings_table(found[arm], titles, _ARMS[arm]) for arm in found]
    shown += [gaps_table(to_poise[arm], titles, _ARMS[arm]) for arm in to_poise if to_poise[arm]]
    shown += [costs_table(curves[RACE], titles), steps_table(curves[RACE], titles)]
    if curves["tuning"]:
        shown.append(rates_table(curves["tuning"], titles))
    model = curves[RACE][0].run.settings
    title = f"Comparison of methods: {model.model.model} on {model.data.data or model.data.task or 'tiny'}"
    rows = [
        {"arm": arm, "against": against, **asdict(standing), "verdict": standing.verdict}
        for against, arms in ((settings.reference, found), (_POISE, to_poise))
        for arm in arms
        for standing in arms[arm]
    ]
    pictures = figures(
        curves[RACE], curves["tuning"], curves[MATCHED], {_ARMS[arm]: found[arm] for arm in found}, titles
    )
    facts = {"matched_update_norm": norm or None, "own_update_norms": own_update_norms(curves[RACE])}
    facts |= {"reference": settings.reference, "budget": settings.rollouts}
    said = reading(curves, found, to_poise, titles, settings, norm)
    return Study("compare", title, said, shown, pictures, rows, facts)


def _standings(curves: Sequence[Curve], settings: CompareSettings, against: str | None = None) -> list[Standing]:
    return standings(curves, against or settings.reference, settings.final, settings.resamples)


def bounds(value: Bounds, digits: int = 3, sign: str = "") -> str:
    """An estimate with its interval, as text."""
    parts = [f"{part:{sign}.{digits}f}" for part in (value.mean, value.low, value.high)]
    return f"{parts[0]} [{parts[1]}, {parts[2]}]"


def rollouts_text(value: Bounds) -> str:
    """Rollouts to a target, where the target may not be reached within the budget."""

    def one(number: float) -> str:
        return f"{number:,.0f}" if math.isfinite(number) else "not reached"

    return f"{one(value.mean)} [{one(value.low)}, {one(value.high)}]"


def standings_table(found: Sequence[Standing], titles: Mapping[str, str], arm: str) -> Shown:
    columns = ["method", "mean accuracy over the budget", "difference to the reference", "p", "final accuracy"]
    columns.append("rollouts to the reference's final accuracy")
    ordered = sorted(found, key=lambda standing: -standing.area.mean)
    rows = [
        [
            titles[each.method],
            bounds(each.area),
            bounds(each.area_gap, sign="+"),
            f"{each.p_value:.3f}",
            bounds(each.final),
            rollouts_text(each.rollouts),
        ]
        for each in ordered
    ]
    return Shown(f"Standings, {arm}; intervals over {found[0].seeds} paired seeds", columns, rows)


def gaps_table(found: Sequence[Standing], titles: Mapping[str, str], arm: str) -> Shown:
    """Differences to POISE as published alone."""
    poise = titles[_POISE]
    verdicts = {1: "ahead", -1: "behind", 0: "not told apart"}
    rows = [
        [titles[each.method], bounds(each.area_gap, sign="+"), f"{each.p_value:.3f}", verdicts[each.verdict]]
        for each in sorted(found, key=lambda standing: -standing.area_gap.mean)
        if each.method != _POISE
    ]
    columns = ["method", f"difference to {poise}", "p", "verdict"]
    return Shown(f"Mean accuracy over the budget against {poise}, {arm}; {found[0].seeds} paired seeds", columns, rows)


def costs_table(curves: Sequence[Curve], titles: Mapping[str, str]) -> Shown:
    """What the budget of rollouts came to."""
    columns = ["method", "learning rate", "rollouts", "tokens", "updates", "wall s", "processor s"]
    rows = []
    for name, runs in grouped(curves).items():
        spent = {axis: float(np.mean([run.costs[axis][-1] for run in runs])) for axis in runs[0].costs}
        axes = ("rollouts", "tokens", "updates", "wall_seconds", "cpu_seconds")
        rate = f"{runs[0].run.learning_rate:g}"
        rows.append([titles[name], rate, *(f"{spent[axis]:,.0f}" for axis in axes)])
    return Shown("What a run cost, mean over seeds (evaluations left out)", columns, rows)


def steps_table(curves: Sequence[Curve], titles: Mapping[str, str]) -> Shown:
    """How far each method moved, beside what it gained."""
    columns = ["method", "gradient norm", "update norm", "KL from start, nats/token", "entropy, first to last step"]
    columns += ["Var(A)/Var(r)", "accuracy gained per 0.01 nats"]
    rows = []
    for name, runs in grouped(curves).items():
        entropy = [float(np.mean([run.move_at("entropy", place) for run in runs])) for place in (0, -1)]
        kl = float(np.mean([run.move_at("kl_start", -1) for run in runs]))
        gained = float(np.mean([run.accuracy[-1] - run.accuracy[0] for run in runs]))
        moves = [float(np.mean([run.move(move) for run in runs])) for move in ("grad_norm", "update_norm")]
        ratio = float(np.mean([run.move("variance_ratio") for run in runs]))
        per_nat = f"{gained / kl * 0.01:+.4f}" if kl > 0 else "–"
        texts = [f"{moves[0]:.4f}", f"{moves[1]:.4f}", f"{kl:.4f}", f"{entropy[0]:.3f} → {entropy[1]:.3f}"]
        cells = ["–" if "nan" in text else text for text in (*texts, f"{ratio:.2f}")]
        rows.append([titles[name], *cells, per_nat])
    return Shown("How far the policy moved, mean over steps and seeds", columns, rows)


def rates_table(tuning: Sequence[Curve], titles: Mapping[str, str]) -> Shown:
    """Area of every method at every rate; the chosen one is marked."""
    best, areas = best_rates(tuning), areas_by_rate(tuning)
    rates = sorted({rate for found in areas.values() for rate in found})

    def cell(name: str, rate: float) -> str:
        if rate not in areas[name]:
            return "–"
        return f"{np.mean(areas[name][rate]):.3f}{' ←' if rate == best[name] else ''}"

    rows = [[titles[name], *(cell(name, rate) for rate in rates)] for name in areas]
    return Shown("Learning rates on the tuning seeds: mean accuracy over the budget", ["method", *map(_g, rates)], rows)


def _g(value: float) -> str:
    return f"{value:g}"


def reading(
    curves: Mapping[str, Sequence[Curve]],
    found: Mapping[str, Sequence[Standing]],
    to_poise: Mapping[str, Sequence[Standing]],
    titles: Mapping[str, str],
    settings: CompareSettings,
    norm: float,
) -> list[str]:
    """What a reader should take away, POISE's losses as plainly as its wins."""
    race = found[RACE]
    seeds = race[0].seeds
    said = [
        f"{len(race)} methods, {seeds} seed{'' if seeds == 1 else 's'} each, {settings.rollouts:,} sampled rollouts a "
        f"run, of {settings.rollouts_per_step} trained on per step; accuracy on {settings.held_out} held-out prompts. "
        + _tuning(curves["tuning"], curves[RACE], titles, settings)
    ]
    said += _overshoot([*curves[RACE], *curves[MATCHED]], titles)
    if seeds < _ENOUGH_SEEDS:
        said.append("So few seeds are a first look: no order here is settled.")
    said.append(_rule(seeds))
    for arm, standings_ in found.items():
        if arm == MATCHED:
            said.append(_stretched(curves[RACE], titles, settings, norm))
        said.append(_verdicts(standings_, titles, settings.reference))
        if to_poise.get(arm):
            said.append(_verdicts(to_poise[arm], titles, _POISE))
        said += _about_poise(standings_, titles)
    return [*said, *_about_steps(curves[RACE], race)]


def _rule(seeds: int) -> str:
    """When a difference is called one, and how often that is a mistake."""
    least, chance = 2 / 2**seeds, chance_of_a_call(seeds)
    said = "A difference is called one if its interval leaves zero out and p, by sign flips over seeds, is at most "
    said += f"{CALLED_AT:g}; the least p of {seeds} seed{'' if seeds == 1 else 's'} is {least:.3f}"
    if not chance:
        return f"{said}, so none can be called."
    return f"{said}. Of 100 pairs of equal methods up to {100 * chance:.0f} would be called different."


def _tuning(
    tuning: Sequence[Curve], race: Sequence[Curve], titles: Mapping[str, str], settings: CompareSettings
) -> str:
    """Where the learning rates are from, and how many held-out prompts had a say in both."""
    if not tuning:
        return f"One learning rate, {settings.learning_rates[0]:g}, for all: no method was tuned."
    best, grid = best_rates(tuning), sorted(settings.learning_rates)
    edge = [titles[name] for name, rate in best.items() if rate in (grid[0], grid[-1])]
    note = f" At the edge of the grid, so perhaps not at their best: {', '.join(edge)}." if edge else ""
    here, there = judges(race[0].run), judges(tuning[0].run)
    both = (
        f", though {len(here & there)} of the race's {len(here)} held-out ones are among them" if here & there else ""
    )
    return (
        f"Each method's learning rate is the best of {', '.join(map(_g, grid))} on {settings.tuning_seeds} other seeds "
        f"and another draw of prompts{both}.{note}"
    )


def _overshoot(curves: Sequence[Curve], titles: Mapping[str, str]) -> list[str]:
    """Which methods sampled beyond the budget, and how far."""
    beyond = {name: [run.overshoot for run in runs] for name, runs in grouped(curves).items()}
    listed = [
        f"{titles[name]} by {np.mean(found):,.0f} rollouts a run, at most {max(found):,.0f}"
        for name, found in beyond.items()
        if max(found) > 0
    ]
    if not listed:
        return []
    return [
        f"Sampled beyond the budget, since a step cannot be halved: {'; '.join(listed)}. Curves are cut at the budget, "
        "with the accuracy interpolated there, so that what came of the rest counts for no one."
    ]


def _stretched(race: Sequence[Curve], titles: Mapping[str, str], settings: CompareSettings, norm: float) -> str:
    """What every update was stretched or shrunk to, beside what each method takes of its own accord."""
    own = sorted(own_update_norms(race).items(), key=lambda pair: -pair[1])
    chosen = "as given" if settings.update_norm else "the median over methods of each one's own median"
    return (
        f"Then with every update stretched or shrunk to the norm {norm:.3g} ({chosen}), so that only directions "
        f"differ; of its own accord each took: {', '.join(f'{titles[name]} {size:.3g}' for name, size in own)}."
    )


def _verdicts(found: Sequence[Standing], titles: Mapping[str, str], reference: str) -> str:
    """Who is ahead of the reference, who behind, and who cannot be told apart from it."""
    named = {
        verdict: ", ".join(
            titles[each.method] for each in found if each.method != reference and each.verdict == verdict
        )
        for verdict in (1, -1, 0)
    }
    ahead, behind, apart = (named[verdict] or "none" for verdict in (1, -1, 0))
    return f"Against {titles[reference]} over the budget: ahead {ahead}; behind {behind}; not told apart {apart}."


def _about_poise(found: Sequence[Standing], titles: Mapping[str, str]) -> list[str]:
    """Where POISE stands."""
    poise = next((each for each in found if each.method == _POISE), None)
    if poise is None:
        return []
    place = sum(each.area.mean > poise.area.mean for each in found) + 1
    return [
        f"{titles[_POISE]}: mean accuracy over the budget {bounds(poise.area)}, number {place} of {len(found)}; final "
        f"{bounds(poise.final)}. Rollouts to the reference's final accuracy: {rollouts_text(poise.rollouts)}."
    ]


def _about_steps(curves: Sequence[Curve], race: Sequence[Standing]) -> list[str]:
    """Whether the order of the methods is that of their step sizes."""
    areas = {each.method: each.area.mean for each in race}
    said = []
    for move, name in (("update_norm", "mean update norm"), ("kl_start", "KL from the start")):
        value = {
            method: float(np.mean([run.move(move) if move == "update_norm" else run.move_at(move, -1) for run in runs]))
            for method, runs in grouped(curves).items()
        }
        rho = rank_correlation(areas, value)
        said += [f"{name} {rho:+.2f}"] if math.isfinite(rho) else []
    if not said:
        return []
    return [
        f"Rank correlation over methods between mean accuracy and {', '.join(said)}: near 1, the order could be one of "
        "step sizes alone; the matched arm tells."
    ]
