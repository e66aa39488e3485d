"""The summary of a run: the numbers one would quote, as JSON and as a sentence that claims no more than they show."""

from __future__ import annotations

from typing import Any

from poise.errors import ConfigError
from poise.eval import Evaluation, compare
from poise.report.data import RunData

Summary = dict[str, Any]


def summarise(run: RunData) -> Summary:
    """What the run did, cost and reached, with intervals."""
    last = run.metrics[-1] if run.metrics else {}
    sessions = run.record.get("sessions", [])
    found: Summary = {
        "run": run.name,
        "model": run.settings.model.model,
        "task": run.settings.data.data or run.settings.data.task or "tiny",
        "baseline": run.settings.poise.baseline,
        "is_weighted": run.is_weighted,
        "seed": run.settings.run.seed,
        "status": (sessions[-1]["how"] or "running or killed") if sessions else "not started",
        "steps": last.get("step", 0),
        "planned_steps": run.settings.optimisation.steps,
        "rollouts": last.get("rollouts", 0),
        "tokens": last.get("tokens"),
        "seconds": last.get("seconds", 0.0),
        "held_out": held_out(run),
        "last_fifth": {name: run.late(key) for name, key in _LATE.items()},
    }
    return {**found, "sentence": sentence(found)}


_LATE = {
    "reward": "reward",
    "predicted": "poise/prediction_mean",
    "target": "poise/target_mean",
    "variance_ratio": "poise/variance_ratio",
    "relative": "poise/relative_to_leave_one_out",
    "probe_mae": "poise/mae",
    "probe_pearson": "poise/pearson",
    "probe_share": "poise/probe_share",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "length": "completions/mean_length",
    "step_seconds": "step_seconds",
    "failed_rewards": "poise/failed",
}


def held_out(run: RunData) -> Summary | None:
    """Accuracy before and after with intervals, and their difference paired over prompts where that can be had.

    None without evaluations.
    """
    if failed := len(run.evaluations) - len(run.measured):
        run.notes.append(
            f"{failed} of {len(run.evaluations)} held-out evaluations had no verification that went through"
        )
    if not run.measured:
        return None
    first, last = run.measured[0], run.measured[-1]
    keep = ("step", "accuracy", "low", "high", "prompts", "samples")
    found: Summary = {"before": {key: first[key] for key in keep}, "after": {key: last[key] for key in keep}}
    if first["step"] < last["step"]:
        try:
            ends = (Evaluation.from_json(run.folder.evaluation_file(record["step"])) for record in (first, last))
            paired = compare(*ends)
        except ConfigError as error:  # a file is gone, or the two have no verified prompt in common
            run.notes.append(f"no paired difference of the held-out accuracies: {error}")
        else:
            difference = paired.difference
            found["difference"] = {
                "mean": difference.mean,
                "low": difference.low,
                "high": difference.high,
                "p_value": paired.p_value,
                "prompts": paired.prompts,
            }
    return found


_UNSURE = "did not change beyond chance,"


def sentence(found: Summary) -> str:
    """One or two sentences with the numbers; "rose" and "fell" only where interval and test agree."""
    minutes = found["seconds"] / 60
    done = f"{found['steps']} steps" if found["steps"] == found["planned_steps"] else _partly(found)
    head = (
        f"{found['model']} trained on {found['task']} with the {found['baseline']} baseline: {done}, "
        f"{found['rollouts']:,} rollouts, {minutes:.1f} minutes of training."
    )
    return " ".join(part for part in (head, _accuracy(found["held_out"]), _probe(found)) if part)


def _partly(found: Summary) -> str:
    return f"{found['steps']} of {found['planned_steps']} steps ({found['status']})"


def _accuracy(held: Summary | None) -> str:
    if held is None:
        return ""
    before, after = held["before"], held["after"]
    if "difference" not in held:
        ends = [before] if before["step"] == after["step"] else [before, after]
        said = (f"{_interval(end['accuracy'], end)} at step {end['step']}" for end in ends)
        return f"Held-out accuracy {' and '.join(said)}."
    gap = held["difference"]
    is_sure = gap["p_value"] < 0.05
    verb = "rose" if is_sure and gap["low"] > 0 else "fell" if is_sure and gap["high"] < 0 else _UNSURE
    p_value = "p < 0.001" if gap["p_value"] < 0.001 else f"p = {gap['p_value']:.3f}"
    ends = f"from {_interval(before['accuracy'], before)} to {_interval(after['accuracy'], after)}"
    return (
        f"Held-out accuracy {verb} {ends}: "
        f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}], {p_value}, paired over {gap['prompts']} prompts."
    )


def _interval(mean: float, bounds: Summary) -> str:
    return f"{mean:.3f} [{bounds['low']:.3f}, {bounds['high']:.3f}]"


def _probe(found: Summary) -> str:
    late = found["last_fifth"]
    if late["variance_ratio"] is None:
        return ""
    tail = f"In the last fifth of the run Var(A)/Var(r) is {late['variance_ratio']:.2f}"
    if found["baseline"] not in ("probe", "auto") or late["predicted"] is None or late["reward"] is None:
        return f"{tail}."
    if not found["is_weighted"] or late["target"] is None or late["relative"] is None:
        return f"{tail}, the mean reward {late['reward']:.3f} and its prediction {late['predicted']:.3f}."
    return (
        f"In the last fifth of the run the mean reward is {late['reward']:.3f}, weighted with squared scores "
        f"{late['target']:.3f}, which the probe predicted to be {late['predicted']:.3f}; by the same weights the "
        f"baselines leave {late['relative']:.2f} of leave-one-out's gradient variance within prompts."
    )
