"""A multi-layer perceptron on the probe's regressors, in place of its linear head: the paper's comparison.

Source: paper section 4, an MLP of three layers beside the ridge; its own is 1,024 wide.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

_WIDTH, _BATCH, _RATE, _DECAY, _EPOCHS, _PATIENCE = 256, 128, 1e-3, 0.1, 30, 3


def fit_mlp(design_BK: Tensor, targets_B: Tensor, is_validation_B: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """Trains with early stopping on the validation rows; returns design -> expected reward.

    Args:
        design_BK: the probe's regressors; standardised here.
        targets_B: rewards, scaled to [0, 1] by their own range for a binary cross-entropy.
        is_validation_B: rows that choose the epoch and are not trained on.
    """
    low, high = float(targets_B.min()), float(targets_B.max())
    share_B = ((targets_B - low) / max(high - low, 1e-12)).float()
    mean_K, scale_K = design_BK.mean(0), design_BK.std(0).clamp_min(1e-6)

    def standard(rows_BK: Tensor) -> Tensor:
        return ((rows_BK - mean_K) / scale_K).float().clamp(-8, 8)

    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(design_BK.shape[1], _WIDTH), nn.GELU(), nn.Linear(_WIDTH, _WIDTH), nn.GELU(), nn.Linear(_WIDTH, 1)
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
    x_BK, train = standard(design_BK), (~is_validation_B).nonzero()[:, 0]
    best, kept, waited = float("inf"), copy.deepcopy(net), 0
    for _ in range(_EPOCHS):
        for index in train[torch.randperm(len(train))].split(_BATCH):
            loss = nn.functional.binary_cross_entropy_with_logits(net(x_BK[index])[:, 0], share_B[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            logits_B = net(x_BK[is_validation_B])[:, 0]
            value = float(nn.functional.binary_cross_entropy_with_logits(logits_B, share_B[is_validation_B]))
        waited = waited + 1 if value >= best else 0
        if value < best:
            best, kept = value, copy.deepcopy(net)
        if waited == _PATIENCE:
            break

    @torch.no_grad()
    def predict(rows_BK: Tensor) -> Tensor:
        return low + (high - low) * kept(standard(rows_BK))[:, 0].sigmoid()

    return predict
