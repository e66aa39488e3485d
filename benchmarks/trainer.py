"""POISE against leave-one-out in the same trainer: step time and peak memory at identical rollouts.

    python benchmarks/trainer.py [--rounds 2] [--steps 20] [--rollouts 256]
    python benchmarks/trainer.py --model random:1.7b --tokens 128     # on a GPU: bfloat16, SDPA attention

Both train the same model on the same prompts with the same seed and learning rate zero, so they sample the same
rollouts token by token and differ only in capture, prediction and refit. Each is a process of its own, and the two take
turns step by step, the order changing every step: on a shared machine both see the same load, and the ratio of a step's
two times says more than either. The table gives the median of those ratios with a bootstrap interval.

The model is the bundled one on its own task, a folder, or random weights in a published Qwen3 shape: those have no
answers to give, so their prompts are lines of words and their reward is a coin that the text decides.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

METHODS = ("leave-one-out", "probe")
# Layers, hidden size, intermediate size, heads of the published models; 8 key-value heads and 151,936 tokens each.
QWEN3 = {"0.6b": (28, 1024, 3072, 16), "1.7b": (28, 2048, 6144, 16), "4b": (36, 2560, 9728, 32)}


def coin(completions: list[str], **_: Any) -> list[float]:
    """0 or 1, decided by the text alone."""
    return [float(zlib.crc32(text.encode()) % 2) for text in completions]


def subject(options: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    """Model on its device, tokenizer, dataset and reward."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

    from poise.models import bundled
    from poise.rewards import as_trl_reward, resolve
    from poise.tasks import load_task, reward_of

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    count = options.steps * options.rollouts
    kind, _, shape = options.model.partition(":")
    folder = bundled() if kind in ("bundled", "random") else options.model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if kind == "bundled":
        dataset, reward = load_task("tiny", "train", size=count, seed=0), as_trl_reward(resolve(reward_of("tiny")))
    else:
        draw = random.Random(0)
        lines = [" ".join(str(draw.randrange(1000)) for _ in range(64)) for _ in range(count)]
        dataset, reward = Dataset.from_dict({"prompt": lines}), coin
    if kind == "random":
        layers, hidden, intermediate, heads = QWEN3[shape]
        size = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": intermediate}
        config = Qwen3Config(**size, num_attention_heads=heads, num_key_value_heads=8, head_dim=128, vocab_size=151_936)
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model, tokenizer, dataset, reward


def child(options: argparse.Namespace) -> None:
    """One method's process: a line for each step, then one with its rewards and peak memory."""
    import torch
    from transformers import PrinterCallback, TrainerCallback

    from poise.trl import PoiseConfig, PoiseTrainer

    torch.set_num_threads(1)
    gpu = torch.cuda.is_available()
    wait = torch.cuda.synchronize if gpu else lambda: None

    class Turns(TrainerCallback):
        """Waits for a word before each step, and answers with what the step took."""

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            sys.stdin.readline()
            self.began = time.perf_counter(), time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            wait()
            wall, processor = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
            print(json.dumps({"wall": wall, "processor": processor}), flush=True)

    model, tokenizer, dataset, reward = subject(options)
    with tempfile.TemporaryDirectory() as folder:
        config = PoiseConfig(
            output_dir=folder,
            baseline=options.child,
            learning_rate=0.0,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=options.rollouts // options.micro_batch,
            max_steps=options.steps,
            max_completion_length=options.tokens,
            use_cpu=not gpu,
            bf16=gpu,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = PoiseTrainer(model, reward, config, dataset, processing_class=tokenizer, callbacks=[Turns()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    steps = [entry for entry in trainer.state.log_history if "reward" in entry]
    rewards = [entry["reward"] for entry in steps]
    own = [sum(entry.get(f"poise/{part}_seconds", 0.0) for part in ("capture", "predict", "fit")) for entry in steps]
    if gpu:
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_mib": peak, "rewards": rewards, "own": own}), flush=True)


def play(options: argparse.Namespace) -> tuple[dict[str, list[dict[str, float]]], dict[str, float]]:
    """One round: both processes side by side, step by step in turns.

    Returns:
        each one's seconds of every step, the last of them by the run's own clocks, and its peak memory (MiB).
    """
    names = ("model", "steps", "rollouts", "micro_batch", "tokens")
    size = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
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
        said = ", ".join(f"{baseline} {times[baseline][-1]['wall']:.3f} s" for baseline in METHODS)
        print(f"step {step + 1} of {options.steps}: {said}", file=sys.stderr, flush=True)
    ends = {baseline: answer(process) for baseline, process in processes.items()}
    assert ends["probe"]["rewards"] == ends["leave-one-out"]["rewards"], "the two did not see the same rollouts"
    for baseline, end in ends.items():
        for taken, own in zip(times[baseline], end["own"], strict=True):
            taken["own"] = own
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
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=100, help="length limit of a completion")
    parser.add_argument("--model", default="bundled", help=f"bundled, a folder, or random: and one of {[*QWEN3]}")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    rounds = [play(options) for _ in range(options.rounds)]
    half = options.steps // 2  # the first half fills the buffer and warms caches
    steps = {
        kind: {name: [step[kind] for times, _ in rounds for step in times[name][half:]] for name in METHODS}
        for kind in ("wall", "processor", "own")
    }
    medians = {kind: {name: statistics.median(found[name]) for name in METHODS} for kind, found in steps.items()}
    table: dict[str, dict[str, Any]] = {}
    for kind in ("wall", "processor"):
        middle, low, high = ratio(list(zip(*(steps[kind][name] for name in METHODS), strict=True)))
        table[f"step, {kind} s"] = {**medians[kind], "ratio": middle, "low": low, "high": high}
    # What the trainer's own clocks account for, and the ratio that this alone would make.
    more = medians["own"]["probe"] - medians["own"]["leave-one-out"]
    table["of it, own clocks"] = {**medians["own"], "ratio": 1 + more / medians["wall"]["leave-one-out"]}
    peaks = {name: statistics.median(peak[name] for _, peak in rounds) for name in METHODS}
    table["peak memory, MiB"] = {**peaks, "ratio": peaks["probe"] / peaks["leave-one-out"]}
    print(
        f"{options.model}: {options.rounds} rounds of {options.steps} steps of {options.rollouts} rollouts, one thread"
    )
    print(f"{'medians':<20}{'leave-one-out':>15}{'POISE':>12}{'ratio':>10}   95% interval")
    for name, row in table.items():
        interval = f"   [{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else ""
        print(f"{name:<20}{row['leave-one-out']:>15.3f}{row['probe']:>12.3f}{row['ratio']:>10.3f}{interval}")
    if options.json:
        chosen = {key: value for key, value in vars(options).items() if key not in ("json", "child")}
        options.json.write_text(json.dumps({"options": chosen, "table": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
