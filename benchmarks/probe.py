"""Seconds of one probe refit and one batch of predictions, against scikit-learn, at the size of a published run.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE OMP_NUM_THREADS=1 python benchmarks/probe.py --json probe.json

    python benchmarks/probe.py --device cuda     # ours on the GPU, the rival on the CPU

4096 buffered rows of two 2560-wide blocks (decaying spectra, like hidden states), and a new batch of 512 rows. Ours is
`ValueEstimator.credit` plus `.update`, so predictions, metrics, buffer append and refit are all in it. The rival is
StandardScaler -> PCA(randomized) -> Ridge of the same sizes, with one transform call per row, as a trainer that
handles rollouts one by one does; the same with batched transforms stands beside it. All contenders take turns, the
table shows medians; process CPU time stands beside wall time because the machine may be shared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from poise.core import Credit, EstimatorConfig, Features, ProbeConfig, Rollouts, ValueEstimator

ROWS, BATCH, WIDTH = 4096, 512, 2560
COMPONENTS = (32, 64)
ALPHA = 100.0
TARGET_SECONDS, TARGET_SPEEDUP = 0.35, 8.0


@dataclass
class Timing:
    """Wall and process CPU seconds of one contender, over the repetitions."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, function: Callable[[], object]) -> None:
        wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
        wait()
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        wait()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    def summary(self) -> dict[str, float]:
        return {
            "wall_median": statistics.median(self.wall),
            "cpu_median": statistics.median(self.cpu),
            "wall_min": min(self.wall),
        }


def hidden_states(rows: int, seed: int) -> torch.Tensor:
    """Rows with 200 directions of decaying power, an offset as large as real hidden states have, and noise."""
    # The directions and the offset belong to the model, so that every call shares them; the scores are the rollouts'.
    model, rollouts = torch.Generator().manual_seed(seed % 2), torch.Generator().manual_seed(seed)
    decay = torch.arange(1, 201) ** -0.8
    directions = torch.randn(200, WIDTH, generator=model)
    offset = 3 * torch.randn(WIDTH, generator=model)
    scores = torch.randn(rows, 200, generator=rollouts) * decay
    return scores @ directions + offset + 0.05 * torch.randn(rows, WIDTH, generator=rollouts)


def rollouts(rows: int, seed: int, device: str = "cpu") -> Rollouts:
    """Pairs of rollouts whose reward depends on both blocks."""
    prompt_BH, reasoning_BH = hidden_states(rows, 2 * seed), hidden_states(rows, 2 * seed + 1)
    generator = torch.Generator().manual_seed(1000 + seed)
    signal_B = prompt_BH[:, :20].mean(1) + reasoning_BH[:, :20].mean(1)
    noise_B = 0.2 * torch.randn(rows, generator=generator)
    rewards_B = (signal_B + noise_B > signal_B.mean()).float()
    blocks = prompt_BH, reasoning_BH, torch.rand(rows, 3, generator=generator)
    features = Features(*(block.to(device) for block in blocks))
    return Rollouts(rewards_B.to(device), torch.arange(rows, device=device) // 2, features)


def estimator_with(buffered: Rollouts) -> ValueEstimator:
    """An estimator whose buffer is full and whose probe has been fitted once."""
    probe = ProbeConfig(prompt_components=COMPONENTS[0], reasoning_components=COMPONENTS[1], alpha=ALPHA)
    estimator = ValueEstimator(EstimatorConfig(probe=probe, capacity=ROWS))
    estimator.update(estimator.credit(buffered))
    return estimator


def our_steps(warm: bool, batches: Iterator[Rollouts], appended: Timing, device: str) -> Callable[[], Credit]:
    """One training step's work: credit a batch, then update. Without `warm` the refit starts from scratch."""
    estimator = estimator_with(rollouts(ROWS, 1, device))
    buffer = estimator.buffers[0]
    append = buffer.append
    buffer.append = lambda pairs: appended.measure(lambda: append(pairs))  # type: ignore[method-assign]

    def step() -> Credit:
        credit = estimator.credit(next(batches))
        if not warm:
            estimator.probes.clear()
        estimator.update(credit)
        return credit

    return step


def sklearn_step(buffered: Rollouts, batch: Rollouts, per_row: bool) -> Callable[[], np.ndarray]:
    """The same refit and predictions by scikit-learn, rows transformed one by one or in one call."""
    assert buffered.features is not None
    assert batch.features is not None
    old = [t.numpy() for t in (buffered.features.prompt_BH, buffered.features.reasoning_BH)]
    new = [t.numpy() for t in (batch.features.prompt_BH, batch.features.reasoning_BH)]
    old_entropy, new_entropy = buffered.features.entropy_BE.numpy(), batch.features.entropy_BE.numpy()
    targets = buffered.rewards_B.numpy()

    def transform(block: np.ndarray, stage: StandardScaler | PCA) -> np.ndarray:
        if not per_row:
            return stage.transform(block)
        return np.concatenate([stage.transform(block[i : i + 1]) for i in range(len(block))])

    def step() -> np.ndarray:
        fit_columns, new_columns = [], []
        for block, new_block, components in zip(old, new, COMPONENTS, strict=True):
            scaler = StandardScaler().fit(block)
            standard = scaler.transform(block)
            pca = PCA(components, svd_solver="randomized", random_state=0).fit(standard)
            fit_columns.append(transform(standard, pca))
            new_columns.append(transform(scaler.transform(new_block), pca))
        scaler = StandardScaler().fit(old_entropy)
        ridge = Ridge(alpha=ALPHA).fit(np.concatenate([*fit_columns, scaler.transform(old_entropy)], 1), targets)
        return ridge.predict(np.concatenate([*new_columns, scaler.transform(new_entropy)], 1))

    return step


def run(repetitions: int, device: str) -> dict[str, dict[str, float]]:
    """Medians of each contender, by name; the contenders take turns, after one untimed turn each."""
    buffered, batch = rollouts(ROWS, 1), rollouts(BATCH, 2)
    names = ("warm", "cold", "append", "append (cold)", "scikit-learn per row", "scikit-learn batched")
    timings = {name: Timing() for name in names}

    def fresh(first: int) -> Iterator[Rollouts]:
        # Made before the clock starts: a generator would put the making of the data into the measured time.
        return iter([rollouts(BATCH, first + i, device) for i in range(repetitions + 1)])

    contenders: dict[str, Callable[[], object]] = {
        "warm": our_steps(True, fresh(10), timings["append"], device),
        "cold": our_steps(False, fresh(10), timings["append (cold)"], device),
        "scikit-learn per row": sklearn_step(buffered, batch, per_row=True),
        "scikit-learn batched": sklearn_step(buffered, batch, per_row=False),
    }
    for step in contenders.values():
        step()
    for _ in range(repetitions):
        for name, step in contenders.items():
            timings[name].measure(step)
    return {name: timing.summary() for name, timing in timings.items() if name != "append (cold)"}


def table(results: dict[str, dict[str, float]]) -> str:
    """The results and the two targets, as text."""
    title = {
        "warm": "POISE credit + update, warm-started",
        "cold": "POISE credit + update, cold",
        "append": "  of it, buffer append of 512 rows",
        "scikit-learn per row": "scikit-learn, one transform per row",
        "scikit-learn batched": "scikit-learn, batched transforms",
    }
    lines = [f"{'':38}{'wall s':>9}{'cpu s':>9}"]
    for name in title:
        row = results[name]
        lines.append(f"{title[name]:38}{row['wall_median']:9.3f}{row['cpu_median']:9.3f}")
    warm, rival = results["warm"], results["scikit-learn per row"]
    for clock in ("wall", "cpu"):
        ratio = rival[f"{clock}_median"] / warm[f"{clock}_median"]
        lines.append(f"{clock}: {ratio:.1f} times faster than scikit-learn (target {TARGET_SPEEDUP:g})")
    verdict = "met" if warm["wall_median"] <= TARGET_SECONDS else "missed"
    lines.append(f"warm-started refit + predict: {warm['wall_median']:.3f} s (target {TARGET_SECONDS} s: {verdict})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="where ours runs; scikit-learn is always on the CPU")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = run(arguments.repetitions, arguments.device)
    where = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "one thread"
    print(f"{ROWS} rows x ({WIDTH} + {WIDTH}), batch of {BATCH}, PCA {COMPONENTS}, torch {torch.__version__}, {where}")
    print(table(results))
    slow = [name for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if name in os.environ]
    if slow or os.environ.get("OMP_NUM_THREADS") != "1":
        print(f"not a fair comparison: set OMP_NUM_THREADS=1 and unset {', '.join(slow) or 'nothing else'}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
