"""What the probes are made of and how they are kept: the buffers of each domain, and the refit after every batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poise.core.buffer import CrossedPairs, RollingBuffer
from poise.core.features import Features
from poise.core.mixture import Record
from poise.core.probe import Probe, ProbeConfig, fit_probe
from poise.core.rollouts import Credit
from poise.core.trees import flatten, map_tensors, restore

SHARED = 0  # key of the probe fitted on all domains' rows


class ProbeBank:
    """Buffer and probe of each domain, and one probe of all domains together for those that are young.

    Args:
        config: how a probe is fitted.
        capacity: rows kept per domain.
        own_rows: rows from which on a domain is served by its own probe.
        with_prompt: whether a head on the prompt's state alone is fitted too.
    """

    def __init__(self, config: ProbeConfig, capacity: int, own_rows: int, with_prompt: bool) -> None:
        self.config, self.capacity, self.own_rows, self.with_prompt = config, capacity, own_rows, with_prompt
        self.buffers: dict[int, RollingBuffer] = {}
        self.probes: dict[int, Probe] = {}
        self.fitted_rows: dict[int, int] = {}
        self.records: dict[int, Record] = {}  # of each probe's penalties, where there are several

    def predict(
        self, features: Features, domains_B: Int[Tensor, " B"], least_rows: int
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Each rollout's prediction for its siblings, and the one from its prompt alone; NaN where no probe is ready.

        Args:
            least_rows: rows that the shared probe must have been fitted on.
        """
        values_B = torch.full_like(domains_B, torch.nan, dtype=torch.float32)
        prompt_B = values_B.clone()
        domains = domains_B.unique().tolist()
        for domain in domains:
            probe = self._fitted(domain, self.own_rows) or self._fitted(SHARED, least_rows)
            if probe is not None:
                rows = (domains_B == domain).nonzero()[:, 0] if len(domains) > 1 else slice(None)
                chosen = features.select(rows)
                values_B[rows] = probe.predict(chosen).to(values_B)
                if self.with_prompt:
                    prompt_B[rows] = probe.predict_prompt(chosen).to(values_B)
        return values_B, prompt_B

    def _fitted(self, key: int, least_rows: int) -> Probe | None:
        return self.probes.get(key) if self.fitted_rows.get(key, 0) >= least_rows else None

    # --- learning -----------------------------------------------------------------------------------------------

    def judge(self, credit: Credit) -> None:
        """Note how each probe would have predicted this batch under each penalty, before it learns from it."""
        if self.config.alpha is not None:
            return
        assert credit.features is not None
        for key, probe in self.probes.items():
            crossed = probe.head is not None
            targets_B, weights_B = (
                (credit.targets_B, credit.target_weights_B) if crossed else (credit.rewards_B, credit.weights_B)
            )
            rows_B = targets_B.isfinite() & ((credit.domains_B == key) | (key == SHARED))
            errors_BA = targets_B[rows_B, None] - probe.predict_all(credit.features.select(rows_B))
            record = self.records.get(key, Record.empty(len(self.config.alphas)))
            self.records[key] = record.learnt(errors_BA, weights_B[rows_B])

    def remember(self, credit: Credit) -> list[int]:
        """Add the usable rollouts to their domains' buffers; returns the domains that grew."""
        assert credit.features is not None
        usable_B = credit.features.present_B & credit.rewards_B.isfinite()
        if not self.with_prompt or bool(credit.targets_B.isfinite().any()):
            usable_B &= credit.targets_B.isfinite()  # otherwise none has a sibling, and the prompts' head learns alone
        grown: list[int] = []
        for domain in credit.domains_B[usable_B].unique().tolist():
            rows = (usable_B & (credit.domains_B == domain)).nonzero()[:, 0]
            pairs = CrossedPairs(
                credit.features, credit.targets_B, credit.target_weights_B, credit.weights_B, credit.groups_B
            )
            self.buffers.setdefault(domain, RollingBuffer(self.capacity)).append(pairs.select(rows))
            grown.append(domain)
        return grown

    def refit(self, grown: list[int], is_main: bool) -> None:
        """Refit the probes whose rows changed: each grown domain's own, and the shared one while it is needed."""
        sizes = [buffer.filled for buffer in self.buffers.values()]
        needs_shared = bool(grown) and (len(sizes) == 1 or min(sizes) < self.own_rows)
        keys = ([SHARED] if needs_shared else []) + (grown if len(sizes) > 1 else [])
        for key in dict.fromkeys(keys):
            pairs = self._pairs_of(key)
            if is_main:
                # The layout that it has when loaded from disk: others multiply to the last bit differently.
                self.probes[key] = map_tensors(self._fit(key, pairs), torch.Tensor.contiguous)
            self.fitted_rows[key] = sum(buffer.filled for buffer in self._buffers_of(key))

    def _fit(self, key: int, pairs: CrossedPairs) -> Probe:
        known_B, record = pairs.targets_B.isfinite(), self.records.get(key)
        crossed = bool(known_B.any())
        if crossed and not bool(known_B.all()):  # a run that went from single rollouts to groups
            pairs = pairs.select(known_B)
        return fit_probe(
            pairs.features,
            pairs.targets_B if crossed else None,
            self.config,
            self.probes.get(key),
            pairs.target_weights_B if crossed and self.config.weights == "score" else None,
            own_weights_B=pairs.weights_B if self.with_prompt else None,
            choice=None if record is None else record.best(self.config.first_choice),
        )

    def _buffers_of(self, key: int) -> list[RollingBuffer]:
        return list(self.buffers.values()) if key == SHARED else [self.buffers[key]]

    def _pairs_of(self, key: int) -> CrossedPairs:
        parts = [buffer.pairs for buffer in self._buffers_of(key) if buffer.pairs is not None]
        return parts[0] if len(parts) == 1 else CrossedPairs.cat(parts)

    # --- state --------------------------------------------------------------------------------------------------

    def save_into(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> dict[str, Any]:
        """Put the tensors and scalars under dotted names; returns what else belongs to the checkpoint."""
        for kind, items in (("probe", self.probes), ("record", self.records)):
            for key, item in items.items():
                flatten(item, f"{kind}.{key}", tensors, scalars)
        for key, buffer in self.buffers.items():
            if buffer.pairs is not None:
                # A copy: the buffer reuses its memory, and a checkpoint may be written while training goes on.
                flatten(map_tensors(buffer.pairs, torch.clone), f"buffer.{key}", tensors, scalars)
        return {
            "probes": {str(key): rows for key, rows in self.fitted_rows.items()},
            "buffers": {str(key): buffer.groups_seen for key, buffer in self.buffers.items()},
            "records": sorted(self.records),
        }

    def load(self, meta: Mapping[str, Any], tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Continue from what `save_into` wrote."""
        self.fitted_rows = {int(key): int(rows) for key, rows in meta["probes"].items()}
        self.probes = {key: restore(Probe, f"probe.{key}", tensors, scalars) for key in self.fitted_rows}
        self.records = {
            int(key): map_tensors(restore(Record, f"record.{key}", tensors, scalars), torch.Tensor.cpu)
            for key in meta["records"]
        }
        self.buffers = {}
        for key, groups_seen in meta["buffers"].items():
            buffer = self.buffers[int(key)] = RollingBuffer(self.capacity)
            buffer.restore(restore(CrossedPairs, f"buffer.{key}", tensors, scalars), int(groups_seen))
