"""ValueEstimator: the one object an engine holds. `credit` a batch, train on it, then `update` the probe.

    rewards, features --credit--> baselines, advantages (fixed) --> policy update
                           \\------ Credit -----update-----> buffer, refit --> the next step's probe

The order is what keeps the gradient unbiased: the probe that scores a batch has never seen that batch's rewards.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from poise.core import baselines as bl
from poise.core.buffer import CrossedPairs, RollingBuffer
from poise.core.diagnostics import prediction_metrics, variance_ratio
from poise.core.features import Features
from poise.core.probe import Probe, ProbeConfig, fit_probe
from poise.core.rollouts import Credit, Grouping, Rollouts
from poise.core.scores import known_weights
from poise.core.tracker import Tracker, TrackerConfig
from poise.core.trees import flatten, map_tensors, restore
from poise.errors import ConfigError, StateMismatchError

SHARED = 0  # key of the probe fitted on all domains' rows


@dataclass(frozen=True)
class EstimatorConfig:
    """What credits the rollouts.

    Args:
        baseline: "probe" (POISE), "leave-one-out" (RLOO), "shrinkage" (James-Stein), "tracker" (SPO), "critic" (PPO;
            the engine holds it), "group-mean" (GRPO) or "none" (REINFORCE).
        probe: how the probe is fitted.
        capacity: rows kept per domain.
        cold_start_rows: rows that a probe must have been fitted on before it is used; leave-one-out until then.
        cold_start_steps: updates that must have been made before any probe is used.
        tracker: how a prompt's value is remembered, with baseline "tracker".

    Source: capacity 4096 and a cold start of 16 leave-one-out steps are the published values. Deviates from the paper:
    the default cold start counts rows, since a step may hold 32 rollouts or 2,000.
    """

    baseline: bl.BaselineName = "probe"
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    capacity: int = 4096
    cold_start_rows: int = 256
    cold_start_steps: int = 0
    tracker: TrackerConfig = field(default_factory=TrackerConfig)

    def __post_init__(self) -> None:
        if self.baseline not in bl.BASELINES:
            raise ConfigError(f"unknown baseline {self.baseline!r}; choose one of {', '.join(bl.BASELINES)}")
        if not 1 <= self.cold_start_rows <= self.capacity:
            raise ConfigError(
                f"cold_start_rows={self.cold_start_rows} must lie between 1 and the buffer's capacity={self.capacity}, "
                "or the probe would never be used"
            )


class ValueEstimator:
    """Probe(s), buffer(s) and cold start of one training run.

    Args:
        config: which baseline, which probe.
        identity: what the features are (layers, window, ...), as JSON values; saved, and compared on load.
        is_main: whether this process fits the probes; the others receive them.
        broadcast: hands the main process's object to every process (identity in a single one). All processes must
            call `update` with the same rows.
    """

    def __init__(
        self,
        config: EstimatorConfig,
        identity: Mapping[str, Any] | None = None,
        *,
        is_main: bool = True,
        broadcast: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        self.config = config
        self.identity: dict[str, Any] = _json({**(identity or {}), **asdict(config)})
        self.buffers: dict[int, RollingBuffer[CrossedPairs]] = {}
        self.probes: dict[int, Probe] = {}
        self.fitted_rows: dict[int, int] = {}
        self.tracker = Tracker.start(config.tracker)
        self.version = 0
        self._is_main, self._broadcast = is_main, broadcast
        self._predict_seconds = 0.0

    # --- credit -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def credit(self, rollouts: Rollouts) -> Credit:
        """Baselines and advantages of a batch, from siblings, with the probe as it stands.

        Rollouts whose reward failed leave the update (advantage 0, `used_B` False). Where the configured baseline does
        not exist for a rollout (cold probe, failed sibling), the next valid one serves: leave-one-out, then the mean
        reward of the other prompts. None of them depends on the rollout itself.

        Raises:
            ConfigError: the baseline needs what the rollouts do not carry: features, scores or prompt ids.
        """
        self._refuse_incomplete(rollouts)
        began = time.perf_counter()
        rewards_B = rollouts.rewards_B.float()
        rewards_B = torch.where(rewards_B.isfinite(), rewards_B, torch.nan)
        domains_B = rollouts.domains_B if rollouts.domains_B is not None else torch.zeros_like(rollouts.groups_B)
        weights_B = self._weights_of(rollouts)
        features = replace(rollouts.features, reward_B=rewards_B) if rollouts.features is not None else None
        predictions_B = self._predictions(rollouts, features, domains_B)
        grouping = Grouping.of(rollouts.groups_B)
        rewards_PG, predictions_PG = grouping.pack(rewards_B), grouping.pack(predictions_B)
        chosen_PG = bl.BASELINES[self.config.baseline](rewards_PG, predictions_PG)
        baselines_PG = bl.first_known(chosen_PG, bl.mean_of_others(rewards_PG), bl.other_prompts(rewards_PG))
        weights_PG = grouping.pack(weights_B)
        verified_PG = torch.where(rewards_PG.isnan(), torch.nan, weights_PG)
        baselines_B = grouping.unpack(baselines_PG)
        self._predict_seconds += time.perf_counter() - began
        return Credit(
            rewards_B=rewards_B,
            groups_B=rollouts.groups_B,
            domains_B=domains_B,
            predictions_B=predictions_B,
            baselines_B=baselines_B,
            advantages_B=(rewards_B - baselines_B).nan_to_num(0.0),
            targets_B=grouping.unpack(bl.mean_of_others(rewards_PG, weights_PG)),
            target_weights_B=grouping.unpack(bl.mean_of_others(verified_PG)),
            weights_B=weights_B,
            from_probe_B=grouping.unpack(~chosen_PG.isnan()) & (self.config.baseline == "probe"),
            features=features,
            version=self.version,
            prompts_B=rollouts.prompts_B,
        )

    def _predictions(self, rollouts: Rollouts, features: Features | None, domains_B: Tensor) -> Tensor:
        """What is predicted before any reward of the batch is seen, by probe, tracker or critic."""
        if self.config.baseline == "critic":
            assert rollouts.values_B is not None
            return rollouts.values_B.float()
        if self.config.baseline == "tracker":
            assert rollouts.prompts_B is not None
            return self.tracker.predict(rollouts.prompts_B)
        return self.predict(features, domains_B)

    def _refuse_incomplete(self, rollouts: Rollouts) -> None:
        if self.config.baseline == "tracker" and rollouts.prompts_B is None:
            raise ConfigError("baseline='tracker' needs the prompts' ids, and these rollouts carry none")
        if self.config.baseline == "critic" and rollouts.values_B is None:
            raise ConfigError("baseline='critic' needs the critic's values, and these rollouts carry none")
        if self.config.baseline != "probe":
            return
        if rollouts.features is None:
            raise ConfigError("baseline='probe' needs features, and these rollouts carry none")
        if self.config.probe.weights == "score" and rollouts.weights_B is None:
            raise ConfigError("a probe with weights='score' needs the rollouts' squared scores, and these carry none")

    def _weights_of(self, rollouts: Rollouts) -> Tensor:
        if self.config.probe.weights == "none" or rollouts.weights_B is None:
            return torch.ones_like(rollouts.rewards_B, dtype=torch.float32)
        return known_weights(rollouts.weights_B.float())

    def predict(self, features: Features | None, domains_B: Tensor) -> Tensor:
        """g(z_i) for each rollout from its own features: its domain's probe, else the shared one, else NaN (cold)."""
        predictions_B = torch.full_like(domains_B, torch.nan, dtype=torch.float32)
        if features is None or self.version < self.config.cold_start_steps:
            return predictions_B
        for domain in domains_B.unique().tolist():
            probe = self._warm(domain) or self._warm(SHARED)
            rows_B = domains_B == domain
            if probe is not None:
                predictions_B[rows_B] = probe.predict(features.select(rows_B)).to(predictions_B)
        return predictions_B

    def _warm(self, domain: int) -> Probe | None:
        is_warm = self.fitted_rows.get(domain, 0) >= self.config.cold_start_rows
        return self.probes.get(domain) if is_warm else None

    # --- update -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update(self, credit: Credit) -> dict[str, float]:
        """Learn from a credited batch: add its crossed pairs to the buffers and refit the probes.

        Args:
            credit: what `credit` returned (several parts of one step joined by `Credit.cat`), the same on all ranks.

        Returns:
            The step's metrics, by name.

        Raises:
            ConfigError: the batch was credited by an older probe; each batch updates exactly once.
        """
        if credit.version != self.version:
            raise ConfigError(
                f"this batch was credited at probe version {credit.version}, the estimator is at {self.version}; "
                "credit a batch, then update with it once"
            )
        metrics = credit_metrics(credit)
        if self.config.baseline == "probe":
            metrics |= probe_metrics(credit)
        began = time.perf_counter()
        if self.config.baseline == "probe":
            self._refit(self._remember(credit))
            rows = sum(len(buffer) for buffer in self.buffers.values())
            metrics |= {"buffer_rows": float(rows), "fit_seconds": time.perf_counter() - began}
        if self.config.baseline in ("tracker", "critic"):
            metrics |= value_metrics(credit)
        if self.config.baseline == "tracker":
            assert credit.prompts_B is not None
            self.tracker = self.tracker.updated(credit.prompts_B, credit.rewards_B, self.config.tracker)
            metrics["tracked_prompts"] = float(len(self.tracker.prompts_K))
        metrics["predict_seconds"], self._predict_seconds = self._predict_seconds, 0.0
        self.version += 1
        return metrics

    def _remember(self, credit: Credit) -> list[int]:
        """Add the usable pairs to their domains' buffers; returns the domains that grew."""
        assert credit.features is not None
        usable_B = credit.features.present_B & credit.targets_B.isfinite() & credit.rewards_B.isfinite()
        grown: list[int] = []
        for domain in credit.domains_B[usable_B].unique().tolist():
            rows_B = usable_B & (credit.domains_B == domain)
            buffer = self.buffers.setdefault(domain, RollingBuffer(self.config.capacity))
            buffer.append(
                CrossedPairs(
                    credit.features.select(rows_B),
                    credit.targets_B[rows_B],
                    credit.target_weights_B[rows_B],
                    credit.weights_B[rows_B],
                    credit.groups_B[rows_B],
                )
            )
            grown.append(domain)
        return grown

    def _refit(self, grown: list[int]) -> None:
        """Refit the probes whose rows changed: each grown domain's own, and the shared one while it is needed."""
        sizes = [len(buffer) for buffer in self.buffers.values()]
        needs_shared = bool(grown) and (len(sizes) == 1 or min(sizes) < self.config.cold_start_rows)
        keys = ([SHARED] if needs_shared else []) + (grown if len(sizes) > 1 else [])
        for key in dict.fromkeys(keys):
            pairs = self._pairs_of(key)
            if self._is_main:
                weights_B = pairs.target_weights_B if self.config.probe.weights == "score" else None
                probe = fit_probe(pairs.features, pairs.targets_B, self.config.probe, self.probes.get(key), weights_B)
                # The layout that it has when loaded from disk: others multiply to the last bit differently.
                self.probes[key] = map_tensors(probe, torch.Tensor.contiguous)
            self.fitted_rows[key] = len(pairs)
        self.probes = self._broadcast(self.probes)

    def _pairs_of(self, key: int) -> CrossedPairs:
        buffers = self.buffers.values() if key == SHARED else [self.buffers[key]]
        parts = [buffer.pairs for buffer in buffers if buffer.pairs is not None]
        return parts[0] if len(parts) == 1 else CrossedPairs.cat(parts)

    # --- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on: {"tensors": name -> tensor, "meta": JSON values}."""
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Any] = {}
        for key, probe in self.probes.items():
            flatten(probe, f"probe.{key}", tensors, scalars)
        for key, buffer in self.buffers.items():
            if buffer.pairs is not None:
                # A copy: the buffer reuses its memory, and a checkpoint may be written while training goes on.
                flatten(map_tensors(buffer.pairs, torch.clone), f"buffer.{key}", tensors, scalars)
        if self.config.baseline == "tracker":
            flatten(self.tracker, "tracker", tensors, scalars)
        meta = {
            "identity": self.identity,
            "version": self.version,
            "probes": {str(key): rows for key, rows in self.fitted_rows.items()},
            "buffers": {str(key): buffer.groups_seen for key, buffer in self.buffers.items()},
            "scalars": scalars,
        }
        return {"tensors": tensors, "meta": meta}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Continue from `state_dict`, on `device`.

        Raises:
            StateMismatchError: the state was written under another layer, pooling, feature set or configuration;
                the message names each setting with its saved and its present value.
        """
        meta = state["meta"]
        _refuse_mismatch(meta["identity"], self.identity)
        tensors, scalars = map_tensors(dict(state["tensors"]), lambda tensor: tensor.to(device)), meta["scalars"]
        self.version = int(meta["version"])
        self.fitted_rows = {int(key): int(rows) for key, rows in meta["probes"].items()}
        self.probes = {key: restore(Probe, f"probe.{key}", tensors, scalars) for key in self.fitted_rows}
        if self.config.baseline == "tracker":
            self.tracker = map_tensors(restore(Tracker, "tracker", tensors, scalars), torch.Tensor.cpu)
        self.buffers = {}
        for key, groups_seen in meta["buffers"].items():
            buffer = self.buffers[int(key)] = RollingBuffer(self.config.capacity)
            buffer.restore(restore(CrossedPairs, f"buffer.{key}", tensors, scalars), int(groups_seen))


def _refuse_mismatch(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    names = sorted(name for name in {*saved, *present} if saved.get(name) != present.get(name))
    if names:
        listed = "; ".join(f"{name}: saved {saved.get(name)!r}, now {present.get(name)!r}" for name in names)
        raise StateMismatchError(
            f"the saved probe cannot continue under these settings ({listed}); restore the saved values, or start a "
            "new run"
        )


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def credit_metrics(credit: Credit) -> dict[str, float]:
    """What a credited batch says about the variance.

    Names: reward_mean and baseline_mean on the reward's scale; variance_ratio = Var(A)/Var(r); failed = rollouts whose
    reward failed; unused = rollouts that left the update.
    """
    used_B = credit.used_B
    return {
        "reward_mean": float(credit.rewards_B.nanmean()),
        "baseline_mean": float(credit.baselines_B[used_B].mean()),
        "variance_ratio": variance_ratio(credit.advantages_B[used_B], credit.rewards_B[used_B]),
        "failed": float((~credit.rewards_B.isfinite()).sum()),
        "unused": float((~used_B).sum()),
    }


def probe_metrics(credit: Credit) -> dict[str, float]:
    """How good the probe's predictions of this batch are, before it learns from it.

    Names: prediction_mean on the reward's scale, against reward_mean; probe_share = share of the rollouts in the
    update whose baseline is the probe's (0 while it is cold); and those of `prediction_metrics`.
    """
    used_B = credit.used_B
    return {
        "prediction_mean": float(credit.predictions_B.nanmean()),
        "probe_share": float((credit.from_probe_B & used_B).sum()) / max(1, int(used_B.sum())),
        **prediction_metrics(credit.predictions_B, credit.targets_B),
    }


def value_metrics(credit: Credit) -> dict[str, float]:
    """How good the values of the prompts are, against the rewards of the batch that they were made without.

    Names: as in `probe_metrics`. The target is the rollout's own reward, which v(x) knows nothing of.
    """
    return {
        "prediction_mean": float(credit.predictions_B.nanmean()),
        **prediction_metrics(credit.predictions_B, credit.rewards_B),
    }
