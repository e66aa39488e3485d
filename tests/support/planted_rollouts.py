"""Rollouts of a study that nobody drew: random states, and a pass rate that can be read off them."""

from __future__ import annotations

import torch

from poise.lab.rollouts import Rollouts


def planted(prompts: int, captured: int, seed: int) -> Rollouts:
    """The pass rate is read off the first number of either state."""
    generator = torch.Generator().manual_seed(seed)
    states_PFH = torch.randn(prompts, captured, 6, generator=generator)
    states_PFH[:, :, 0] = states_PFH[:, :1, 0]
    chance_P = states_PFH[:, 0, 0].sigmoid()
    rewards_PK = (torch.rand(prompts, captured, generator=generator) < chance_P[:, None]).float()
    ids_PKC = torch.ones(prompts, captured, 3, dtype=torch.long)
    one, proxies = torch.ones(prompts, captured, 3), torch.rand(prompts, captured, 4, generator=generator)
    return Rollouts(rewards_PK, ids_PKC, {"1/1": states_PFH}, {"1/1": states_PFH}, one, proxies)
