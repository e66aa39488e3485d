"""What the variance study shows: tables, pictures, and a plain reading with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from poise.core.trees import save_state
from poise.lab.gradients import METRICS, Gradients
from poise.lab.rollouts import PROXIES, Rollouts
from poise.lab.settings import VarianceSettings
from poise.lab.study import Shown, Study, left_out, number, rows_where
from poise.report.style import COLOURS, SIZE, STYLE

_METRICS = {
    "sum": "gradient of the sum over tokens (token-mean over the batch: the same up to a common factor)",
    "token-mean": "each rollout's gradient divided by its length",
    "adam": "after Adam's preconditioner, s/(√v + ε)",
}


def page(rows: list[dict[str, Any]], gradients: Gradients, rollouts: Rollouts, settings: VarianceSettings) -> Study:
    """Tables, pictures and sentences from the rows."""
    with mpl.rc_context(STYLE):
        figures = {
            "methods": methods_figure(rows),
            "allocations": allocations_figure(rows, settings.budget),
            "decomposition": decomposition_figure(rows),
            "proxies": proxies_figure(gradients, rollouts),
        }
    shown = [headline(rows), *(variance_table(rows, metric) for metric in METRICS)]
    domains = [
        name for name in dict.fromkeys(row["domain"] for row in rows_where(rows, table="variance")) if name != "all"
    ]
    shown += [variance_table(rows, "sum", domain) for domain in domains]
    shown += [decomposition_table(rows), proxies_table(rows)]
    title = f"Variance study: {settings.model} on {settings.task}"
    facts = facts_of(gradients)
    said = [*reading(rows, facts), *left_out(settings.prompts, facts["prompts"])]
    return Study("variance", title, said, shown, figures, rows, facts)


def facts_of(gradients: Gradients) -> dict[str, Any]:
    """Means over all rollouts: squared score norms by outcome, and the pass rate."""
    rewards_MK = gradients.oracle_rewards_MK
    is_high_MK = rewards_MK > (rewards_MK.min() + rewards_MK.max()) / 2
    found: dict[str, Any] = {"prompts": len(rewards_MK), "mean_reward": float(rewards_MK.mean())}
    for metric in METRICS:
        norms_MK = gradients.norms_K[metric]
        found[f"squared_norm_{metric}"] = {
            "high_reward": float(norms_MK[is_high_MK].mean()),
            "low_reward": float(norms_MK[~is_high_MK].mean()),
        }
    return found


def reading(rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> list[str]:
    """What a reader should take away, good or bad."""
    sentences: list[str] = []
    for metric in METRICS:
        probe, none, oracle, best = (
            _row(rows, metric, name, 2) for name in ("probe", "no baseline", "oracle p(x)", "oracle b*")
        )
        names = ("no baseline", "prompt-only probe", "critic")
        one = {name: number(_row(rows, metric, name, 1)["relative"]) for name in names}
        sentences.append(
            f"Metric {metric}. Two rollouts a prompt, relative to RLOO-2: probe {number(probe['relative'])}, "
            f"no baseline {number(none['relative'])}, oracle p(x) {number(oracle['relative'])}, "
            f"oracle b* {number(best['relative'])}. "
            f"One rollout a prompt: no baseline {one['no baseline']}, prompt-only probe {one['prompt-only probe']}, "
            f"critic {one['critic']}."
        )
        candidates = [
            row
            for row in rows_where(rows, table="variance", metric=metric, domain="all")
            if not row["name"].startswith("oracle") and row["m"] <= 2
        ]
        best_row = min(candidates, key=lambda row: row["variance"]["mean"])
        sentences.append(
            f"Metric {metric}. Of what needs no oracle, {best_row['name']} at m = {best_row['m']} has the least "
            f"variance: {number(best_row['relative'])} of RLOO-2's, an interval that does not know that it is the best "
            f"of {len(candidates)}."
        )
    norms = facts["squared_norm_sum"]
    sentences.append(
        f"A rollout of high reward has a mean squared score norm of {norms['high_reward']:.3g}, one of low reward "
        f"{norms['low_reward']:.3g}: where they differ, the best baseline is not the pass rate."
    )
    proxies = rows_where(rows, table="proxies", metric="sum")
    listed = ", ".join(f"{row['name']} {row['pearson']:.2f}" for row in proxies)
    sentences.append(f"Correlation of single rollouts' true squared norm with its proxies: {listed}.")
    return sentences


def headline(rows: Sequence[dict[str, Any]]) -> Shown:
    """Two rollouts a prompt (one, where that is possible), relative to RLOO-2, in each metric; and paired with ours."""
    cells = []
    for row in rows_where(rows, table="variance", metric="sum", domain="all"):
        if row["m"] <= 2:
            here = [_row(rows, metric, row["name"], row["m"])["relative"]["mean"] for metric in METRICS]
            others = [f"{value:.3f}" for value in here[1:]]
            cells.append(
                [row["name"], str(row["m"]), number(row["relative"]), *others, number(row["default_relative"])]
            )
    columns = ["baseline", "m", "variance / RLOO-2", *METRICS[1:], "default form's (m = 2) / this"]
    return Shown("Variance of the policy gradient at a fixed budget", columns, cells)


def variance_table(rows: Sequence[dict[str, Any]], metric: str, domain: str = "all") -> Shown:
    """Every baseline at every allocation."""
    columns = ["baseline", "m", "total variance", "relative to RLOO-2", "within prompts", "variance / ‖E G‖²"]
    cells = []
    for row in rows_where(rows, table="variance", metric=metric, domain=domain):
        if not row["name"].startswith("oracle,"):
            values = [_short(row[key]) for key in ("variance", "relative", "within_prompts", "noise_to_signal")]
            cells.append([row["name"], str(row["m"]), *values])
    return Shown(f"Variance of {'all prompts' if domain == 'all' else domain}: {_METRICS[metric]}", columns, cells)


def decomposition_table(rows: Sequence[dict[str, Any]]) -> Shown:
    columns = ["baseline", "m", "Σ_within/B", "(m/B) Σ_between", "predicted", "measured", "measured / predicted"]
    cells = []
    for row in rows_where(rows, table="decomposition", metric="sum"):
        values = [_short(row[key]) for key in ("within", "between", "predicted", "measured", "ratio")]
        cells.append([row["name"], str(row["m"]), *values])
    title = "Proposition 1 out of sample: components from one half of the prompts, measured on the other"
    return Shown(title, columns, cells)


def proxies_table(rows: Sequence[dict[str, Any]]) -> Shown:
    columns = ["proxy", "metric", "Pearson", "Spearman", "Pearson within prompts", "oracle's variance / RLOO-2 (m = 2)"]
    cells = []
    for metric in METRICS:
        for row in rows_where(rows, table="proxies", metric=metric):
            oracle = _row(rows, metric, f"oracle, {row['name']} for |s|²", 2)["relative"]
            values = [f"{row[key]:.3f}" for key in ("pearson", "spearman", "pearson_within_prompts")]
            cells.append([row["name"], metric, *values, number(oracle)])
        best = _row(rows, metric, "oracle b*", 2)["relative"]
        cells.append(["true ‖s‖²", metric, "1.000", "1.000", "1.000", number(best)])
    title = "Proxies of ‖s‖²: one_minus_pi Σ(1−π)², residual Σ‖e−π‖², nll −Σ log π; oracle: E[proxy·r]/E[proxy]"
    return Shown(title, columns, cells)


def methods_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Relative variance of each method, by metric."""
    figure = Figure(figsize=(SIZE[0] * 1.15, SIZE[1] * 1.6), layout="constrained")
    axes = figure.subplots()
    shown = [
        row
        for row in rows_where(rows, table="variance", metric="sum", domain="all")
        if (row["m"] == 2 or (row["m"] == 1 and not row["name"].startswith("oracle")))
        and not row["name"].startswith("oracle,")
    ]
    labels = [f"{row['name']}, m = {row['m']}" for row in shown]
    height = 0.8 / len(METRICS)
    for place, metric in enumerate(METRICS):
        values = [_row(rows, metric, row["name"], row["m"])["relative"] for row in shown]
        mean, low, high = (np.array([value[key] for value in values]) for key in ("mean", "low", "high"))
        y = np.arange(len(shown)) + (place - 1) * height
        spread = np.maximum(0, [mean - low, high - mean])
        axes.barh(
            y, mean, height * 0.9, xerr=spread, color=COLOURS[place], label=metric, error_kw={"lw": 1, "capsize": 2}
        )
    axes.axvline(1, color="#777777", lw=1, ls=":")
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(shown)), labels, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("total variance / that of RLOO-2")
    axes.set_title("Variance of the policy gradient at a fixed budget")
    axes.legend(loc="lower right", fontsize=9)
    return figure


def allocations_figure(rows: Sequence[dict[str, Any]], budget: int) -> Figure:
    """Variance against m for a few methods."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    names = ("no baseline", "RLOO", "shrinkage", "probe", "prompt-only probe", "oracle p(x)", "oracle b*")
    for colour, name in zip(COLOURS, names, strict=True):
        chosen = rows_where(rows, table="variance", metric="sum", domain="all", name=name)
        m = [row["m"] for row in chosen]
        values = [row["variance"] for row in chosen]
        mean, low, high = (np.array([value[key] for value in values]) for key in ("mean", "low", "high"))
        axes.errorbar(
            m,
            mean,
            np.maximum(0, [mean - low, high - mean]),
            fmt="o-",
            color=colour,
            capsize=3,
            lw=1.6,
            ms=5,
            label=name,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks((1, 2, 4, 8), ("1", "2", "4", "8"))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"rollouts per prompt, m, of {budget} in all")
    axes.set_ylabel("total variance of the gradient")
    axes.set_title("How to spend a budget")
    axes.legend(fontsize=9)
    return figure


def decomposition_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Predicted against measured variance of the baselines of the prompt alone."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["name"] for row in rows_where(rows, table="decomposition", metric="sum")))
    for colour, name in zip(COLOURS * 2, names, strict=False):
        chosen = rows_where(rows, table="decomposition", metric="sum", name=name)
        values = {
            key: np.array([[row[key][end] for end in ("mean", "low", "high")] for row in chosen])
            for key in ("predicted", "measured")
        }
        x, y = values["predicted"], values["measured"]
        spread_x = np.maximum(0, [x[:, 0] - x[:, 1], x[:, 2] - x[:, 0]])
        spread_y = np.maximum(0, [y[:, 0] - y[:, 1], y[:, 2] - y[:, 0]])
        axes.errorbar(x[:, 0], y[:, 0], spread_y, spread_x, "o-", color=colour, ms=5, lw=1, elinewidth=0.6, label=name)
    ends = [0, max(axes.get_xlim()[1], axes.get_ylim()[1])]
    axes.plot(ends, ends, color="#777777", lw=1, ls=":")
    axes.set_xlabel("predicted: Σ_within/B + (m/B) Σ_between, from one half of the prompts")
    axes.set_ylabel("measured on the other half")
    axes.set_title("Proposition 1, m = 1, 2, 4, 8 along each line")
    axes.legend(fontsize=8)
    return figure


# How the text writes what PROXIES name.
_SAID = {"one_minus_pi": "Σ (1 − π)²", "residual": "Σ ‖e − π‖²", "nll": "−Σ log π", "length": "length, tokens"}


def proxies_figure(gradients: Gradients, rollouts: Rollouts) -> Figure:
    """One panel a proxy; at most 2,000 rollouts are drawn."""
    figure = Figure(figsize=(SIZE[0] * 1.2, SIZE[1] * 1.2), layout="constrained")
    count = gradients.oracle_rewards_MK.shape[1]
    true_B, rewards_B = gradients.norms_K["sum"].flatten(), gradients.oracle_rewards_MK.flatten()
    step = max(1, len(true_B) // 2000)
    is_high_B = rewards_B > (rewards_B.min() + rewards_B.max()) / 2
    for place, (axes, proxy) in enumerate(zip(figure.subplots(2, 2).ravel(), PROXIES, strict=True)):
        values_B = rollouts.proxies_PFX[:, -count:, place].flatten()
        for chosen_B, colour, label in ((~is_high_B, COLOURS[1], "low reward"), (is_high_B, COLOURS[0], "high reward")):
            axes.plot(
                values_B[chosen_B][::step], true_B[chosen_B][::step], ".", ms=2, alpha=0.4, color=colour, label=label
            )
        axes.set_xlabel(_SAID[proxy])
        axes.set_ylabel("‖s‖²")
        axes.set_yscale("symlog", linthresh=max(1e-9, float(true_B.median())))
    axes.legend(markerscale=5, fontsize=9)
    figure.suptitle("Squared score norm and its proxies", weight="bold", fontsize=11)
    return figure


def write_moments(gradients: Gradients, rollouts: Rollouts, domains: Sequence[str], folder: Path) -> None:
    """moments.safetensors: inner products; rollouts.parquet: each oracle rollout with its norms and proxies."""
    import pyarrow
    import pyarrow.parquet

    tensors = {f"gram.{name}": value for name, value in gradients.grams.items()}
    tensors |= {f"across.{name}": value for name, value in gradients.across.items()}
    tensors["rewards"] = gradients.rewards_Mn.contiguous()
    save_state(folder / "moments.safetensors", {"tensors": tensors, "meta": {}})
    count = gradients.oracle_rewards_MK.shape[1]
    columns: dict[str, Any] = {
        "prompt": np.repeat(np.arange(len(domains)), count),
        "domain": np.repeat(np.array(domains), count),
        "reward": gradients.oracle_rewards_MK.flatten().numpy(),
    }
    columns |= {f"squared_norm_{name}": value.flatten().numpy() for name, value in gradients.norms_K.items()}
    for place, proxy in enumerate(PROXIES):
        columns[proxy] = rollouts.proxies_PFX[:, -count:, place].flatten().numpy()
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "rollouts.parquet")


def _row(rows: Sequence[dict[str, Any]], metric: str, name: str, m: int, domain: str = "all") -> dict[str, Any]:
    return rows_where(rows, table="variance", metric=metric, domain=domain, name=name, m=m)[0]


def _short(estimate: dict[str, float]) -> str:
    return f"{estimate['mean']:.3g} [{estimate['low']:.3g}, {estimate['high']:.3g}]"
