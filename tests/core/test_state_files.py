"""Save, kill, load, continue: the next credits are the same, bit for bit. All else is refused, nothing executed."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from poise.core import (
    Credit,
    EstimatorConfig,
    Features,
    ProbeConfig,
    Rollouts,
    ValueEstimator,
    domain_id,
    load_state,
    save_state,
)
from poise.errors import ConfigError, SaveError, StateMismatchError

IDENTITY = {"layers": (2, 3), "window": 10, "end_of_reasoning": (7,), "model": "tiny"}


def batch_of(step: int, width: int, prompts: int = 12, domains: tuple[str, ...] = ()) -> Rollouts:
    draw = torch.Generator().manual_seed(step)
    rows = 2 * prompts
    features = Features(
        torch.randn(rows, width, generator=draw),
        torch.randn(rows, width, generator=draw),
        torch.rand(rows, 3, generator=draw),
        squared_score_B=torch.rand(rows, generator=torch.Generator().manual_seed(step + 1000)),
    )
    entropy_BE = features.entropy_BE
    entropy_BE[::3, 2] = torch.nan
    groups_B = torch.arange(prompts).repeat_interleave(2)
    ids = torch.tensor([domain_id(name) for name in domains])
    return Rollouts(
        (torch.rand(rows, generator=draw) > 0.4).float() * 53 - 3,
        groups_B,
        features,
        ids[groups_B % len(ids)] if domains else None,
        torch.rand(rows, generator=draw),
    )


def estimator_of(**settings: Any) -> ValueEstimator:
    return ValueEstimator(EstimatorConfig(**{"capacity": 60, "cold_start_rows": 8, **settings}), IDENTITY)


def bits(credit: Credit) -> list[bytes]:
    tensors = (credit.predictions_B, credit.baselines_B, credit.advantages_B, credit.targets_B)
    return [tensor.numpy().tobytes() for tensor in tensors]


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "no-pca": {"probe": ProbeConfig(prompt_components=None, reasoning_components=None)},
    "no-components": {"probe": ProbeConfig(prompt_components=0, reasoning_components=0)},
    "logistic": {"probe": ProbeConfig("logistic", 4, 4, clip=(-3.0, 50.0))},
    "leave-one-out": {"baseline": "leave-one-out"},
    "auto": {"baseline": "auto", "probe": ProbeConfig(alpha=None, sibling_outcome=True, weights="score")},
    "prompt-probe": {"baseline": "prompt-probe", "probe": ProbeConfig(alpha=None)},
    "steps": {"cold_start_steps": 5},
}


@pytest.mark.parametrize("domains", [(), ("math",), ("math", "code")], ids=len)
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, name: str, stop: int, domains: tuple) -> None:
    path, running = tmp_path / "poise.safetensors", estimator_of(**SETTINGS[name])
    for step in range(stop):
        running.update(running.credit(batch_of(step, 20, domains=domains)))
    save_state(path, running.state_dict())
    resumed = estimator_of(**SETTINGS[name])
    resumed.load_state_dict(load_state(path))
    for step in range(stop, stop + 4):
        batch = batch_of(step, 20, domains=domains)
        credits = [estimator.credit(batch) for estimator in (running, resumed)]
        assert bits(credits[0]) == bits(credits[1])
        metrics = [e.update(c) for e, c in zip((running, resumed), credits, strict=True)]
        timeless = [{k: v for k, v in m.items() if not k.endswith("_seconds")} for m in metrics]
        assert str(timeless[0]) == str(timeless[1])  # as text, in which NaN equals NaN


def test_warm_started_components_resume_bit_for_bit(tmp_path: Path) -> None:
    """Beyond 512 rows and columns the next basis depends on the last one: it is part of the state."""
    path = tmp_path / "poise.safetensors"
    settings = {"capacity": 600, "probe": ProbeConfig(prompt_components=4, reasoning_components=4)}
    running, resumed = estimator_of(**settings), estimator_of(**settings)
    for step in range(2):
        running.update(running.credit(batch_of(step, 540, prompts=300)))
    save_state(path, running.state_dict())
    resumed.load_state_dict(load_state(path))
    for step in range(2, 4):
        batch = batch_of(step, 540, prompts=20)
        credits = [estimator.credit(batch) for estimator in (running, resumed)]
        assert credits[0].from_probe_B.all()
        assert bits(credits[0]) == bits(credits[1])
        for estimator, credit in zip((running, resumed), credits, strict=True):
            estimator.update(credit)
    assert torch.equal(running.probes[0].prompt.basis_HK, resumed.probes[0].prompt.basis_HK)


def test_a_state_is_a_snapshot() -> None:
    running = estimator_of()
    for step in range(4):
        running.update(running.credit(batch_of(step, 6)))
    state = running.state_dict()
    before = {name: tensor.numpy().tobytes() for name, tensor in state["tensors"].items()}
    resumed = estimator_of()
    resumed.load_state_dict(state)
    for estimator in (running, resumed):
        for step in range(4, 8):
            estimator.update(estimator.credit(batch_of(step, 6)))
    assert all(before[name] == tensor.numpy().tobytes() for name, tensor in state["tensors"].items())


def test_the_file_is_plain_safetensors_with_json(tmp_path: Path) -> None:
    path, running = tmp_path / "poise.safetensors", estimator_of()
    running.update(running.credit(batch_of(0, 6)))
    save_state(path, running.state_dict())
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    meta = json.loads(header["__metadata__"]["poise"])
    assert meta["schema"] == 3
    assert meta["identity"]["window"] == 10
    assert meta["identity"]["probe"]["alpha"] == 100.0
    assert meta["version"] == 1
    assert os.listdir(tmp_path) == ["poise.safetensors"]


def test_saving_replaces_the_old_file_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, running = tmp_path / "poise.safetensors", estimator_of()
    save_state(path, running.state_dict())
    old = path.read_bytes()

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    running.update(running.credit(batch_of(0, 6)))
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, running.state_dict())
    assert path.read_bytes() == old


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "settings", "message"),
    [
        ({"layers": (2, 4)}, {}, r"layers: saved \[2, 3\], now \[2, 4\]"),
        ({"window": 32}, {}, "window: saved 10, now 32"),
        ({"pooling": "last"}, {}, "of another version, with other settings .pooling: saved None, now 'last'"),
        ({}, {"capacity": 61}, "capacity: saved 60, now 61"),
        ({}, {"baseline": "none"}, "baseline: saved 'probe', now 'none'"),
        ({}, {"probe": ProbeConfig(prompt_components=16)}, "probe.prompt_components: saved 32, now 16"),
        ({"window": 32}, {"capacity": 61}, "capacity: saved 60, now 61; window: saved 10, now 32"),
    ],
)
def test_changed_settings_are_refused_by_name(identity: dict, settings: dict, message: str) -> None:
    state = estimator_of().state_dict()
    config = EstimatorConfig(**{"capacity": 60, "cold_start_rows": 8, **settings})
    other = ValueEstimator(config, {**IDENTITY, **identity})
    with pytest.raises(StateMismatchError, match=message):
        other.load_state_dict(state)


def executed(path: Path) -> None:
    path.write_text("executed")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return executed, (self.path,)


def test_nothing_is_executed(tmp_path: Path) -> None:
    trap, path = tmp_path / "trap", tmp_path / "poise.safetensors"
    path.write_bytes(pickle.dumps(Evil(trap)))
    with pytest.raises(StateMismatchError, match="not a complete POISE state"):
        load_state(path)
    torch.save({"a": Evil(trap)}, path)
    with pytest.raises(StateMismatchError, match="not a complete POISE state"):
        load_state(path)
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"x", b"garbage" * 100, b"\xff" * 64, b'{"json": 1}'])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "poise.safetensors"
    path.write_bytes(content)
    with pytest.raises(StateMismatchError, match="not a complete POISE state"):
        load_state(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path, running = tmp_path / "poise.safetensors", estimator_of()
    running.update(running.credit(batch_of(0, 6)))
    save_state(path, running.state_dict())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StateMismatchError, match="not a complete POISE state"):
        load_state(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "not a complete POISE state"),
        ({"other": "{}"}, "not a complete POISE state"),
        ({"poise": "{not json"}, "not a complete POISE state"),
        ({"poise": "[]"}, "has schema None, this version reads schema 3"),
        ({"poise": '{"schema": 1}'}, "has schema 1, this version reads schema 3"),
    ],
)
def test_other_safetensors_files_are_refused(tmp_path: Path, metadata: dict | None, message: str) -> None:
    path = tmp_path / "poise.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(StateMismatchError, match=message):
        load_state(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateMismatchError, match=r"gone\.safetensors does not exist"):
        load_state(tmp_path / "gone.safetensors")


def test_a_state_that_lacks_a_tensor_is_refused() -> None:
    running = estimator_of()
    running.update(running.credit(batch_of(0, 6)))
    state = running.state_dict()
    del state["tensors"]["probe.0.head.weights_AK"]
    with pytest.raises(StateMismatchError, match=r"lacks probe\.0\.head"):
        estimator_of().load_state_dict(state)


def test_version_continues_so_that_order_is_still_enforced() -> None:
    running = estimator_of()
    running.update(running.credit(batch_of(0, 6)))
    resumed = estimator_of()
    late = resumed.credit(batch_of(1, 6))
    resumed.load_state_dict(running.state_dict())
    with pytest.raises(ConfigError, match="credited at probe version 0, the estimator is at 1"):
        resumed.update(late)


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    place = tmp_path / "gone" / "poise.safetensors"
    with pytest.raises(SaveError, match=r"gone/poise\.safetensors could not be written \(.*\); make room"):
        save_state(place, {"tensors": {"a": torch.zeros(2)}, "meta": {}})
