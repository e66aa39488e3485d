"""POISE against leave-one-out in the same trainer: step time and peak memory at identical rollouts.

    python benchmarks/trainer.py [--rounds 4] [--steps 32] [--rollouts 256]
    python benchmarks/trainer.py --model random:1.7b --tokens 128     # on a GPU: bfloat16, SDPA attention

Both train the same model on the same prompts with the same seed and learning rate zero, so they sample the same
rollouts token by token and differ only in capture, prediction and refit. For times, both trainers live in one process
and take turns step by step, the order changing every step: they see the same load and the same memory layout, and the
ratio of a step's two times says more than either. (Of two processes, one is 2% faster than the other by chance.) The
table gives the median of those ratios, over the steps that begin with a full buffer, with a bootstrap interval. Peak
memory is that of a process of its own for each (two, from two rounds on).

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
import threading
import time
import traceback
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

METHODS = ("leave-one-out", "auto")
CAPACITY = 4096  # rows of the probe's buffer, PoiseConfig's default
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


def make_trainer(options: argparse.Namespace, baseline: str, folder: str, *callbacks: Any) -> Any:
    """A trainer of one method, silent, that writes nothing."""
    import torch
    from transformers import PrinterCallback

    from poise.trl import PoiseConfig, PoiseTrainer

    gpu = torch.cuda.is_available()
    model, tokenizer, dataset, reward = subject(options)
    config = PoiseConfig(
        output_dir=folder,
        baseline=baseline,
        learning_rate=0.0,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=options.rollouts // options.micro_batch,
        max_steps=options.steps,
        max_completion_length=options.tokens,
        buffer_capacity=CAPACITY,
        use_cpu=not gpu,
        bf16=gpu,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = PoiseTrainer(model, reward, config, dataset, processing_class=tokenizer, callbacks=[*callbacks])
    trainer.remove_callback(PrinterCallback)
    return trainer


def peak(options: argparse.Namespace) -> None:
    """One method's process: prints its peak memory."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(options, options.child, folder).train()
    on_cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else on_cpu))


class Turns:
    """Runs functions in threads of their own, only one of them at any time, each with its own random numbers."""

    def __init__(self) -> None:
        self.changed, self.turn = threading.Condition(), ""
        self.drawn: dict[str, Any] = {}

    def start(self, name: str, function: Callable[[], None]) -> None:
        """Start the function and run it to its first `give_back`."""

        def run() -> None:
            self.wait_for(name)
            try:
                function()
            except BaseException:
                traceback.print_exc()
                os._exit(1)  # the others would wait for ever
            self.give("")

        threading.Thread(target=run, name=name).start()
        self.go_on(name)

    def go_on(self, name: str) -> None:
        """Let it run until it gives the turn back, or ends."""
        import torch

        if name in self.drawn:
            random.setstate(self.drawn[name][0])
            np.random.set_state(self.drawn[name][1])
            torch.set_rng_state(self.drawn[name][2])
            torch.cuda.set_rng_state_all(self.drawn[name][3])
        self.give(name)
        self.wait_for("")
        on_gpu = torch.cuda.get_rng_state_all()
        self.drawn[name] = random.getstate(), np.random.get_state(), torch.get_rng_state(), on_gpu

    def give_back(self, name: str) -> None:
        """Called by its function: pause it until it is to go on."""
        self.give("")
        self.wait_for(name)

    def give(self, name: str) -> None:
        with self.changed:
            self.turn = name
            self.changed.notify_all()

    def wait_for(self, name: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.turn == name)


def times(options: argparse.Namespace) -> None:
    """Both methods in one process: prints the seconds of every step of each."""
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(1)
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    turns = Turns()
    found: dict[str, list[dict[str, float]]] = {baseline: [] for baseline in METHODS}

    class Timed(TrainerCallback):
        """Pauses before every step, which it times from there to where the next one could begin."""

        def __init__(self, baseline: str) -> None:
            self.baseline = baseline

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turns.give_back(self.baseline)

        on_train_end = on_step_begin

    def train(baseline: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(options, baseline, folder, Timed(baseline))
            trainer.train()
        steps = [entry for entry in trainer.state.log_history if "reward" in entry]
        for step, entry in zip(found[baseline], steps, strict=True):
            parts = ("capture", "predict", "fit")
            step |= {"reward": entry["reward"], "own": sum(entry.get(f"poise/{part}_seconds", 0.0) for part in parts)}

    for baseline in METHODS:
        turns.start(baseline, partial(train, baseline))
    for step in range(options.steps):
        for baseline in METHODS if step % 2 else reversed(METHODS):
            began = time.perf_counter(), time.process_time()
            turns.go_on(baseline)
            wait()
            taken = {"wall": time.perf_counter() - began[0], "processor": time.process_time() - began[1]}
            found[baseline].append(taken)
        said = ", ".join(f"{baseline} {found[baseline][-1]['wall']:.3f} s" for baseline in METHODS)
        print(f"step {step + 1} of {options.steps}: {said}", file=sys.stderr, flush=True)
    for baseline in METHODS:
        turns.go_on(baseline)
    rewards = [[step["reward"] for step in found[baseline]] for baseline in METHODS]
    assert rewards[0] == rewards[1], "the two did not see the same rollouts"
    print(json.dumps(found))


def in_process(options: argparse.Namespace, child: str) -> Any:
    """What a process of its own prints last, as JSON."""
    names = ("model", "steps", "rollouts", "micro_batch", "tokens")
    size = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    # One arena: threads would otherwise have memory of their own, by other rules than the main one's.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, __file__, "--child", child, *size]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def ratio(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Median of ours / rival over paired steps, with its 95% bootstrap interval."""
    ratios = np.array([ours / rival for rival, ours in pairs])
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rollouts", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=100, help="length limit of a completion")
    parser.add_argument("--model", default="bundled", help=f"bundled, a folder, or random: and one of {[*QWEN3]}")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        times(options) if options.child == "both" else peak(options)
        return
    rounds = [in_process(options, "both") for _ in range(options.rounds)]
    filling = min(CAPACITY // options.rollouts, options.steps // 2)
    steps = {
        kind: {name: [step[kind] for found in rounds for step in found[name][filling:]] for name in METHODS}
        for kind in ("wall", "processor", "own")
    }
    medians = {kind: {name: statistics.median(found[name]) for name in METHODS} for kind, found in steps.items()}
    table: dict[str, dict[str, Any]] = {}
    for kind in ("wall", "processor"):
        pairs = list(zip(*(steps[kind][name] for name in METHODS), strict=True))
        middle, low, high = ratio(pairs)
        size = len(pairs) // options.rounds
        each = [ratio(pairs[start : start + size])[0] for start in range(0, len(pairs), size)]
        table[f"step, {kind} s"] = {**medians[kind], "ratio": middle, "low": low, "high": high, "each": each}
    # What the trainer's own clocks account for, and the ratio that this alone would make.
    more = medians["own"]["auto"] - medians["own"]["leave-one-out"]
    table["of it, own clocks"] = {**medians["own"], "ratio": 1 + more / medians["wall"]["leave-one-out"]}
    peaks = {
        name: statistics.median(in_process(options, name) for _ in range(min(2, options.rounds))) for name in METHODS
    }
    table["peak memory, MiB"] = {**peaks, "ratio": peaks["auto"] / peaks["leave-one-out"]}
    print(
        f"{options.model}: {options.rounds} rounds of {options.steps} steps of {options.rollouts} rollouts, one thread"
    )
    print(f"{'medians':<20}{'leave-one-out':>15}{'POISE':>12}{'ratio':>10}   95% interval")
    for name, row in table.items():
        interval = f"   [{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else ""
        interval += "   each round: " + " ".join(f"{middle:.3f}" for middle in row["each"]) if "each" in row else ""
        print(f"{name:<20}{row['leave-one-out']:>15.3f}{row['auto']:>12.3f}{row['ratio']:>10.3f}{interval}")
    if options.json:
        chosen = {key: value for key, value in vars(options).items() if key not in ("json", "child")}
        options.json.write_text(json.dumps({"options": chosen, "table": table, "rounds": rounds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
