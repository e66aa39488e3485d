"""The HTML page: what the templates show, picked and worded here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from poise.report.completions import shown_completions
from poise.report.data import RunData
from poise.report.studies import Study
from poise.report.summary import Summary
from poise.runs.configfile import differences, literal, to_toml
from poise.runs.presets import decided
from poise.runs.settings import TrainSettings

CAPTIONS = {
    "held_out": "Accuracy on prompts that are never trained on.",
    "reward": "What the rollouts of each step earned, and what the probe predicted before it saw their rewards. A "
    "probe that is fitted with squared scores predicts the reward weighted with them (dotted).",
    "variance": "Above, Var(A)/Var(r): what the baseline leaves of the reward's variance. Below, what it leaves of "
    "leave-one-out's gradient variance within prompts, estimated with w = squared scores where the probe is fitted "
    "with them; such a probe lowers the second and need not lower the first.",
    "mixture": "Four baselines are combined, with the weights that would have erred least on past batches; none of "
    "them sees the rollout's own reward.",
    "calibration": "Each point is a tenth of all rollouts, ordered by baseline, with its 95% interval. On the dotted "
    "line, predictions mean what they say. No baseline knows its own rollout, so none is compared with itself.",
    "error": "Against what the same step earned: noisy, since one reward stands for a pass rate.",
    "tracking": "Every few steps, against the mean of fresh rollouts of each of the step's prompts, drawn from the "
    "policy that made the step. The dotted line is the correlation that the true pass rates would reach with them.",
    "grad_norm": "Spikes say that a few rollouts drive the update.",
    "policy": "A policy that collapses shows it here first.",
    "seconds": "Sampling, verification, credit, update and probe refit.",
}


def render(
    runs: Sequence[RunData], summaries: Sequence[Summary], figures: Mapping[str, str], studies: Sequence[Study]
) -> str:
    """The whole page as text: nothing in it is fetched, nothing in it is executed."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "cell": cell, "toml": literal}
    completions, top = shown_completions(runs)
    shown = [_shown(run, summary, groups) for run, summary, groups in zip(runs, summaries, completions, strict=True)]
    return environment.get_template("page.html.j2").render(
        title=", ".join([*(run.name for run in runs), *(study.title for study in studies)]),
        css=Markup((Path(__file__).parent / "page" / "style.css").read_text("utf-8")),
        runs=shown,
        figures=[(name, CAPTIONS[name], Markup(svg)) for name, svg in figures.items()],
        studies=studies,
        top=top,
    )


def number(value: Any, digits: int = 3) -> str:
    """A value for a table: a dash where there is none."""
    if isinstance(value, float):
        return f"{value:.{digits}f}" if math.isfinite(value) else "–"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def cell(value: Any) -> str:
    """A value of a study's table, of whatever size: four digits that count; pairs as intervals."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return f"[{', '.join(cell(item) for item in value)}]"
    if isinstance(value, float) and math.isfinite(value) and value:
        return f"{value:.3f}" if 1e-2 <= abs(value) < 1e4 else f"{value:.3g}"
    return number(value)


def _shown(run: RunData, summary: Summary, groups: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": run.name,
        "summary": summary,
        "groups": groups,
        "changed": differences(decided(TrainSettings()), run.settings),
        "toml": to_toml(run.settings),
        "record": run.record,
        "notes": run.notes,
    }
