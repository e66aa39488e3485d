"""What the value study shows: tables in the paper's form, pictures, and a plain reading with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from poise.core import calibration
from poise.lab.metrics import Targets
from poise.lab.settings import ValueSettings
from poise.lab.study import Shown, Study, left_out, number, plain, rows_where
from poise.report.draw import colour
from poise.report.style import COLOURS, SIZE, STYLE

PROBE, CRITIC = "probe", "critic (prompt)"
# How often a 95% interval lies below what it is of.
_CHANCE = 0.025
# Table -> (title for a reader, title of a panel).
_TITLES = {
    "features": ("Which features: the probe with some of them only", "Features"),
    "layer": ("Which layer: both states read at the same block", "Layer"),
    "window": ("Pooling window: how many of the last tokens of each part are averaged", "Pooling window"),
    "rows": ("Training rows: crossed pairs that the probe is fitted on", "Training rows"),
    "head": ("Which head, on the same regressors", "Head"),
    "components": ("Principal components kept of each state", "Principal components"),
    "alpha": ("Ridge penalty, in scikit-learn's units", "Ridge penalty"),
}


def page(rows: list[dict[str, Any]], measured: Sequence[Any], targets: Targets, settings: ValueSettings) -> Study:
    """Tables, pictures and sentences from the rows."""
    with mpl.rc_context(STYLE):
        figures = {
            "rivals": rivals_figure(rows),
            "sweeps": sweeps_figure(rows),
            "calibration": calibration_figure(measured, targets),
        }
    shown = [headline(rows, targets.count), rivals_table(rows, targets.count)]
    shown += [table_of(rows, name, targets.count) for name in _TITLES if rows_where(rows, table=name)]
    title = f"Value study: {settings.model} on {settings.task}"
    facts = {
        "reliability_of_average": reliability(targets),
        "variance_of_pass_rate": float(targets.rate_P.var() - targets.rate_noise_P.mean()),
        "mean_pass_rate": float(targets.rate_P.mean()),
        "held_out_prompts": len(targets.rate_P),
    }
    said = [*reading(rows, targets), *left_out(settings.held_out_prompts, len(targets.rate_P))]
    return Study("value", title, said, shown, figures, rows, facts)


def reliability(targets: Targets) -> float:
    """Share of the variance of Avg@k that is not sampling noise; NaN where there is no variance."""
    variance = targets.average_P.var()
    return float(1 - targets.average_noise_P.mean() / variance) if variance else float("nan")


def reading(rows: Sequence[dict[str, Any]], targets: Targets) -> list[str]:
    """What a reader should take away, good or bad."""
    if targets.rate_P.min() == targets.rate_P.max() and not targets.rate_noise_P.any():
        return [
            f"All held-out rollouts earned {targets.rate_P[0]:g}: there is nothing to predict. Check the reward, the "
            "model, and the length limit (--max-new-tokens)."
        ]
    probe, critic, sibling = (_row(rows, name) for name in (PROBE, CRITIC, "sibling's reward (RLOO-2)"))
    k = targets.count
    sentences = [
        f"On {probe['prompts']} held-out prompts (mean pass rate {targets.rate_P.mean():.3f}) the probe, fitted on "
        f"{probe['rows']} rollouts, predicts Avg@{k} with a mean absolute error of {number(probe['metrics']['mae'])} "
        f"and a Pearson correlation of {number(probe['metrics']['pearson'])}. Avg@{k} is itself noisy (reliability "
        f"{reliability(targets):.3f}): against the pass rate, the correlation is "
        f"{number(probe['metrics']['pearson_true'])}. The probe explains {number(probe['metrics']['explained'])} "
        "of the variance of the pass rate between prompts."
    ]
    for name, row in (
        ("The critic, a copy of the policy that reads the prompt,", critic),
        ("The sibling's reward, the baseline of RLOO at two rollouts,", sibling),
    ):
        gap = row["mse_true_minus_probe"]
        verdict = (
            "more than the probe's"
            if gap["low"] > 0
            else "less than the probe's"
            if gap["high"] < 0
            else "not told apart from the probe's"
        )
        sentences.append(
            f"{name} has a squared error of {number(row['metrics']['mse_true'], 4)} against the pass rate, "
            f"{verdict} ({number(probe['metrics']['mse_true'], 4)}; difference {number(gap, 4)})."
        )
    if np.isfinite(critic["seconds"]) and probe["seconds"] > 0:
        sentences.append(
            f"Training took the critic {critic['seconds']:.1f} processor seconds and the probe {probe['seconds']:.2f}."
        )
    return [*sentences, *_against_the_probe(rows)]


def _against_the_probe(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Which variants and rivals are better than the published probe, beyond their paired interval."""
    # A method may stand in several tables under several names: once is enough, and the probe itself is none.
    gaps = {row["mse_true_minus_probe"]["mean"]: row for row in reversed(rows_where(rows, domain="all"))}
    gaps.pop(0.0, None)
    better = sorted(mean for mean, row in gaps.items() if row["mse_true_minus_probe"]["high"] < 0)
    tried = f"{len(gaps)} variants and rivals were tried"
    if not better:
        return [f"Nothing predicts the pass rate better than the published probe beyond its interval; {tried}."]
    listed = "; ".join(f"{gaps[mean]['name']} ({number(gaps[mean]['mse_true_minus_probe'], 4)})" for mean in better[:5])
    return [
        f"Better than the published probe, in squared error against the pass rate, paired over prompts: {listed}. "
        f"{tried}, and {len(better)} were better beyond their interval; were all as good as the "
        f"probe, chance alone would make it about {_CHANCE * len(gaps):.1f}."
    ]


def headline(rows: Sequence[dict[str, Any]], k: int) -> Shown:
    """The paper's numbers for all prompts, few enough for a terminal."""
    cells = []
    for row in rows_where(rows, table="rivals", domain="all"):
        shown = [f"{row['metrics'][name]['mean']:.3f}" for name in ("mae", "pearson")]
        shown.append(number(row["metrics"]["explained"]))
        seconds = "–" if np.isnan(row["seconds"]) else f"{row['seconds']:.2f}"
        cells.append([row["name"], *("–" if "nan" in cell else cell for cell in shown), seconds])
    columns = ["method", "MAE", "Pearson", "Var p explained", "training, s"]
    return Shown(f"Predicting Avg@{k} of held-out prompts", columns, cells)


def rivals_table(rows: Sequence[dict[str, Any]], k: int) -> Shown:
    """The paper's comparison, for all prompts and for each domain."""
    columns = [
        "method",
        "prompts",
        f"MAE (Avg@{k})",
        f"Pearson (Avg@{k})",
        "Brier skill",
        "Pearson (p)",
        "MSE (p)",
        "Var p explained",
        "training, s",
    ]
    cells = []
    for domain in dict.fromkeys(row["domain"] for row in rows):
        cells += [[row["name"], domain, *_cells(row)] for row in rows_where(rows, table="rivals", domain=domain)]
    return Shown("The probe and its rivals, with 95% bootstrap intervals over prompts", columns, cells)


def table_of(rows: Sequence[dict[str, Any]], table: str, k: int) -> Shown:
    """One sweep or ablation, over all prompts."""
    columns = [
        _TITLES[table][1].lower(),
        "MAE / r",
        f"MAE (Avg@{k})",
        f"Pearson (Avg@{k})",
        "Brier skill",
        "Pearson (p)",
        "MSE (p)",
        "Var p explained",
        "fit, s",
    ]
    cells = []
    for row in rows_where(rows, table=table, domain="all"):
        both = f"{row['metrics']['mae']['mean']:.3f} / {row['metrics']['pearson']['mean']:.3f}"
        cells.append([row["name"], both, *_cells(row)])
    return Shown(_TITLES[table][0], columns, cells)


def _cells(row: dict[str, Any]) -> list[str]:
    metrics = row["metrics"]
    shown = [number(metrics[name]) for name in ("mae", "pearson", "brier_skill", "pearson_true")]
    shown += [number(metrics["mse_true"], 4), number(metrics["explained"])]
    return [
        *("–" if "nan" in cell else cell for cell in shown),
        "–" if np.isnan(row["seconds"]) else f"{row['seconds']:.2f}",
    ]


def rivals_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Explained variance, one bar a method, for all prompts and each domain."""
    figure = Figure(figsize=(SIZE[0], SIZE[1] * 1.15), layout="constrained")
    axes = figure.subplots()
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows_where(rows, table="rivals")))
    height = 0.8 / len(domains)
    for place, domain in enumerate(domains):
        values = [_row(rows, name, domain)["metrics"]["explained"] for name in names]
        mean, low, high = (np.array([value[key] for value in values]) for key in ("mean", "low", "high"))
        # A baseline worse than the constant has no place to be drawn to scale: its bar ends at the axis.
        y = np.arange(len(names)) + (place - (len(domains) - 1) / 2) * height
        spread = np.maximum(0, [mean - low, high - mean])
        axes.barh(
            y,
            mean,
            height * 0.9,
            color=colour(place),
            xerr=spread,
            label=plain(domain),
            error_kw={"lw": 1, "capsize": 2},
        )
        for here, value, end in zip(y, mean, high, strict=True):
            axes.annotate(
                f"{value:z.2f}",  # never "-0.00"
                (max(0.0, min(end, 1.0)), here),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(-0.6, 1.1)
    axes.axvline(0, color="#777777", lw=1)
    axes.set_xlabel("share of Var p(x) explained (1: p itself; bars end at −0.6)")
    axes.set_axisbelow(True)
    figure.suptitle("How much of the pass rate is known beforehand", weight="bold", fontsize=11)
    if len(domains) > 1:
        axes.legend(loc="upper right", fontsize=9)
    return figure


def sweeps_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Explained variance along each sweep."""
    found = [name for name in ("layer", "window", "rows", "components", "alpha") if rows_where(rows, table=name)]
    figure = Figure(figsize=(SIZE[0] * 1.3, SIZE[1] * 1.3), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True).ravel()
    for axes, table in zip(panels, found, strict=False):
        chosen = sorted(
            (row for row in rows_where(rows, table=table, domain="all") if row["x"] is not None and row["x"] > 0),
            key=lambda row: row["x"],
        )
        values = [row["metrics"]["explained"] for row in chosen]
        x = [row["x"] for row in chosen]
        axes.plot(x, [value["mean"] for value in values], "o-", color=COLOURS[0], ms=4)
        axes.fill_between(x, [v["low"] for v in values], [v["high"] for v in values], color=COLOURS[0], alpha=0.2)
        if table in ("rows", "alpha", "window", "components"):
            axes.set_xscale("log")
            axes.set_xticks(x, [f"{place:g}" for place in x], rotation=45, fontsize=8)
            axes.minorticks_off()
        axes.set_title(_TITLES[table][1])
    axes = panels[len(found)]
    chosen = rows_where(rows, table="features", domain="all")
    values = [row["metrics"]["explained"]["mean"] for row in chosen]
    axes.bar(range(len(chosen)), values, color=COLOURS[1])
    axes.set_xticks(range(len(chosen)), [row["name"] for row in chosen], rotation=60, ha="right", fontsize=8)
    axes.set_title("Features")
    axes.set_axisbelow(True)
    for axes in panels[len(found) + 1 :]:
        axes.set_visible(False)
    for place in (0, 3):
        panels[place].set_ylabel("Var p explained")
    panels[0].set_ylim(max(-0.1, panels[0].get_ylim()[0]), 1.02)
    return figure


def calibration_figure(measured: Sequence[Any], targets: Targets) -> Figure:
    """Reliability of probe and critics against the pass rate."""
    import torch

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    rate_P = torch.tensor(targets.rate_P)
    axes.plot(
        [rate_P.min(), rate_P.max()], [rate_P.min(), rate_P.max()], color="#777777", lw=1, ls=":", label="calibrated"
    )
    names = [PROBE, "probe, logistic", CRITIC, "critic (prompt and response)"]
    for place, name in enumerate(names):
        predictions_PF = next(each.predictions_PF for each in measured if each.name == name)
        predicted, observed, _ = calibration(
            predictions_PF.flatten(), rate_P.repeat_interleave(predictions_PF.shape[1])
        )
        axes.plot(predicted, observed, "o-", color=colour(place), lw=1.5, ms=5, label=name)
    axes.set_title("Calibration on held-out prompts (tenths of the predictions)")
    axes.set_xlabel("predicted")
    axes.set_ylabel("measured pass rate")
    axes.legend(loc="upper left", fontsize=9)
    return figure


def write_predictions(
    measured: Sequence[Any], targets: Targets, held_out: Any, domains: Sequence[str], folder: Path
) -> None:
    """predictions.parquet: a row for each held-out prompt and rollout, with what each method predicted."""
    import pyarrow
    import pyarrow.parquet

    captured = held_out.entropy_PFE.shape[1]
    prompts = len(domains)
    columns: dict[str, Any] = {
        "prompt": np.repeat(np.arange(prompts), captured),
        "domain": np.repeat(np.array(domains), captured),
        "rollout": np.tile(np.arange(captured), prompts),
        "reward": held_out.rewards_PK[:, :captured].flatten().numpy(),
        "pass_rate": held_out.rewards_PK[:, captured:].nanmean(1).repeat_interleave(captured).numpy(),
    }
    for each in measured:
        if each.table == "rivals":
            columns[each.name] = each.predictions_PF.flatten().numpy()
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "predictions.parquet")


def _row(rows: Sequence[dict[str, Any]], name: str, domain: str = "all") -> dict[str, Any]:
    return next(row for row in rows if row["name"] == name and row["domain"] == domain)
