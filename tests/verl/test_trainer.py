"""The trainer's part of a step on verl's real TransferQueue: credit, KL in the reward, failures, padding, state."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("verl")
import hydra
import ray
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_kl_controller
from verl.trainer.ppo.v1 import PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from poise.core import StateSpec, ValueEstimator, domain_id, load_state, save_state
from poise.errors import StateMismatchError
from poise.verl import launch, refusals
from poise.verl.trainer import PoiseTrainer

pytestmark = [pytest.mark.verl, pytest.mark.timeout(400)]
WIDTH = 4
# Both rollouts of a lesson earn the same: with the sibling's reward beside them, states would be of no use.
STATES_ALONE = "poise.probe.sibling_outcome=false"


@pytest.fixture(scope="module")
def queue() -> Iterator[None]:
    """TransferQueue in a Ray of this process."""
    ray.init("local", num_cpus=4, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False)
    tq.init(compose().transfer_queue)
    yield
    tq.close()
    ray.shutdown()


def compose(*overrides: str) -> Any:
    few = ["num_data_storage_units=1", "total_storage_size=256"]
    storage = [f"transfer_queue.backend.SimpleStorage.{setting}" for setting in few]
    with hydra.initialize_config_module("poise.verl.config", version_base=None):
        return hydra.compose("poise", overrides=[*storage, "poise.baseline=probe", *overrides])


def trainer_of(*overrides: str) -> PoiseTrainer:
    """A trainer with what a step's credit needs of it, and without the workers that it would start."""
    trainer = PoiseTrainer.__new__(PoiseTrainer)
    trainer.config = compose(*overrides)
    trainer.settings = refusals.check(trainer.config)
    trainer.spec = StateSpec(2, 2, 3)
    trainer.estimator = ValueEstimator(trainer.settings.estimator, trainer.spec.identity(depth=4))
    trainer.kl_ctrl_in_reward = get_kl_controller(trainer.config.algorithm.kl_ctrl)
    trainer.dumped, trainer.global_steps = {}, 1
    return trainer


def put_batch(rows: dict[str, dict[str, Any]]) -> KVBatchMeta:
    """Rows into the queue, as the agent loop and the log-prob forward leave them; the reward is on the last token."""
    fields = []
    for key, row in rows.items():
        length = row.get("length", 3)
        scores = torch.zeros(length)
        scores[-1] = row["reward"]
        states = torch.full((WIDTH,), row.get("state", 0.0))
        fields.append(
            {
                "uid": key.split("_")[0],
                "data_source": row.get("source", "math"),
                "response_mask": torch.ones(length, dtype=torch.int64),
                "loss_mask": torch.ones(length, dtype=torch.int64),
                "rm_scores": scores,
                "old_log_probs": torch.full((length,), row.get("log_p", -1.0)),
                "ref_log_prob": torch.full((length,), -1.0 - row.get("kl", 0.0)),
                "poise_prompt": states,
                "poise_reasoning": states * 2,
                "poise_entropy": torch.tensor([0.5, 0.5, math.nan]),
                "poise_seconds": torch.tensor([0.125]),
            }
        )
    tags = [{"is_padding": key.startswith("pad"), "seq_len": 5} for key in rows]
    tq.kv_batch_put(keys=list(rows), partition_id="train", fields=list_of_dict_to_tensordict(fields), tags=tags)
    return KVBatchMeta(partition_id="train", keys=list(rows), tags=tags)


def stored(batch: KVBatchMeta, name: str) -> dict[str, list[float]]:
    data = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=[name])
    return {key: row.tolist() for key, row in zip(batch.keys, data[name].unbind(), strict=True)}


def test_a_step_with_everything_that_happens(queue: None) -> None:
    """An incomplete group, a failed reward and its sibling, padding, two domains; leave-one-out while cold."""
    rows = {
        "a_0_0": {"reward": 1.0, "length": 2},
        "b_0_0": {"reward": math.nan},
        "pad_0_0": {"reward": 0.0, "length": 1},
        "a_1_0": {"reward": 0.0},
        "c_0_0": {"reward": 1.0, "source": "code"},
        "b_1_0": {"reward": 1.0},
        "d_0_0": {"reward": 0.0, "source": "code"},
        "d_1_0": {"reward": 0.0, "source": "code"},
    }
    trainer, metrics = trainer_of(), {}
    batch = trainer._compute_advantage(put_batch(rows), metrics)

    advantages = stored(batch, "advantages")
    assert advantages["a_0_0"] == [1.0, 1.0]
    assert advantages["a_1_0"] == [-1.0] * 3
    assert advantages["b_0_0"] == [0.0] * 3
    # The other prompts' mean, weighted with squared scores, here one for each token: a_0 has two, others three.
    assert advantages["b_1_0"] == pytest.approx([1 - 5 / 14] * 3), "a 1 0, c 1, d 0 0"
    assert advantages["c_0_0"] == pytest.approx([1 - 5 / 14] * 3), "a 1 0, b 1, d 0 0"
    assert advantages["pad_0_0"] == [0.0]
    assert stored(batch, "loss_mask") == {key: [int(key != "b_0_0")] * len(advantages[key]) for key in rows}
    assert stored(batch, "response_mask")["b_0_0"] == [0, 0, 0]
    left_out = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if tag["is_padding"]]
    assert left_out == ["b_0_0", "pad_0_0"]

    assert metrics["poise/failed"] == 1
    assert metrics["poise/reward_mean"] == pytest.approx(3 / 6)
    assert metrics["poise/buffer_rows"] == 4
    assert metrics["poise/capture_seconds"] == len(rows) / 8
    assert {key: len(buffer) for key, buffer in trainer.estimator.buffers.items()} == {
        domain_id("math"): 2,
        domain_id("code"): 2,
    }
    assert trainer.dumped["a_0_0"] == {"prediction": None, "baseline": 0.0, "advantage": 1.0}


def test_the_probe_credits_with_the_siblings_prediction(queue: None) -> None:
    trainer = trainer_of("poise.cold_start_rows=8", "poise.probe.alpha=1e-6", "poise.probe.clip=[0,1]", STATES_ALONE)
    lesson = {f"p{i}_{j}_0": {"reward": i / 8, "state": i / 8} for i in range(8) for j in range(2)}
    trainer._compute_advantage(put_batch(lesson), {})
    metrics: dict[str, Any] = {}
    # The siblings' states differ: each baseline must come from the other one's.
    batch = put_batch({"q_0_0": {"reward": 1.0, "state": 0.25}, "q_1_0": {"reward": 0.0, "state": 0.75}})
    batch = trainer._compute_advantage(batch, metrics)
    assert stored(batch, "advantages")["q_0_0"] == pytest.approx([1 - 0.75] * 3, abs=1e-3)
    assert stored(batch, "advantages")["q_1_0"] == pytest.approx([0 - 0.25] * 3, abs=1e-3)
    assert metrics["poise/probe_share"] == 1


def test_four_rollouts_a_prompt(queue: None) -> None:
    """Cold: the mean of the other rewards that exist; warm: the mean of the other three's predictions."""
    trainer = trainer_of("poise.cold_start_rows=11", "poise.probe.alpha=1e-6", "poise.probe.clip=[0,1]", STATES_ALONE)
    rewards = [1.0, 0.0, 1.0, math.nan]
    cold = put_batch({f"r_{j}_0": {"reward": reward} for j, reward in enumerate(rewards)})
    advantages = stored(trainer._compute_advantage(cold, {}), "advantages")
    assert [advantages[f"r_{j}_0"][0] for j in range(4)] == [1 - 1 / 2, 0 - 1, 1 - 1 / 2, 0]
    lesson = {f"p{i}_{j}_0": {"reward": i / 8, "state": i / 8} for i in range(8) for j in range(2)}
    trainer.estimator.buffers.clear()
    trainer._compute_advantage(put_batch(lesson), {})
    states = [0.125, 0.25, 0.5, 0.75]
    warm = put_batch({f"q_{j}_0": {"reward": 1.0, "state": state} for j, state in enumerate(states)})
    advantages = stored(trainer._compute_advantage(warm, {}), "advantages")
    expected = [1 - (sum(states) - own) / 3 for own in states]
    assert [advantages[f"q_{j}_0"][0] for j in range(4)] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("mode", "divisor"), [("token-mean", 1), ("seq-mean-token-mean", 9)])
def test_the_fit_weighs_rollouts_by_their_squared_scores(queue: None, mode: str, divisor: int) -> None:
    aggregation = f"actor_rollout_ref.actor.loss_agg_mode={mode}"
    trainer = trainer_of("poise.probe.weights=score", aggregation, "poise.cold_start_rows=4")
    rows = {f"w{i}_{j}_0": {"reward": float(j), "log_p": -0.5 * (i + j)} for i in range(2) for j in range(2)}
    trainer._compute_advantage(put_batch(rows), {})
    (buffer,) = trainer.estimator.buffers.values()
    # A pair counts with the score of the sibling whose reward is its target: three tokens of that probability. w0_0 was
    # certain, so its reward says nothing of the gradient, and w0_1's pair stays out.
    expected = [3 * (1 - math.exp(-0.5 * score)) ** 2 / divisor for score in (1, 2, 1)]
    assert buffer.pairs is not None
    assert buffer.pairs.target_weights_B.tolist() == pytest.approx(expected, rel=1e-5)
    # What the probe sees is the rollout's own score, whole.
    own = [3 * (1 - math.exp(-0.5 * score)) ** 2 for score in (0, 1, 2)]
    assert buffer.pairs.features.squared_score_B is not None
    assert buffer.pairs.features.squared_score_B.tolist() == pytest.approx(own, rel=1e-5)


def test_whether_a_loss_divides_by_length_is_known_of_each_of_verls() -> None:
    """Of a rollout of eight tokens and one of two: a token of the longer one counts a quarter, or as much."""
    settings = ("ppo_micro_batch_size_per_gpu=1", "policy_loss.dro_beta=0.1")
    trainer = trainer_of(*(f"actor_rollout_ref.actor.{setting}" for setting in settings))
    actor, mask_BT = trainer.config.actor_rollout_ref.actor, torch.tensor([[1] * 8, [1, 1] + [0] * 6])
    for loss, mode in product(POLICY_LOSS_REGISTRY, ("token-mean", "seq-mean-token-mean")):
        actor.policy_loss.loss_mode, actor.loss_agg_mode = loss, mode
        log_probs_BT = torch.full((2, 8), -1.0, requires_grad=True)
        config = omega_conf_to_dataclass(actor)
        value, _ = POLICY_LOSS_REGISTRY[loss](
            log_probs_BT.detach(), log_probs_BT, mask_BT.float(), mask_BT, loss_agg_mode=mode, config=config
        )
        value.backward()
        assert log_probs_BT.grad is not None
        longer, shorter = log_probs_BT.grad[:, 0].tolist()
        assert longer / shorter == pytest.approx(1 / 4 if trainer._by_length else 1), (loss, mode)


def test_kl_in_the_reward_is_part_of_what_is_credited(queue: None) -> None:
    trainer = trainer_of("algorithm.use_kl_in_reward=True", "algorithm.kl_ctrl.kl_coef=0.1")
    rows = {"k_0_0": {"reward": 1.0, "kl": 2.0}, "k_1_0": {"reward": 0.5}}
    batch = trainer._compute_advantage(put_batch(rows), {})
    # k_0's return is 1 - 3 tokens * 0.1 * 2 = 0.4.
    assert stored(batch, "advantages")["k_0_0"] == pytest.approx([0.4 - 0.5] * 3)
    assert stored(batch, "advantages")["k_1_0"] == pytest.approx([0.5 - 0.4] * 3)


def test_a_step_in_which_every_reward_failed_learns_nothing(queue: None) -> None:
    trainer, metrics = trainer_of(), {}
    rows = {f"f_{rollout}_0": {"reward": math.nan} for rollout in range(2)}
    batch = trainer._compute_advantage(put_batch(rows), metrics)
    assert stored(batch, "loss_mask") == {key: [0, 0, 0] for key in rows}
    assert stored(batch, "advantages") == {key: [0.0] * 3 for key in rows}
    assert metrics["poise/failed"] == 2
    assert metrics["poise/buffer_rows"] == 0


def test_the_request_travels_with_the_old_log_prob_call_only(queue: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def log_prob(self: Any, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        seen.append(dict(batch.extra_info))
        return batch

    monkeypatch.setattr(PPOTrainerSync, "_compute_old_log_prob", log_prob)
    batch = KVBatchMeta(partition_id="train", keys=["a_0_0"], tags=[{}])
    assert trainer_of()._compute_old_log_prob(batch, {}).extra_info == {}
    assert trainer_of("poise.baseline=leave-one-out")._compute_old_log_prob(batch, {}).extra_info == {}
    assert [list(info) for info in seen] == [["poise_request"], []]


def test_checkpoint_and_resume(queue: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pointer = tmp_path / "latest_checkpointed_iteration.txt"

    def save(self: Any) -> None:
        assert (tmp_path / f"global_step_{self.global_steps}" / "poise.safetensors").is_file(), "the pointer moves last"
        pointer.write_text(str(self.global_steps))

    def load(self: Any) -> None:
        self.global_steps = int(pointer.read_text())

    monkeypatch.setattr(PPOTrainerSync, "_save_checkpoint", save)
    monkeypatch.setattr(PPOTrainerSync, "_load_checkpoint", load)
    local = f"trainer.default_local_dir={tmp_path}"
    trainer = trainer_of(local, "poise.cold_start_rows=8")
    lesson = {f"s{i}_{j}_0": {"reward": i / 8, "state": float(i)} for i in range(8) for j in range(2)}
    trainer._compute_advantage(put_batch(lesson), {})
    (tmp_path / "global_step_1" / "actor").mkdir(parents=True)
    trainer._save_checkpoint()

    resumed = trainer_of(local, "poise.cold_start_rows=8")
    resumed._load_checkpoint()
    question = {"t_0_0": {"reward": 1.0, "state": 3.0}, "t_1_0": {"reward": 0.0, "state": 5.0}}
    expected = stored(trainer._compute_advantage(put_batch(question), {}), "advantages")
    assert stored(resumed._compute_advantage(put_batch(question), {}), "advantages") == expected

    with pytest.raises(StateMismatchError, match="capacity: saved 4096, now 2048"):
        trainer_of(local, "poise.cold_start_rows=8", "poise.capacity=2048")._load_checkpoint()
    other = trainer_of(local, "poise.cold_start_rows=8")
    moved = StateSpec(2, 3, 3)
    other.estimator = ValueEstimator(other.settings.estimator, moved.identity(depth=4))
    with pytest.raises(StateMismatchError, match="reasoning_layer: saved 2, now 3"):
        other._load_checkpoint()

    fewer = trainer_of(local, "poise.cold_start_rows=8")
    features = {**fewer.spec.identity(depth=4), "features": ["prompt", "reasoning"]}
    fewer.estimator = ValueEstimator(fewer.settings.estimator, features)
    with pytest.raises(StateMismatchError, match=r"features: saved \['prompt', 'reasoning', 'entropy'\], now"):
        fewer._load_checkpoint()
    with pytest.raises(StateMismatchError, match=r"probe\.\w+: saved"):
        trainer_of(local, "poise.cold_start_rows=8", STATES_ALONE)._load_checkpoint()

    # verl prunes old policies; the probe of a pruned one goes too.
    (tmp_path / "global_step_1" / "actor").rmdir()
    trainer.global_steps = 2
    (tmp_path / "global_step_2" / "actor").mkdir(parents=True)
    trainer._save_checkpoint()
    assert sorted(path.parent.name for path in tmp_path.glob("*/poise.safetensors")) == ["global_step_2"]

    # On a node without a rank of the policy no folder holds one, and none is a pruned one.
    trainer.global_steps = 3
    (tmp_path / "global_step_2" / "actor").rmdir()
    trainer._save_checkpoint()
    kept = sorted(path.parent.name for path in tmp_path.glob("*/poise.safetensors"))
    assert kept == ["global_step_2", "global_step_3"]

    (tmp_path / "global_step_3" / "poise.safetensors").unlink()
    trainer.global_steps = 2
    (tmp_path / "global_step_2" / "poise.safetensors").unlink()
    with pytest.raises(StateMismatchError, match=r"holds no poise.safetensors.*poise.allow_fresh_probe=True"):
        trainer_of(local)._load_checkpoint()
    trainer_of(local, "poise.allow_fresh_probe=True")._load_checkpoint()


@pytest.mark.parametrize("baseline", ["auto", "prompt-probe"])
def test_the_other_readers_of_states_resume_exactly(queue: None, tmp_path: Path, baseline: str) -> None:
    chosen = (f"poise.baseline={baseline}", "poise.probe.alpha=null", "poise.cold_start_rows=8", STATES_ALONE)
    trainer, metrics = trainer_of(*chosen), {}

    def lesson(step: int) -> KVBatchMeta:
        share = {(i, j): (i + j * step) % 8 / 8 for i in range(8) for j in range(2)}
        return put_batch({f"l{i}_{j}_0": {"reward": i / 8, "state": share[i, j]} for i, j in share})

    for step in range(3):
        trainer._compute_advantage(lesson(step), metrics)
    assert metrics["poise/alpha"] in (1.0, 10.0, 100.0, 1000.0, 10000.0)
    shares = [value for name, value in metrics.items() if name.startswith("poise/mix_")]
    assert shares == [] if baseline == "prompt-probe" else sum(shares) == pytest.approx(1.0)
    save_state(tmp_path / "poise.safetensors", trainer.estimator.state_dict())
    resumed = trainer_of(*chosen)
    resumed.estimator.load_state_dict(load_state(tmp_path / "poise.safetensors"))
    expected = stored(trainer._compute_advantage(lesson(3), {}), "advantages")
    assert stored(resumed._compute_advantage(lesson(3), {}), "advantages") == expected
    assert len({row[0] for row in expected.values()}) > 8


def test_what_the_driver_refuses_reaches_the_user_as_one_sentence(
    queue: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A layer that the model lacks, or a changed one on resuming, is noticed in Ray's driver actor."""

    @ray.remote
    def driver() -> None:
        raise StateMismatchError("reasoning_layer: saved 2, now 3")

    monkeypatch.setattr(launch, "train", lambda config: ray.get(driver.remote()))
    with pytest.raises(SystemExit, match="2"):
        launch.run(compose())
    assert capsys.readouterr().err == "poise-verl: reasoning_layer: saved 2, now 3\n"


def test_dumps_are_json_where_a_verification_failed(tmp_path: Path) -> None:
    """Of rollouts, and of validation, where verl adds what the reward function returned."""
    trainer, nan = trainer_of(), math.nan
    returned = {"reward": [nan, 1.0], "score": [nan, 1.0], "acc": [nan, 1.0], "failure": ["time-out", ""]}
    for folder, columns in (("rollouts", {}), ("validation", returned)):
        trainer._init_dump_executor()
        uids = {"uid": ["u_0_0", "v_0_0"]}
        trainer._dump_generations(["q"] * 2, ["a"] * 2, ["1"] * 2, [nan, 1.0], columns | uids, str(tmp_path / folder))
        trainer._shutdown_dump_executor()
        lines = (tmp_path / folder / "1.jsonl").read_text().splitlines()
        failed, right = (json.loads(line, parse_constant=pytest.fail) for line in lines)
        assert (failed["score"], right["score"]) == (None, 1.0)
        assert failed.get("acc") is None


def test_validation_means_leave_failures_out(queue: None) -> None:
    """Prompt u: 1 and a failure; v: a failure alone; w: a rollout that never came back, which verl counts as 0."""
    nan = math.nan
    rewards = {"reward": [1.0, nan, nan, 1.0], "acc": [1.0, nan, nan, 1.0], "failure": ["", "time-out", "time-out", ""]}
    expected = {("math", "u"): 2, ("math", "v"): 1, ("math", "w"): 2}
    metrics = trainer_of()._val_metrics_update(["math"] * 4, ["u", "u", "v", "w"], rewards, [2] * 4, expected)
    assert metrics["val-core/math/acc/mean@2"] == 0.5, "of w; u has one verified rollout"
    assert metrics["val-aux/math/acc/mean@1"] == 1.0, "of u"
    assert metrics["val-aux/math/reward/mean@1"] == 1.0
    assert metrics["poise/validation_failed"] == 2
    assert expected["math", "u"] == 2, "verl's own counts are left alone"
