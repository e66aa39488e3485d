"""POISE against leave-one-out in the same trainer: step time and peak memory at identical rollouts.

    python benchmarks/trainer.py [--rounds 2] [--steps 20] [--rollouts 256]

Both train the bundled model on the same prompts with the same seed and learning rate zero, so they sample the same
rollouts token by token and differ only in capture, prediction and refit. Each is a process of its own, and the two take
turns step by step, the order changing every step: on a shared machine both see the same load, and the ratio of a step's
two times says more than either. The table gives the median of those ratios with a bootstrap interval.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

METHODS = ("leave-one-out", "probe")


def child(baseline: str, steps: int, rollouts: int) -> None:
    """One method's process: a line for each step, then one with its rewards and peak memory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

    from poise.models import bundled
    from poise.rewards import as_trl_reward, resolve
    from poise.tasks import load_task, reward_of
    from poise.trl import PoiseConfig, PoiseTrainer

    torch.set_num_threads(1)

    class Turns(TrainerCallback):
        """Waits for a word before each step, and answers with what the step took."""

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            sys.stdin.readline()
            self.began = time.perf_counter(), time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            wall, processor = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
            print(json.dumps({"wall": wall, "processor": processor}), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        config = PoiseConfig(
            output_dir=folder,
            baseline=baseline,
            learning_rate=0.0,
            per_device_train_batch_size=64,
            gradient_accumulation_steps=rollouts // 64,
            max_steps=steps,
            max_completion_length=100,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = PoiseTrainer(
            AutoModelForCausalLM.from_pretrained(bundled()),
            as_trl_reward(resolve(reward_of("tiny"))),
            config,
            load_task("tiny", "train", size=steps * rollouts, seed=0),
            processing_class=AutoTokenizer.from_pretrained(bundled()),
            callbacks=[Turns()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_mib": peak, "rewards": rewards}), flush=True)


def play(options: argparse.Namespace) -> tuple[dict[str, list[dict[str, float]]], dict[str, float]]:
    """One round: both processes side by side, step by step in turns; each one's step times, and peak memory (MiB)."""
    size = ["--steps", str(options.steps), "--rollouts", str(options.rollouts)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    processes = {
        baseline: subprocess.Popen(
            [sys.executable, __file__, "--child", baseline, *size],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for baseline in METHODS
    }
    times: dict[str, list[dict[str, float]]] = {baseline: [] for baseline in METHODS}
    for step in range(options.steps):
        for baseline in METHODS if step % 2 else reversed(METHODS):
            processes[baseline].stdin.write("go\n")
            processes[baseline].stdin.flush()
            times[baseline].append(answer(processes[baseline]))
    ends = {baseline: answer(process) for baseline, process in processes.items()}
    assert ends["probe"]["rewards"] == ends["leave-one-out"]["rewards"], "the two did not see the same rollouts"
    return times, {baseline: end["peak_mib"] for baseline, end in ends.items()}


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line of figures from a child, whatever its libraries print in between."""
    for line in process.stdout:
        if line.startswith("{") and line.rstrip().endswith("}") and '"' in line:
            return json.loads(line)
    raise SystemExit(f"a benchmark process ended early with status {process.wait()}")


def ratio(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Median of ours / rival over paired steps, with its 95% bootstrap interval."""
    ratios = np.array([ours / rival for rival, ours in pairs])
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rollouts", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.steps, options.rollouts)
        return
    rounds = [play(options) for _ in range(options.rounds)]
    half = options.steps // 2  # the first half fills the buffer and warms caches
    table: dict[str, dict[str, Any]] = {}
    for kind in ("wall", "processor"):
        steps = {name: [step[kind] for times, _ in rounds for step in times[name][half:]] for name in METHODS}
        middle, low, high = ratio(list(zip(steps["leave-one-out"], steps["probe"], strict=True)))
        medians = {name: statistics.median(values) for name, values in steps.items()}
        table[f"step, {kind} s"] = {**medians, "ratio": middle, "low": low, "high": high}
    peaks = {name: statistics.median(peak[name] for _, peak in rounds) for name in METHODS}
    table["peak memory, MiB"] = {**peaks, "ratio": peaks["probe"] / peaks["leave-one-out"]}
    print(f"{options.rounds} rounds of {options.steps} steps of {options.rollouts} rollouts, one thread")
    print(f"{'medians':<20}{'leave-one-out':>15}{'POISE':>12}{'ratio':>10}   95% interval")
    for name, row in table.items():
        interval = f"   [{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else ""
        print(f"{name:<20}{row['leave-one-out']:>15.3f}{row['probe']:>12.3f}{row['ratio']:>10.3f}{interval}")
    if options.json:
        chosen = {key: value for key, value in vars(options).items() if key not in ("json", "child")}
        options.json.write_text(json.dumps({"options": chosen, "table": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
