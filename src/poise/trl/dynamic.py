"""Dynamic sampling (DAPO): prompts whose rollouts all earn the same are dropped, and others sampled in their place.

    prompts -> rollouts -> rewards -> [all equal? dropped; batch not full? further prompts] -> advantages

Every rollout that is sampled counts towards the budget (`poise/sampled_rollouts`), trained on or not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from poise.errors import ConfigError

logger = logging.getLogger(__name__)
# Keeps the order of further prompts apart from the sampler's, which is drawn from the seed itself.
_STREAM = 7919

Rows = list[dict[str, Any]]


def has_signal(rewards_PG: Float[Tensor, "P G"]) -> Bool[Tensor, " P"]:
    """Whether a prompt's known rewards differ: only then do their deviations from the mean say anything.

    >>> has_signal(torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, torch.nan]])).tolist()
    [True, False, False]
    """
    low_P = rewards_PG.nan_to_num(math.inf).amin(1)
    high_P = rewards_PG.nan_to_num(-math.inf).amax(1)
    return high_P > low_P


class FurtherPrompts:
    """The training prompts in a seeded order of their own, pass after pass; its state is how many were taken."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed, self.taken = dataset, seed, 0
        self._order: tuple[int, list[int]] = (-1, [])  # of one pass, which follows from its number

    def take(self, count: int) -> Rows:
        """The next rows, as the data loader would hand them out."""
        rows: Rows = []
        for number in range(self.taken, self.taken + count):
            sweep, place = divmod(number, len(self.dataset))
            rows.append(dict(self.dataset[self._order_of(sweep)[place]]))
        self.taken += count
        return rows

    def _order_of(self, sweep: int) -> list[int]:
        if self._order[0] != sweep:
            draw = torch.Generator().manual_seed(self.seed + _STREAM * (sweep + 1))
            self._order = sweep, torch.randperm(len(self.dataset), generator=draw).tolist()
        return self._order[1]


@dataclass
class _Round:
    """What one call of TRL's generation gave, and its rows of the completions table."""

    inputs: Rows
    output: dict[str, Any]
    rewards_B: Tensor
    table: list[list[Any]]
    signal_P: Tensor


@dataclass(frozen=True)
class FilledBatch:
    """A batch of the usual size: first the rollouts to learn from, then, if the rounds ran out, some that say nothing.

    Args:
        kept_B: False for the latter, which leave the loss.
    """

    inputs: Rows
    output: dict[str, Any]
    rewards_B: Tensor
    kept_B: Tensor
    metrics: dict[str, float]


class DynamicSampling:
    """Fills batches with prompts whose rollouts differ in reward.

    Args:
        trainer: whose completions table is kept in step with the batch.
        max_rounds: rounds of sampling per batch, the first included; after them the batch is trained on as far as it
            is filled.

    A round asks for as many prompts as the share of useful ones seen so far in the batch says are missing, never for
    more than the batch holds.

    Raises:
        ConfigError: several processes, a streamed dataset, images, or an environment that owns the prompts.

    Source: DAPO, arXiv 2503.14476, section 3.2. Deviates from it: full rounds waste what overflows the batch, so later
    rounds here are only as large as needed.
    """

    def __init__(self, trainer: Any, max_rounds: int) -> None:
        _refuse(trainer)
        self.trainer, self.max_rounds = trainer, max_rounds
        self.further = FurtherPrompts(trainer.train_dataset, trainer.args.seed)

    def fill(self, inputs: Rows, generate: Callable[[Rows], dict[str, Any]]) -> FilledBatch:
        """One batch; `generate` samples, verifies and tokenises, and leaves its rewards in the trainer."""
        wanted = len(inputs) // self.trainer.num_generations
        rounds = [self._round(inputs, generate)]
        while len(rounds) < self.max_rounds and (missing := wanted - _useful(rounds)) > 0:
            share = max(_useful(rounds), 1) / sum(len(each.signal_P) for each in rounds)
            rows = self.further.take(min(wanted, math.ceil(missing / share)))
            repeated = [dict(row) for row in rows for _ in range(self.trainer.num_generations)]
            rounds.append(self._round(repeated, generate))
        if (useful := _useful(rounds)) < wanted:
            logger.warning(
                "after %d rounds of dynamic sampling %d of %d prompts have rollouts that differ in reward; training "
                "goes on with these",
                len(rounds),
                useful,
                wanted,
            )
        return self._join(rounds, wanted)

    def _round(self, inputs: Rows, generate: Callable[[Rows], dict[str, Any]]) -> _Round:
        output = generate(inputs)
        rewards_B = self.trainer._rewards_B
        signal_P = has_signal(rewards_B.reshape(-1, self.trainer.num_generations))
        table = [list(column)[-len(inputs) :] for column in _columns(self.trainer._logs)]
        return _Round(inputs, output, rewards_B, table, signal_P)

    def _join(self, rounds: list[_Round], wanted: int) -> FilledBatch:
        signal_P = torch.cat([each.signal_P for each in rounds])
        group_P = signal_P.logical_not().long().argsort(stable=True)[:wanted]  # those with a signal first, as sampled
        size = self.trainer.num_generations
        row_B = (group_P[:, None] * size + torch.arange(size, device=group_P.device)).flatten()
        kept_B = signal_P[group_P].repeat_interleave(size)
        output = join_rows([each.output for each in rounds], self.trainer._tokenizer.pad_token_id, row_B)
        mask_BT = output["completion_mask"] * output.get("tool_mask", 1)
        output["num_items_in_batch"] = mask_BT.sum()
        rows = row_B.tolist()
        self._show(rounds, rows)
        inputs = [row for each in rounds for row in each.inputs]
        rewards_B = torch.cat([each.rewards_B for each in rounds])[row_B]
        metrics = {
            "sampling_rounds": float(len(rounds)),
            "signal_share": float(signal_P.float().mean()),
            "filled_share": float(kept_B.float().mean()),
        }
        return FilledBatch([inputs[row] for row in rows], output, rewards_B, kept_B, metrics)

    def _show(self, rounds: list[_Round], rows: list[int]) -> None:
        """The completions table shows the batch that is trained on, not the last round."""
        for number, column in enumerate(_columns(self.trainer._logs)):
            values = [value for each in rounds for value in each.table[number]]
            column.clear()
            column.extend(values[row] for row in rows)


def join_rows(outputs: list[dict[str, Any]], pad_id: int, row_B: Tensor) -> dict[str, Any]:
    """Rows of several generated batches as one, padded to one width: prompts on the left, responses on the right."""
    joined: dict[str, Any] = {}
    for name, first in outputs[0].items():
        if not isinstance(first, Tensor) or first.ndim == 0:
            continue
        parts = [output[name] for output in outputs]
        if first.ndim > 1:
            width, value = max(part.shape[1] for part in parts), pad_id if name.endswith("_ids") else 0
            is_left = name.startswith("prompt_")
            parts = [_padded(part, width - part.shape[1], is_left, value) for part in parts]
        joined[name] = torch.cat(parts)[row_B]
    return joined


def _padded(values_BT: Tensor, missing: int, is_left: bool, value: int) -> Tensor:
    return torch.nn.functional.pad(values_BT, (missing, 0) if is_left else (0, missing), value=value)


def _useful(rounds: list[_Round]) -> int:
    return sum(int(each.signal_P.sum()) for each in rounds)


def _columns(logs: dict[str, Any]) -> Iterable[Any]:
    """Every column of TRL's completions table that this round has filled."""
    columns = (logs["prompt"], logs["completion"], logs["advantages"], *logs["rewards"].values())
    return [*columns, *(column for name, column in logs["extra"].items() if name not in ("prediction", "baseline"))]


def _refuse(trainer: Any) -> None:
    reasons = (
        (trainer.accelerator.num_processes > 1, "runs in one process only, since rollouts would have to change ranks"),
        (not hasattr(trainer.train_dataset, "__len__"), "needs a dataset that can be indexed, not a streamed one"),
        (trainer._is_vlm, "does not join batches that hold images"),
        (trainer.environment_factories is not None, "cannot ask an environment for further prompts"),
    )
    for is_so, reason in reasons:
        if is_so:
            raise ConfigError(f"dynamic_sampling=True {reason}; turn it off")
