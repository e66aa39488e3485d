"""What the adapter takes for granted about verl: a release that changes one of these fails here, with its name."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import pytest
import torch

pytest.importorskip("verl")
import transfer_queue as tq
import verl
from transfer_queue import KVBatchMeta
from verl.experimental.reward_loop.reward_manager.dapo import DAPORewardManager
from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER
from verl.models.transformers import monkey_patch
from verl.trainer import main_ppo
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
from verl.trainer.ppo import core_algos, padding_utils, ray_trainer
from verl.trainer.ppo.metric_utils import process_validation_metrics
from verl.trainer.ppo.utils import Role, need_critic, need_reference_policy
from verl.trainer.ppo.v1 import PPOTrainerSync, agent_loop_tq, get_trainer_cls, trainer_base
from verl.trainer.ppo.v1.replay_buffer import FILTER_GROUPS_REWARD_METRIC, ReplayBuffer
from verl.utils.config import validate_config
from verl.utils.device import auto_set_device
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine, FSDPEngineWithLMHead
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from poise.verl import refusals
from poise.verl.engine import CapturingFSDPEngine
from poise.verl.runner import PoiseTaskRunner
from poise.verl.trainer import TRAINER, PoiseTrainer
from poise.verl.worker import CapturingActorRolloutRefWorker, CapturingTrainingWorker, _engine_of

pytestmark = pytest.mark.verl


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_version() -> None:
    assert verl.__version__ == "0.9.1"


OWNERS = {
    CapturingFSDPEngine: FSDPEngineWithLMHead,
    CapturingTrainingWorker: TrainingWorker,
    CapturingActorRolloutRefWorker: ActorRolloutRefWorker,
    PoiseTrainer: PPOTrainerSync,
    PoiseTaskRunner: TaskRunnerV1.__ray_metadata__.modified_class,
}
OVERRIDDEN = [
    (FSDPEngineWithLMHead, "forward_step", ["self", "micro_batch", "loss_function", "forward_only"]),
    (FSDPEngine, "_get_packed_pad_size", ["self", "packed_length"]),
    (TrainingWorker, "__init__", ["self", "config"]),
    (PPOTrainerSync, "__init__", ["self", "config"]),
    (PPOTrainerSync, "_init_tokenizer", ["self"]),
    (PPOTrainerSync, "_init_resource_pool_mgr", ["self"]),
    (PPOTrainerSync, "_compute_old_log_prob", ["self", "batch", "metrics"]),
    (PPOTrainerSync, "_compute_advantage", ["self", "batch", "metrics"]),
    (PPOTrainerSync, "_save_checkpoint", ["self"]),
    (PPOTrainerSync, "_load_checkpoint", ["self"]),
    (
        PPOTrainerSync,
        "_dump_generations",
        ["self", "inputs", "outputs", "gts", "scores", "reward_extra_infos_dict", "dump_path"],
    ),
    (
        PPOTrainerSync,
        "_val_metrics_update",
        ["self", "data_sources", "sample_uids", "reward_extra_infos_dict", "sample_turns", "expected_acc_counts"],
    ),
    (TaskRunnerV1.__ray_metadata__.modified_class, "run", ["self", "config"]),
]


@pytest.mark.parametrize(
    ("owner", "name", "expected"), OVERRIDDEN, ids=lambda value: value if isinstance(value, str) else None
)
def test_overridden_method(owner: type, name: str, expected: list[str]) -> None:
    # Ray adds a parameter of its own to the methods of its actors.
    assert [name for name in parameters(getattr(owner, name)) if not name.startswith("_ray")] == expected


@pytest.mark.parametrize("ours", OWNERS, ids=lambda ours: ours.__name__)
def test_every_overridden_method_is_listed_above(ours: type) -> None:
    theirs = OWNERS[ours]
    overridden = {name for name, value in vars(ours).items() if inspect.isfunction(value) and hasattr(theirs, name)}
    assert overridden <= {name for owner, name, _ in OVERRIDDEN if owner is theirs}


@pytest.mark.parametrize(
    "name", ["use_ulysses_sp", "ulysses_parallel_group", "ulysses_sequence_parallel_size", "use_remove_padding"]
)
def test_engine_attribute(name: str) -> None:
    assert f"self.{name} =" in inspect.getsource(FSDPEngine)


@pytest.mark.parametrize("backend", ["fsdp", "fsdp2"])
def test_the_engine_is_ours_where_the_worker_builds_it_and_verls_elsewhere(backend: str) -> None:
    with _engine_of("poise"):
        assert EngineRegistry.get_engine_cls("language_model", backend) is CapturingFSDPEngine
    assert EngineRegistry.get_engine_cls("language_model", backend) is FSDPEngineWithLMHead


def test_the_actor_worker_names_its_training_worker() -> None:
    assert ActorRolloutRefWorker.actor_worker_cls is TrainingWorker
    assert CapturingActorRolloutRefWorker.actor_worker_cls is CapturingTrainingWorker
    assert CapturingActorRolloutRefWorker.ref_worker_cls is TrainingWorker
    assert "self.actor_worker_cls(" in inspect.getsource(ActorRolloutRefWorker.init_model)


def test_the_trainer_keeps_its_workers_classes_where_we_look() -> None:
    source = inspect.getsource(PPOTrainerSync._init_resource_pool_mgr)
    assert "self.role_worker_mapping[role] = ray.remote(ActorRolloutRefWorker)" in source
    assert {"Actor", "ActorRollout", "ActorRolloutRef"} <= set(Role.__members__)


def test_fused_kernels_that_return_entropies() -> None:
    """Any other backend leaves the model as it is, and then the engine finds no entropy."""
    listed = re.search(r"fused_kernels_backend not in (\[.*?\])", inspect.getsource(monkey_patch))
    assert listed is not None
    assert set(ast.literal_eval(listed[1])) == set(refusals._FUSED_WITH_ENTROPY)


def test_reward_managers_that_add_nothing_to_the_score() -> None:
    """Group filtering by a reward function's own numbers is allowed under these."""
    adding = {name for name, owner in REWARD_MANAGER.items() if "reward +=" in inspect.getsource(owner.run_single)}
    assert adding == {"dapo"}
    assert 'config.reward.get("reward_kwargs", {}).get("overlong_buffer_cfg"' in inspect.getsource(DAPORewardManager)
    assert set(REWARD_MANAGER) - adding == set(refusals._PLAIN_MANAGERS)


def test_groups_are_filtered_by_the_reward_before_the_kl_penalty() -> None:
    source = inspect.getsource(ReplayBuffer._dapo_filtered_keys)
    assert 'select_fields=["rm_scores"] if use_canonical_reward else ["extra_fields"]' in source
    assert FILTER_GROUPS_REWARD_METRIC == "reward"


def test_dumped_rollouts_carry_the_batchs_keys() -> None:
    assert '"uid"' in inspect.getsource(PPOTrainerSync._log_rollout_data)


def test_registries() -> None:
    assert get_trainer_cls(TRAINER) is PoiseTrainer
    assert core_algos.get_adv_estimator_fn("poise").__module__ == "poise.verl.trainer"
    assert issubclass(PoiseTaskRunner, TaskRunnerV1.__ray_metadata__.modified_class)
    assert parameters(run_ppo) == ["config", "task_runner_class"]


def test_an_estimator_gets_rewards_and_mask_by_name() -> None:
    source = inspect.getsource(ray_trainer.compute_advantage)
    assert '"token_level_rewards": data.batch["token_level_rewards"]' in source
    assert '"response_mask": data.batch["response_mask"]' in source
    assert source.rstrip().endswith("return data")


def test_rows_are_named_by_prompt_rollout_and_output() -> None:
    assert 'f"{uid}_{session_id}_{i}"' in inspect.getsource(agent_loop_tq)


def test_padding_rows_are_tagged_and_metrics_leave_tagged_rows_out() -> None:
    assert "is_padding=True" in inspect.getsource(padding_utils)
    assert 'not tag.get("is_padding", False)' in inspect.getsource(PPOTrainerSync._compute_metrics)


def test_the_latest_pointer_moves_after_everything_else() -> None:
    source = inspect.getsource(PPOTrainerSync._save_checkpoint)
    assert source.index("latest_checkpointed_iteration.txt") > source.index("torch.save(")
    assert source.index("torch.save(") > source.index("actor_rollout_wg.save_checkpoint(")


def test_the_loss_counts_tokens_of_the_mask_that_we_silence() -> None:
    assert 'data["loss_mask"].sum()' in inspect.getsource(FSDPEngine.forward_backward_batch)


def test_means_over_sequences_count_the_rollouts_that_we_silence() -> None:
    """As docs/architecture.md says: the divisor is what a mini-batch was to hold."""
    source = inspect.getsource(PPOTrainerSync._update_actor)
    assert '"global_batch_size": ppo_mini_batch_size' in source
    losses_BT, mask_BT = torch.ones(4, 3), torch.tensor([[1] * 3] * 2 + [[0] * 3] * 2)
    for mode in ("seq-mean-token-mean", "seq-mean-token-sum-norm"):
        assert core_algos.agg_loss(losses_BT, mask_BT, mode, global_batch_size=4) == 2 / 4


def test_the_driver_writes_old_log_probs_after_the_workers_answer() -> None:
    source = inspect.getsource(PPOTrainerSync._compute_old_log_prob)
    assert source.count("self.actor_rollout_wg.compute_log_prob(batch)") == 1
    assert '"calculate_entropy": True' in source


def test_validation_counts_what_is_missing_by_source_and_prompt() -> None:
    assert "expected_acc_counts[(str(data_source), str(uid))]" in inspect.getsource(PPOTrainerSync._validate)
    assert "expected_acc_counts.items()" in inspect.getsource(process_validation_metrics)


def test_the_launcher_does_what_verls_own_does() -> None:
    assert parameters(validate_config) == ["config", "use_reference_policy", "use_critic"]
    assert parameters(auto_set_device) == ["config"]
    assert parameters(need_critic) == parameters(need_reference_policy) == ["config"]
    source = inspect.getsource(main_ppo)
    assert source.index("auto_set_device(config)") < source.index("validate_config(") < source.index("TaskRunnerV1)")


def test_modes_are_told_apart_by_name() -> None:
    assert 'self.trainer_mode != "sync"' in inspect.getsource(trainer_base.PPOTrainer)


def test_transfer_queue() -> None:
    assert {"keys", "partition_id", "select_fields"} <= set(parameters(tq.kv_batch_get))
    assert {"keys", "partition_id", "fields"} <= set(parameters(tq.kv_batch_put))
    assert {"keys", "tags", "partition_id", "extra_info"} <= set(KVBatchMeta.__dataclass_fields__)
