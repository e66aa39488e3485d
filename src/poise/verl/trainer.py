"""The POISE trainer on verl's synchronous v1 trainer: it holds the ValueEstimator, on the driver.

    verl: rollouts -> rewards -> old log-probs -> advantages -> actor update
    here:              capture is asked for ^      ^ credit, then update of the probe

Each method below adds its part to verl's own and calls it; nothing of verl's flow is repeated.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import ray
import torch
import transfer_queue as tq
from omegaconf import open_dict
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.core_algos import register_adv_est
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import HFModelConfig

from poise.core import Credit, Features, StateSpec, ValueEstimator, load_state, save_state, score_weight, squared_score
from poise.errors import StateMismatchError
from poise.verl import engine, refusals
from poise.verl.credit import BatchRows, number_or_none, numbers_or_none, predictions_by_key, unused_rows
from poise.verl.worker import CapturingActorRolloutRefWorker

TRAINER = "poise_sync"
_STATE = "poise.safetensors"
_POLICY_ROLES = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef)
_SOURCE = "data_source"
# Losses of verl 0.9.1 that divide by a rollout's length whatever loss_agg_mode says; gspo is not one of them.
_BY_LENGTH = ("sapo", "geo_mean")

logger = logging.getLogger(__name__)
# The running trainer's credit, while verl computes advantages: verl's estimators are plain functions.
_credit_rows: ContextVar[Callable[[Tensor], Tensor]] = ContextVar("poise_credit_rows")


@register_adv_est(refusals.ESTIMATOR)
def poise_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, config: Any = None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """verl's hook for an advantage estimator: A = r - b on every token that the policy wrote.

    The reward is the sum over tokens, so a KL penalty that verl has put into it is part of what the probe learns.
    """
    advantages_B = _credit_rows.get()(token_level_rewards.sum(-1))
    advantages_BT = advantages_B[:, None].to(token_level_rewards) * response_mask
    return advantages_BT, advantages_BT


@register_trainer(TRAINER)
class PoiseTrainer(PPOTrainerSync):
    """verl's synchronous trainer, with advantages from a ValueEstimator."""

    estimator: ValueEstimator
    spec: StateSpec

    def __init__(self, config: Any) -> None:
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"  # verl compares this name with its own modes
        self.settings = refusals.check(config)
        self.dumped: dict[str, dict[str, float | None]] = {}
        super().__init__(config)

    def _init_tokenizer(self) -> None:
        """Also settle which states are read: it takes the tokenizer and the model's depth."""
        super()._init_tokenizer()
        depth = _depth_of(self.config.actor_rollout_ref.model)
        self.spec = self.settings.states(self.tokenizer, depth)
        config = self.settings.estimator
        identity = self.spec.identity(depth, self._by_length if config.is_weighted else None)
        self.estimator = ValueEstimator(config, identity)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role in _POLICY_ROLES:
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(CapturingActorRolloutRefWorker)

    # --- capture ------------------------------------------------------------------------------------------------

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Ask the workers for states with this forward pass, and with no other."""
        if not self.settings.needs_features:
            return super()._compute_old_log_prob(batch, metrics)
        batch.extra_info[engine.REQUEST] = engine.request_of(self.spec)
        try:
            returned = super()._compute_old_log_prob(batch, metrics)
        finally:
            batch.extra_info.pop(engine.REQUEST)
        returned.extra_info.pop(engine.REQUEST, None)
        return returned

    # --- credit and update --------------------------------------------------------------------------------------

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """verl computes the advantages, with our credit in place of an estimator; then the probe learns."""
        began = time.perf_counter()
        rows = BatchRows.of(batch.keys, batch.tags)
        features_B, sources_B, capture_seconds = self._fetch(batch)
        scores = self._squared_scores(batch) if self.settings.needs_scores else None
        credits: list[Credit] = []

        def credit_rows(rewards_B: Tensor) -> Tensor:
            credits.append(self.estimator.credit(rows.rollouts(rewards_B, features_B, sources_B, scores)))
            return rows.spread(credits[-1].advantages_B, padding=0.0)

        with _crediting(credit_rows):
            batch = super()._compute_advantage(batch, metrics)
        (credit,) = credits
        self._drop(batch, unused_rows(rows, credit))
        self.dumped = predictions_by_key(batch.keys, rows, credit)
        learnt = self.estimator.update(credit)
        learnt |= {"capture_seconds": capture_seconds, "seconds": time.perf_counter() - began}
        metrics.update({f"poise/{name}": value for name, value in learnt.items() if math.isfinite(value)})
        return batch

    def _fetch(self, batch: KVBatchMeta) -> tuple[Features | None, list[Any], float]:
        """Captured features and data source of each row, and the seconds that capture took, all workers together."""
        captured = [engine.PROMPT, engine.REASONING, engine.ENTROPY] if self.settings.needs_features else []
        timed = [engine.SECONDS] if captured else []
        names = [*captured, *timed, _SOURCE]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        features = Features(*(_stacked(data[name]) for name in captured)) if captured else None
        sources = data[_SOURCE]
        seconds = sum(float(_stacked(data[name]).sum()) for name in timed)
        return features, list(sources.tolist() if hasattr(sources, "tolist") else sources), seconds

    def _squared_scores(self, batch: KVBatchMeta) -> tuple[Tensor, Tensor]:
        """Each row's squared score, from its old log-probabilities, and how much it weighs under this loss."""
        names = ["old_log_probs", "response_mask"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        log_probs_BT, mask_BT = (data[name].to_padded_tensor(0) for name in names)
        scores_B = squared_score(log_probs_BT, mask_BT)
        return scores_B, score_weight(scores_B, mask_BT, self._by_length)

    @property
    def _by_length(self) -> bool:
        """Whether the loss divides each rollout's term by its length."""
        actor = self.config.actor_rollout_ref.actor
        return actor.loss_agg_mode == "seq-mean-token-mean" or actor.policy_loss.loss_mode in _BY_LENGTH

    def _drop(self, batch: KVBatchMeta, dropped: list[int]) -> None:
        """Take rows out of the update as verl takes its padding rows out: no token of theirs counts in any loss."""
        if not dropped:
            return
        logger.warning("%d rows without a reward or baseline leave this update", len(dropped))
        keys = [batch.keys[row] for row in dropped]
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["response_mask"])
        silent = torch.nested.as_nested_tensor(
            [torch.zeros_like(mask) for mask in data["response_mask"].unbind()], layout=torch.jagged
        )
        fields = TensorDict({"response_mask": silent, "loss_mask": silent}, batch_size=len(keys))
        tq.kv_batch_put(keys=keys, partition_id=batch.partition_id, fields=fields)
        for row in dropped:
            batch.tags[row]["is_padding"] = True  # so that verl's means over rewards leave the row out too

    # --- logs ---------------------------------------------------------------------------------------------------

    def _dump_generations(
        self, inputs: Any, outputs: Any, gts: Any, scores: Any, reward_extra_infos_dict: Any, dump_path: Any
    ) -> None:
        """Add prediction, baseline and advantage to verl's dump of the rollouts; what is not a number is null."""
        known = [self.dumped.get(key) for key in reward_extra_infos_dict.get("uid", [])]
        if known and None not in known:
            names = ("prediction", "baseline", "advantage")
            credited = {name: [row[name] for row in known] for name in names}
            reward_extra_infos_dict = {**reward_extra_infos_dict, **credited}
        scores = [number_or_none(score) for score in scores]
        # What a reward function returned stands here under its own names, and verl puts its `score` over the scores.
        columns = numbers_or_none(reward_extra_infos_dict)
        super()._dump_generations(inputs, outputs, gts, scores, columns, dump_path)

    def _val_metrics_update(
        self,
        data_sources: Any,
        sample_uids: Any,
        reward_extra_infos_dict: Any,
        sample_turns: Any,
        expected_acc_counts: Any = None,
    ) -> dict[str, float]:
        """Failed rewards are left out of verl's validation means, which would take them for zeros, and counted."""
        cleaned = numbers_or_none(reward_extra_infos_dict)
        failed = [row for row, value in enumerate(cleaned.get("reward", [])) if value is None]
        expected = dict(expected_acc_counts or {})
        for row in failed:
            prompt = str(data_sources[row]), str(sample_uids[row])
            expected[prompt] = expected.get(prompt, 1) - 1
        metrics = super()._val_metrics_update(data_sources, sample_uids, cleaned, sample_turns, expected)
        return {**metrics, "poise/validation_failed": float(len(failed))}

    # --- checkpoints --------------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        """The estimator first: verl's last act is to move its pointer to the new checkpoint."""
        folder = self._folder_of(self.global_steps)
        folder.mkdir(parents=True, exist_ok=True)
        save_state(folder / _STATE, self.estimator.state_dict())
        super()._save_checkpoint()
        if (folder / "actor").is_dir():  # else the workers' disks are not this one, and it tells nothing of theirs
            _prune(folder.parent)

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps == 0:
            return
        trainer = self.config.trainer
        is_named = trainer.resume_mode == "resume_path"
        folder = Path(trainer.resume_from_path) if is_named else self._folder_of(self.global_steps)
        if not (folder / _STATE).exists() and self.settings.allow_fresh_probe:
            logger.warning("%s holds no probe; it starts cold, as poise.allow_fresh_probe says", folder)
            return
        if not (folder / _STATE).exists():
            raise StateMismatchError(
                f"{folder} holds no {_STATE}: it was not written by a POISE run; set poise.allow_fresh_probe=True to "
                "continue from it with a cold probe"
            )
        self.estimator.load_state_dict(load_state(folder / _STATE))

    def _folder_of(self, step: int) -> Path:
        return Path(self.config.trainer.default_local_dir) / f"global_step_{step}"


@contextmanager
def _crediting(credit_rows: Callable[[Tensor], Tensor]) -> Iterator[None]:
    token = _credit_rows.set(credit_rows)
    try:
        yield
    finally:
        _credit_rows.reset(token)


def _stacked(rows: Tensor) -> Tensor:
    """One tensor from TransferQueue's rows, which come back nested even where all are equally long."""
    return (torch.stack(list(rows.unbind())) if rows.is_nested else rows).float()


def _depth_of(model: Any) -> int:
    """Number of blocks of a model's text part."""
    config: HFModelConfig = omega_conf_to_dataclass(model)
    return config.hf_config.get_text_config().num_hidden_layers


def _prune(folder: Path) -> None:
    """Remove the estimator where verl has removed the policy: max_actor_ckpt_to_keep counts for both."""
    for state in folder.glob(f"global_step_*/{_STATE}"):
        if not (state.parent / "actor").is_dir():
            state.unlink()
