"""A run folder as training leaves it, with numbers that a test chose: rewards rise, the probe is calibrated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from poise.runs.folder import RunFolder
from poise.runs.settings import TrainSettings

STEPS = 30
ROLLOUTS = 64


def plant(path: Path) -> RunFolder:
    """Thirty steps of 64 rollouts, the first two cold; held-out accuracy 0.4, then 0.6; tokens of the first prompts."""
    folder = RunFolder(path)
    folder.make()
    folder.write_settings(TrainSettings())
    rng = np.random.default_rng(0)
    for step in range(1, STEPS + 1):
        baseline = rng.random(ROLLOUTS)
        reward = (rng.random(ROLLOUTS) < baseline).astype(float)
        _metrics(folder, step)
        _completions(folder, step, baseline, reward)
    for step, accuracy in ((0, 0.4), (STEPS, 0.6)):
        ends = {"low": accuracy - 0.05, "high": accuracy + 0.05}
        folder.evaluations.append(
            {"step": step, "accuracy": accuracy, **ends, "prompts": 9, "samples": 9, "seconds": 1.0}
        )
    folder.write_record({"sessions": [], "versions": {"torch": "2.13.0"}, "git": None, "device": None})
    return folder


def _metrics(folder: RunFolder, step: int) -> None:
    record = {"step": step, "rollouts": ROLLOUTS * step, "seconds": 2.0 * step, "step_seconds": 2.0}
    record |= {"reward": step / STEPS, "poise/prediction_mean": step / STEPS if step > 2 else None, "entropy": 1.0}
    record |= {"poise/variance_ratio": 0.7, "completions/mean_length": 50.0, "grad_norm": 1 / step}
    record |= {"poise/mae": 0.3, "poise/pearson": 0.5}
    mixed = {"probe": 0.4, "prompt_probe": 0.3, "leave_one_out": 0.2, "other_prompts": 0.1}
    record |= {f"poise/mix_{name}": share for name, share in mixed.items()}
    if step % 10 == 0:
        record |= {"poise/track_mae": 0.2, "poise/track_pearson": 0.8, "poise/track_ceiling": 0.9}
    folder.metrics.append(record)


def _completions(folder: RunFolder, step: int, baseline: np.ndarray, reward: np.ndarray) -> None:
    columns = {
        "step": [step] * ROLLOUTS,
        "prompt": [[{"role": "user", "content": "<b>2 & 2</b>"}]] * ROLLOUTS,
        "completion": [[{"role": "assistant", "content": "<script>alert(1)</script>"}]] * ROLLOUTS,
        "exact": reward,
        "prediction": baseline if step > 2 else [float("nan")] * ROLLOUTS,
        "baseline": baseline,
        "advantage": reward - baseline,
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), folder.completions / f"step_{step:05d}.parquet")
    tokens = {"row": [0, 1], "tokens": [["<script>", "alert(1)", "</script>"]] * 2, "nats": [[0.0, 1.0, 2.0]] * 2}
    folder.token_file(step).parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(tokens), folder.token_file(step))
