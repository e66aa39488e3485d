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
from poise.core.bank import SHARED, ProbeBank
from poise.core.buffer import RollingBuffer
from poise.core.diagnostics import credit_metrics, probe_metrics, value_metrics
from poise.core.features import Features
from poise.core.limits import one_of, whole
from poise.core.mixture import Mixture, Past, combine
from poise.core.probe import Probe, ProbeConfig
from poise.core.rollouts import Credit, Grouping, Rollouts
from poise.core.scores import effective_rows, known_weights
from poise.core.tracker import Tracker, TrackerConfig
from poise.core.trees import flatten, map_tensors, restore
from poise.errors import ConfigError, StateMismatchError

# What baseline "auto" combines; the first serves alone until a batch has been learnt from.
CANDIDATES = ("leave_one_out", "other_prompts", "probe", "prompt_probe")


@dataclass(frozen=True)
class EstimatorConfig:
    """What credits the rollouts.

    Args:
        baseline: "probe" (POISE as published); "prompt-probe" (from the prompt's state alone, for single rollouts);
            "auto" (both and the means, combined as did best on past batches); "leave-one-out" (RLOO); "shrinkage"
            (James-Stein); "tracker" (SPO); "critic" (PPO; the engine holds it); "group-mean" (GRPO); "none"
            (REINFORCE).
        probe: how the probe is fitted.
        capacity: rows kept per domain.
        cold_start_rows: rows that a probe must have been fitted on before it is used; leave-one-out until then. With
            "auto", only the rows from which on a domain has a probe of its own.
        cold_start_steps: updates that must have been made before any probe is used. Not with "auto".
        tracker: how a prompt's value is remembered, with baseline "tracker".

    These defaults are no preset's: `core.presets.with_preset` has what the engines start from.

    Source: capacity 4096 and a cold start of 16 leave-one-out steps are the published values. Deviates from the paper:
    the default cold start counts rows, since a step may hold 32 rollouts or 2,000.
    """

    baseline: bl.BaselineName = "probe"
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    capacity: int = 4096
    cold_start_rows: int = 256
    cold_start_steps: int = 0
    tracker: TrackerConfig = field(default_factory=TrackerConfig)

    @property
    def is_weighted(self) -> bool:
        """Whether there is a probe, and it is fitted with the rollouts' squared scores as weights."""
        return self.baseline in bl.READ_STATES and self.probe.weights == "score"

    def __post_init__(self) -> None:
        one_of("baseline", self.baseline, bl.BASELINES)
        whole("capacity", self.capacity, least=1)
        whole("cold_start_rows", self.cold_start_rows, least=1)
        whole("cold_start_steps", self.cold_start_steps, least=0)
        if self.cold_start_rows > self.capacity:
            raise ConfigError(
                f"cold_start_rows={self.cold_start_rows} must lie between 1 and the buffer's capacity={self.capacity}, "
                "or a domain's own probe would never be used"
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
        with_prompt = config.baseline in ("auto", "prompt-probe")
        self.bank = ProbeBank(config.probe, config.capacity, config.cold_start_rows, with_prompt)
        self.mixture = Mixture(CANDIDATES if config.baseline == "auto" else ())
        self.tracker = Tracker.start(config.tracker)
        self.version = 0
        self._is_main, self._broadcast = is_main, broadcast
        self._predict_seconds = 0.0

    @property
    def probes(self) -> dict[int, Probe]:
        """The probe of each domain, and the shared one under `SHARED`."""
        return self.bank.probes

    @property
    def buffers(self) -> dict[int, RollingBuffer]:
        """The rows that each domain's probe is fitted on."""
        return self.bank.buffers

    @property
    def fitted_rows(self) -> dict[int, int]:
        """How many rows each probe was fitted on; a buffer that had to evict counts as full."""
        return self.bank.fitted_rows

    @property
    def _reads_states(self) -> bool:
        return self.config.baseline in bl.READ_STATES

    # --- credit -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def credit(self, rollouts: Rollouts) -> Credit:
        """Baselines and advantages of a batch, from siblings, with the probe as it stands.

        Rollouts whose reward failed leave the update (advantage 0, `used_B` False). Where the configured baseline does
        not exist for a rollout (cold probe, failed sibling), the next valid one serves: leave-one-out, then the mean
        reward of the other prompts (of earlier batches too, with a baseline that reads states). None of them depends on
        the rollout itself.

        Raises:
            ConfigError: the baseline needs what the rollouts do not carry: features, scores or prompt ids.
        """
        self._refuse_incomplete(rollouts)
        began = time.perf_counter()
        rewards_B = rollouts.rewards_B.float().nan_to_num(torch.nan, torch.nan, torch.nan)
        domains_B = rollouts.domains_B if rollouts.domains_B is not None else torch.zeros_like(rollouts.groups_B)
        weights_B = self._weights_of(rollouts)
        features = self._with_outcome(rollouts, rewards_B)
        predictions_B, prompt_B = self._predictions(rollouts, features, domains_B)
        grouping = Grouping.of(rollouts.groups_B)
        known_4B = torch.stack([rewards_B, weights_B, predictions_B, prompt_B])
        rewards_PG, weights_PG, predictions_PG, prompt_PG = grouping.pack(known_4B)
        earlier_2P = grouping.pack(self.mixture.rewards_for(domains_B).T)[:, :, 0]
        others_PG, candidates_BC = bl.other_prompts(rewards_PG, weights_PG, earlier_2P), None
        if self.config.baseline == "auto":  # in the order of `CANDIDATES`; means are weighted like all that is fitted
            offered = (
                bl.mean_of_others(rewards_PG, weights_PG),
                others_PG,
                bl.cross_rollout(rewards_PG, predictions_PG),
                bl.siblings_or_own(rewards_PG, prompt_PG),
            )
            candidates_BC = torch.stack([grouping.unpack(offer_PG) for offer_PG in offered], dim=1)
            chosen_PG = grouping.pack(combine(candidates_BC, self.mixture.weights_for(domains_B)))
        else:
            chosen_PG = bl.BASELINES[self.config.baseline](rewards_PG, predictions_PG)
        verified_PG = torch.where(rewards_PG.isnan(), torch.nan, weights_PG)
        siblings_PG, target_weights_PG = bl.mean_of_others(torch.stack([rewards_PG, verified_PG]))
        baselines_PG = bl.first_known(chosen_PG, siblings_PG, others_PG, bl.other_prompts(rewards_PG))
        targets_PG = bl.mean_of_others(rewards_PG, weights_PG)
        found_4PG = torch.stack([chosen_PG, baselines_PG, targets_PG, target_weights_PG])
        chosen_B, baselines_B, targets_B, target_weights_B = grouping.unpack(found_4PG)
        self._predict_seconds += time.perf_counter() - began
        return Credit(
            rewards_B=rewards_B,
            groups_B=rollouts.groups_B,
            domains_B=domains_B,
            predictions_B=predictions_B,
            baselines_B=baselines_B,
            advantages_B=(rewards_B - baselines_B).nan_to_num(0.0),
            targets_B=targets_B,
            target_weights_B=target_weights_B,
            weights_B=weights_B,
            from_probe_B=~chosen_B.isnan() & self._reads_states,
            features=features,
            version=self.version,
            prompts_B=rollouts.prompts_B,
            candidates_BC=candidates_BC,
        )

    def _predictions(self, rollouts: Rollouts, features: Features | None, domains_B: Tensor) -> tuple[Tensor, Tensor]:
        """What is predicted before any reward of the batch is seen: of the siblings, and from the prompt alone."""
        if self.config.baseline == "critic":
            assert rollouts.values_B is not None
            return rollouts.values_B.float(), rollouts.values_B.float()
        if self.config.baseline == "tracker":
            assert rollouts.prompts_B is not None
            values_B = self.tracker.predict(rollouts.prompts_B)
            return values_B, values_B
        values_B, prompt_B = self._probed(features, domains_B)
        return (prompt_B if self.config.baseline == "prompt-probe" else values_B), prompt_B

    def _refuse_incomplete(self, rollouts: Rollouts) -> None:
        if self.config.baseline == "tracker" and rollouts.prompts_B is None:
            raise ConfigError("baseline='tracker' needs the prompts' ids, and these rollouts carry none")
        if self.config.baseline == "critic" and rollouts.values_B is None:
            raise ConfigError("baseline='critic' needs the critic's values, and these rollouts carry none")
        if not self._reads_states:
            return
        if rollouts.features is None:
            raise ConfigError(f"baseline={self.config.baseline!r} needs features, and these rollouts carry none")
        if self.config.is_weighted and rollouts.weights_B is None:
            raise ConfigError("a probe with weights='score' needs the rollouts' squared scores, and these carry none")
        if self.config.probe.sibling_outcome and rollouts.features.squared_score_B is None:
            raise ConfigError(
                "a probe with sibling_outcome=True needs the rollouts' squared scores, and these features carry none "
                "(squared_score_B)"
            )

    def _with_outcome(self, rollouts: Rollouts, rewards_B: Tensor) -> Features | None:
        """The features with what the rollout itself came to, for its siblings' sake."""
        if rollouts.features is None:
            return None
        scores_B = rollouts.features.squared_score_B if self.config.probe.sibling_outcome else None
        return replace(rollouts.features, reward_B=rewards_B, squared_score_B=scores_B)

    def _weights_of(self, rollouts: Rollouts) -> Tensor:
        if self.config.probe.weights == "none" or rollouts.weights_B is None:
            return torch.ones_like(rollouts.rewards_B, dtype=torch.float32)
        return known_weights(rollouts.weights_B.float())

    def predict(self, features: Features | None, domains_B: Tensor) -> Tensor:
        """g(z_i) for each rollout from its own features: its domain's probe, else the shared one, else NaN (cold)."""
        return self._probed(features, domains_B)[0]

    def _probed(self, features: Features | None, domains_B: Tensor) -> tuple[Tensor, Tensor]:
        decides_itself = self.config.baseline == "auto"
        is_cold = self.version < self.config.cold_start_steps and not decides_itself
        if features is None or not self._reads_states or is_cold:
            nothing_B = torch.full_like(domains_B, torch.nan, dtype=torch.float32)
            return nothing_B, nothing_B
        return self.bank.predict(features, domains_B, 1 if decides_itself else self.config.cold_start_rows)

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
        if self._reads_states:
            metrics |= self._learn(credit)
        if self.config.baseline in ("tracker", "critic"):
            metrics |= value_metrics(credit)
        if self.config.baseline == "tracker":
            assert credit.prompts_B is not None
            self.tracker = self.tracker.updated(credit.prompts_B, credit.rewards_B, self.config.tracker)
            metrics["tracked_prompts"] = float(len(self.tracker.prompts_K))
        metrics["predict_seconds"], self._predict_seconds = self._predict_seconds, 0.0
        self.version += 1
        return metrics

    def _learn(self, credit: Credit) -> dict[str, float]:
        """Record how all that predicted did on this batch, then refit the probes with it."""
        metrics = value_metrics(credit) if self.config.baseline == "prompt-probe" else probe_metrics(credit)
        began = time.perf_counter()
        candidates_BC = credit.candidates_BC
        if candidates_BC is None:
            candidates_BC = credit.rewards_B.new_empty(len(credit), 0)
        else:
            used = self.mixture.weights_for(credit.domains_B).mean(0).tolist()
            mixed = {f"mix_{name}": share for name, share in zip(CANDIDATES, used, strict=True)}
            metrics |= {**mixed, "probe_share": mixed["mix_probe"] + mixed["mix_prompt_probe"]}
        self.mixture.learn(candidates_BC, credit.rewards_B, credit.weights_B, credit.domains_B)
        self.mixture.past = map_tensors(self._broadcast(self.mixture.past), torch.Tensor.cpu)
        self.bank.judge(credit)
        self.bank.refit(self.bank.remember(credit), self._is_main)
        self.bank.probes = self._broadcast(self.bank.probes)
        metrics["buffer_rows"] = float(sum(len(buffer) for buffer in self.buffers.values()))
        if self.config.is_weighted:
            metrics["effective_share"] = effective_rows(credit.weights_B) / len(credit)
        if self.config.probe.alpha is None and SHARED in self.bank.records:
            metrics["alpha"] = self.config.probe.alphas[self.bank.records[SHARED].best(self.config.probe.first_choice)]
        return metrics | {"fit_seconds": time.perf_counter() - began}

    # --- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on: {"tensors": name -> tensor, "meta": JSON values}."""
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Any] = {}
        kept = self.bank.save_into(tensors, scalars)
        for key, past in self.mixture.past.items():
            flatten(past, f"mixture.{key}", tensors, scalars)
        if self.config.baseline == "tracker":
            flatten(self.tracker, "tracker", tensors, scalars)
        meta = {
            "identity": self.identity,
            "version": self.version,
            "mixture": sorted(self.mixture.past),
            "scalars": scalars,
            **kept,
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
        self.bank.load(meta, tensors, scalars)
        self.mixture.past = {
            int(key): map_tensors(restore(Past, f"mixture.{key}", tensors, scalars), torch.Tensor.cpu)
            for key in meta["mixture"]
        }
        if self.config.baseline == "tracker":
            self.tracker = map_tensors(restore(Tracker, "tracker", tensors, scalars), torch.Tensor.cpu)


def _refuse_mismatch(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    was, now = _dotted(saved), _dotted(present)
    names = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
    if names:
        listed = "; ".join(f"{name}: saved {was.get(name)!r}, now {now.get(name)!r}" for name in names)
        if was.keys() != now.keys():
            raise StateMismatchError(
                f"the saved probe is of another version, with other settings ({listed}); start a new run"
            )
        raise StateMismatchError(
            f"the saved probe cannot continue under these settings ({listed}); restore the saved values, or start a "
            "new run"
        )


def _dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings within settings under dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": item for key, item in _dotted(value).items()}
        else:
            found[name] = value
    return found


def _json(value: Any) -> Any:
    """As it comes back from a checkpoint: tuples are lists there, and numpy's numbers Python's."""
    return json.loads(json.dumps(value, default=lambda number: number.item()))
