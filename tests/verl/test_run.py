"""Real runs on Ray with two FSDP2 ranks: the bundled model learns a real task, is killed, resumes, spans two nodes."""

from __future__ import annotations

import math
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl")
pytest.importorskip("reasoning_gym")
from cpu_run import Run, dumped, interval, overrides, prepare
from cpu_settings import environment

pytestmark = [pytest.mark.verl, pytest.mark.slow, pytest.mark.timeout(3000)]
TASK, PROMPTS, HELD_OUT = "spell_backward", 64, 256
STEPS, SAVED, KILLED, RESUMED_TO = 20, 4, 5, 6
# What the held-out accuracy must have gained over the run (sampled at temperature 1, one answer a prompt): more than
# twice the standard error of the difference.
GAIN = 0.08


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare(folder, TASK, train=4096, test=HELD_OUT)
    return folder


def settings(data: Path, out: Path, steps: int, **more: Any) -> list[str]:
    return overrides(
        data,
        out,
        steps,
        PROMPTS,
        trainer__save_freq=SAVED,
        actor_rollout_ref__rollout__val_kwargs__do_sample=True,
        actor_rollout_ref__rollout__val_kwargs__temperature=1.0,
        **more,
    )


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """The uninterrupted run, with held-out accuracy before its first and after its last step."""
    out = tmp_path_factory.mktemp("whole")
    run = Run(out, settings(data, out, STEPS, trainer__test_freq=STEPS))
    run.wait()
    return out, run


def test_held_out_accuracy_rises(whole: tuple[Path, Run]) -> None:
    metrics = whole[1].metrics()
    name = f"val-core/{TASK}/acc/mean@1"
    before, after = metrics[0][name], metrics[STEPS][name]
    spread = math.hypot(interval(before, HELD_OUT), interval(after, HELD_OUT))
    print(f"held-out accuracy {before:.3f} -> {after:.3f} (95% interval of the difference: {spread:.3f})")
    assert after - before > GAIN


def test_the_probe_credits_from_the_third_step_on(whole: tuple[Path, Run]) -> None:
    metrics = whole[1].metrics()
    shares = [metrics[step]["poise/probe_share"] for step in range(1, STEPS + 1)]
    assert shares[:2] == [0.0, 0.0], "256 rows are two steps of 128 rollouts"
    assert set(shares[2:]) == {1.0}
    late = range(STEPS // 2, STEPS + 1)
    assert sum(metrics[step]["poise/pearson"] for step in late) / len(late) > 0.2
    assert sum(metrics[step]["poise/variance_ratio"] for step in late) / len(late) < 0.95


def test_the_dump_holds_what_was_learnt_from(whole: tuple[Path, Run]) -> None:
    rows = dumped(whole[0], STEPS)
    assert len(rows) == 2 * PROMPTS
    by_name = {row["uid"]: row for row in rows}
    for name, row in by_name.items():
        prompt, rollout, _ = name.rsplit("_", 2)
        sibling = by_name[f"{prompt}_{1 - int(rollout)}_0"]
        assert row["baseline"] == sibling["prediction"], "the baseline is read off the other rollout"
        assert row["advantage"] == pytest.approx(row["score"] - row["baseline"], abs=1e-6)
    assert {row["score"] for row in rows} == {0.0, 1.0}


def test_killed_and_resumed_is_the_uninterrupted_run(data: Path, whole: tuple[Path, Run], tmp_path: Path) -> None:
    arguments = settings(data, tmp_path, RESUMED_TO, trainer__val_before_train=False)
    killed = Run(tmp_path, arguments)
    killed.wait_for(tmp_path / "rollouts" / f"{KILLED}.jsonl")
    killed.kill()
    assert (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == str(SAVED)
    for step in range(SAVED + 1, KILLED + 1):
        (tmp_path / "rollouts" / f"{step}.jsonl").unlink()
    Run(tmp_path, arguments).wait()
    for step in range(1, RESUMED_TO + 1):
        ours, theirs = dumped(tmp_path, step), dumped(whole[0], step)
        assert [row["output"] for row in ours] == [row["output"] for row in theirs], f"step {step}"
        for name in ("score", "prediction", "baseline", "advantage"):
            assert [row[name] for row in ours] == [row[name] for row in theirs], f"{name} at step {step}"


def test_two_nodes_two_domains_and_failing_rewards(tmp_path: Path) -> None:
    """Two Ray nodes with one rank each; a verifier that fails for one answer in five, and two data sources."""
    prepare(tmp_path, "tiny", train=64, test=16, reward=f"{Path(__file__).parent}/support/failing.py:verify")
    out, steps, prompts = tmp_path / "out", 3, 8
    with ray_nodes(2) as (address, variables):
        arguments = overrides(
            tmp_path,
            out,
            steps,
            prompts,
            trainer__test_freq=steps,
            trainer__val_before_train=False,
            poise__cold_start_rows=8,
        )
        run = Run(out, arguments, address=address, variables=variables)
        run.wait()
    metrics = run.metrics()
    failed = sum(metrics[step]["poise/failed"] for step in range(1, steps + 1))
    assert failed > 0
    assert metrics[steps]["poise/validation_failed"] > 0
    for step in range(1, steps + 1):
        rows = dumped(out, step)
        assert len(rows) == 2 * prompts
        for row in rows:
            assert (row["score"] is None) == (row["advantage"] is None), "a failure is never learnt from"
        assert sum(row["score"] is None for row in rows) == metrics[step]["poise/failed"]
        assert math.isfinite(metrics[step]["actor/pg_loss"])
        assert math.isfinite(metrics[step]["actor/grad_norm"])
        assert math.isfinite(metrics[step]["critic/score/mean"])
    names = set(metrics[steps])
    assert {f"val-core/{source}/acc/mean@1" for source in ("chain_sum", "spell_backward")} <= names


@contextmanager
def ray_nodes(count: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Ray nodes on this machine with one logical GPU each, started and ended here, and what it takes to join them."""
    # A cluster that `ray start` makes asks for a token; this one has its own.
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-gpus=1", "--num-cpus=8"]
    command += ["--object-store-memory=300000000", "--disable-usage-stats"]
    folder = tempfile.mkdtemp(prefix="ray")  # short, for the sockets in it; and no later run finds this cluster
    head = [*command, "--head", f"--temp-dir={folder}", f"--port={port}", "--include-dashboard=false"]
    nodes = [subprocess.Popen(head, env=environment() | variables, stdout=subprocess.DEVNULL)]
    try:
        for _ in range(count - 1):
            time.sleep(10)
            joined = [*command, f"--address=127.0.0.1:{port}"]
            nodes.append(subprocess.Popen(joined, env=environment() | variables, stdout=subprocess.DEVNULL))
        time.sleep(10)
        yield f"127.0.0.1:{port}", variables
    finally:
        for node in reversed(nodes):
            node.terminate()
            node.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
