"""The rival of the probe's size class above: a copy of the policy with a scalar head, trained on the same rollouts.

It reads the prompt alone (the head sits on its last token) or the prompt and a response (the head sits on the
response's last token, and predicts the *sibling's* reward, as the probe does). Binary cross-entropy against rewards.

Source: the comparison critic of the paper (SPPO form): a copy of the policy, a scalar head on the last prompt token.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from poise.lab.rollouts import pad_right

# One training prompt in this many chooses the learning rate and the epoch, and is not trained on.
_VALIDATION = 8
_BATCH = 64
_CLIP = 1.0  # gradient norm, as in the policy's own training


@dataclass(frozen=True)
class CriticFit:
    """A trained critic, and what it took.

    Args:
        predict: sequences -> expected reward.
        seconds: processor seconds of the chosen run; `total_seconds` of all that were tried.
        rate, epochs: the chosen learning rate and number of passes.
        loss: its validation loss.
    """

    predict: Callable[[Sequence[Sequence[int]]], Tensor]
    seconds: float
    total_seconds: float
    rate: float
    epochs: int
    loss: float


def fit_critic(
    model: Any,
    sequences: Sequence[Sequence[int]],
    targets_B: Tensor,
    groups_B: Tensor,
    rates: Sequence[float],
    epochs: int,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> CriticFit:
    """Trains one critic for each learning rate and keeps the best epoch of all, by loss on an eighth of the prompts.

    Args:
        model: the frozen policy; it is copied.
        sequences: token ids, whose last position carries the value.
        targets_B: rewards, scaled to [0, 1] by their own range.
        groups_B: prompt of each sequence; whole prompts are left out for validation.
        tick: called after each pass.
    """
    low, high = float(targets_B.min()), float(targets_B.max())
    share_B = (targets_B - low) / max(high - low, 1e-12)
    is_validation_B = validates(groups_B)
    train = is_validation_B.logical_not().nonzero()[:, 0]
    held_out = is_validation_B.nonzero()[:, 0]
    best: tuple[float, dict[str, Tensor], float, int, float] | None = None
    began = time.process_time()
    for rate in rates:
        start = time.process_time()
        critic = _Critic(model, float(share_B[train].mean()), seed)
        optimizer = torch.optim.AdamW(critic.parameters(), lr=rate, weight_decay=0.01)
        steps = epochs * -(-len(train) // _BATCH)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step, n=steps: _schedule(step, n))
        generator = torch.Generator().manual_seed(seed)
        for epoch in range(epochs):
            order = train[torch.randperm(len(train), generator=generator)]
            for index in order.split(_BATCH):
                _step(critic, [sequences[i] for i in index.tolist()], share_B[index], optimizer, schedule)
            logits_B = critic.logits([sequences[i] for i in held_out.tolist()])
            loss = float(nn.functional.binary_cross_entropy_with_logits(logits_B, share_B[held_out]))
            if best is None or loss < best[0]:
                kept = {name: value.detach().clone() for name, value in critic.state_dict().items()}
                best = (loss, kept, rate, epoch + 1, time.process_time() - start)
            tick()
    assert best is not None
    chosen = _Critic(model, 0.5, seed)
    chosen.load_state_dict(best[1])

    def predict(wanted: Sequence[Sequence[int]]) -> Tensor:
        return low + (high - low) * chosen.logits(wanted).sigmoid()

    return CriticFit(predict, best[4], time.process_time() - began, best[2], best[3], best[0])


def validates(groups_B: Tensor) -> Tensor:
    """Which prompts choose, by a hash of their number: families of a mix take turns, so a stride would pick one."""
    return (groups_B * 2654435761 % 2**32 // 2**16) % _VALIDATION == 0  # Knuth's multiplicative hash


class _Critic(nn.Module):
    def __init__(self, model: Any, mean: float, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = copy.deepcopy(model.base_model).float().train()
        self.head = nn.Linear(model.config.get_text_config().hidden_size, 1).to(model.device)
        nn.init.zeros_(self.head.weight)
        # It starts as the constant that knows the mean, as the probe does.
        nn.init.constant_(self.head.bias, float(torch.logit(torch.tensor(mean), eps=1e-3)))

    def forward(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        ids_BT = pad_right(sequences, -1).to(self.head.weight.device)
        mask_BT = (ids_BT >= 0).long()
        hidden_BTH = self.body(input_ids=ids_BT.clamp_min(0), attention_mask=mask_BT, use_cache=False).last_hidden_state
        last_BH = hidden_BTH[torch.arange(len(ids_BT)), mask_BT.sum(1) - 1]
        return self.head(last_BH.float())[:, 0]

    @torch.no_grad()
    def logits(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Logits of many sequences, those of like length together, in the order given."""
        self.eval()
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        found = torch.empty(len(sequences))
        for start in range(0, len(order), 4 * _BATCH):
            chunk = order[start : start + 4 * _BATCH]
            found[chunk] = self([sequences[i] for i in chunk]).cpu()
        self.train()
        return found


def _step(critic: _Critic, sequences: list[Sequence[int]], share_B: Tensor, optimizer: Any, schedule: Any) -> None:
    logits_B = critic(sequences)
    loss = nn.functional.binary_cross_entropy_with_logits(logits_B, share_B.to(logits_B))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(critic.parameters(), _CLIP)
    optimizer.step()
    schedule.step()


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over a twentieth of the steps, then linearly to zero."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))
