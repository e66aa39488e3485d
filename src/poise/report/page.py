"""The HTML page: what the template shows, picked and worded here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from poise.report.data import RunData
from poise.report.summary import Summary
from poise.runs.configfile import differences, literal, to_toml
from poise.runs.settings import TrainSettings

_SHOWN_STEPS, _PROMPTS_PER_STEP = 6, 4
CAPTIONS = {
    "held_out": "Accuracy on prompts that are never trained on.",
    "reward": "What the rollouts of each step earned, and what the probe predicted before it saw their rewards.",
    "variance": "Below 1, the baseline removes variance from the policy gradient; at 1 it might as well not be there.",
    "calibration": "Each point is a tenth of all rollouts, ordered by baseline. On the dotted line, predictions mean "
    "what they say. Baselines come from the other rollout of the same prompt, so no rollout is compared with itself.",
    "grad_norm": "Norm of the policy gradient, before clipping.",
    "policy": "A policy that collapses shows it here first.",
}


def render(runs: Sequence[RunData], summaries: Sequence[Summary], figures: Mapping[str, str]) -> str:
    """The whole page as text; figures are data URIs, so that it stands alone."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "toml": literal}
    return environment.get_template("page.html.j2").render(
        title=", ".join(run.name for run in runs),
        runs=[_shown(run, summary) for run, summary in zip(runs, summaries, strict=True)],
        figures=[(name, CAPTIONS[name], uri) for name, uri in figures.items()],
    )


def number(value: Any, digits: int = 3) -> str:
    """A value for a table: a dash where there is none."""
    if isinstance(value, float):
        return f"{value:.{digits}f}" if math.isfinite(value) else "–"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _shown(run: RunData, summary: Summary) -> dict[str, Any]:
    return {
        "name": run.name,
        "summary": summary,
        "rollouts": shown_rollouts(run),
        "changed": differences(TrainSettings(), run.settings),
        "toml": to_toml(run.settings),
        "record": run.record,
        "notes": run.notes,
    }


def shown_rollouts(run: RunData) -> list[dict[str, Any]]:
    """The first prompts, with all their rollouts, of a few steps from the first to the last: shown as they come."""
    steps = list(run.rollout_files)
    count = min(_SHOWN_STEPS, len(steps))
    chosen = sorted({steps[round(index * (len(steps) - 1) / max(1, count - 1))] for index in range(count)})
    size = run.settings.optimisation.rollouts_per_prompt
    shown: list[dict[str, Any]] = []
    for step in chosen:
        rollouts = run.rollouts(step)[: size * _PROMPTS_PER_STEP]
        for start in range(0, len(rollouts), size):
            group = [
                {**rollout, "reward": run.reward_of(rollout), "text": text_of(rollout["completion"])}
                for rollout in rollouts[start : start + size]
            ]
            shown.append({"step": step, "prompt": text_of(group[0]["prompt"]), "rollouts": group})
    return shown


def text_of(said: Any) -> str:
    """Text of a prompt or completion; messages are set one below the other, with their roles if there are several."""
    if isinstance(said, str):
        return said
    messages = [(message.get("role", ""), str(message.get("content") or "")) for message in said]
    if len(messages) == 1:
        return messages[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in messages)
