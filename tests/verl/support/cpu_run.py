"""Real runs of `poise-verl` on this machine: their data and model, their settings, their processes, their logs."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpu_settings import SUPPORT, environment, local_ray, on_cpu

from poise.models import bundled
from poise.tasks import load_task
from poise.verl.convert import to_verl, write_rows

PROMPT_TOKENS, RESPONSE_TOKENS = 96, 64
_METRIC = re.compile(r"([\w/@.-]+):(?:np\.\w+\()?(-?[\d.]+(?:e[+-]?\d+)?|nan)\)?")


def prepare(folder: Path, train: Mapping[str, int], test: Mapping[str, int]) -> None:
    """So many prompts of each task, none of them twice, as verl wants them."""
    for split, tasks in (("train", train), ("test", test)):
        rows = [row for task, size in tasks.items() for row in load_task(task, split, size=size)]
        questions = {str(row["prompt"]): row for row in rows}
        write_rows(to_verl(questions.values(), split, "procedural"), folder / f"{split}.parquet")


def overrides(data: Path, out: Path, steps: int, prompts: int, **settings: Any) -> list[str]:
    """Everything but the machine: data, sizes, two updates per step, dumps and checkpoints under `out`."""
    chosen = {
        "actor_rollout_ref.model.path": bundled(),
        "data.train_files": data / "train.parquet",
        "data.val_files": data / "test.parquet",
        "data.train_batch_size": prompts,
        "data.max_prompt_length": PROMPT_TOKENS,
        "data.max_response_length": RESPONSE_TOKENS,
        "data.seed": 1,
        "actor_rollout_ref.rollout.prompt_length": PROMPT_TOKENS,
        "actor_rollout_ref.rollout.response_length": RESPONSE_TOKENS,
        "actor_rollout_ref.actor.ppo_mini_batch_size": prompts // 2,
        "actor_rollout_ref.actor.use_dynamic_bsz": True,
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 8192,
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz": True,
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu": 8192,
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        "actor_rollout_ref.actor.optim.lr": 5e-4,
        "actor_rollout_ref.actor.optim.lr_warmup_steps": 4,
        "actor_rollout_ref.actor.optim.betas": "[0.9,0.99]",
        "reward.custom_reward_function.path": "pkg://poise.verl.reward",
        "reward.custom_reward_function.name": "compute_score",
        "trainer.logger": "[console]",
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": 100,
        "trainer.default_local_dir": out / "checkpoints",
        "trainer.rollout_data_dir": out / "rollouts",
        "trainer.v1.sampler.custom_sampler.path": SUPPORT / "cpu_verl" / "sampler.py",
        "trainer.v1.sampler.custom_sampler.name": "InOrder",
        "poise.probe.prompt_components": 8,
        "poise.probe.reasoning_components": 16,
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    return [f"{name}={value}" for name, value in chosen.items()]


class Run:
    """One `poise-verl` process with all that it starts.

    Args:
        out: folder of its log.
        arguments: its overrides.
        address: a Ray cluster to join; None starts Ray.
        variables: environment variables that joining takes.
        seconds: it is ended after this long, for a failed rollout server makes verl wait for ever.
    """

    def __init__(
        self,
        out: Path,
        arguments: list[str],
        address: str | None = None,
        variables: Mapping[str, str] | None = None,
        seconds: int = 1800,
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        nodes = 1 if address is None else 2
        machine = on_cpu(nodes=nodes) + ([] if address else local_ray())
        self.log, self.deadline = out / f"log{len(list(out.glob('log*')))}.txt", time.monotonic() + seconds
        command = [sys.executable, "-W", "ignore", "-m", "poise.verl", *machine, *arguments]
        joined = {"RAY_ADDRESS": address, **(variables or {})} if address else {}
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment() | joined,
                cwd=out,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it ends by itself.

        Raises:
            AssertionError: it failed, or took too long; the end of its log is in the message.
        """
        try:
            status: int | str = self.process.wait(max(1.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            status = "too slow"
        assert status == 0, f"{status}\n{self.log.read_text()[-6000:]}"

    def wait_for(self, path: Path) -> None:
        """Until it has written a file."""
        while not path.exists():
            assert self.process.poll() is None, self.log.read_text()[-6000:]
            assert time.monotonic() < self.deadline, f"{path} did not appear in time"
            time.sleep(0.2)

    def kill(self) -> None:
        """As a power cut would: no process of it gets to clean up. (Ray's own follow the one that started them.)"""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def metrics(self) -> dict[int, dict[str, float]]:
        """What verl's console logger printed for each step."""
        found: dict[int, dict[str, float]] = {}
        for line in self.log.read_text().splitlines():
            if match := re.search(r"step:(\d+) - (.*)", line):
                values = {name: float(value) for name, value in _METRIC.findall(match[2])}
                found.setdefault(int(match[1]), {}).update(values)
        return found


def dumped(out: Path, step: int) -> list[dict[str, Any]]:
    """The rollouts that a run dumped at a step, sorted by what was asked and answered, and by what was made of it.

    Which of a prompt's rollouts got which answer depends on whose request came in first. Two with the same answer may
    differ in a baseline's last bit, by where they stood in the batch.
    """
    rows = [json.loads(line) for line in (out / "rollouts" / f"{step}.jsonl").read_text().splitlines()]
    made = ("prediction", "baseline")
    return sorted(rows, key=lambda row: (row["input"], row["output"], *(row[name] or 0.0 for name in made)))


def interval(share: float, count: int) -> float:
    """Half the 95% interval of a share of `count` trials."""
    return 1.96 * math.sqrt(share * (1 - share) / count)
