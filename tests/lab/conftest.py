"""A random tiny policy, and how a few rollouts of it are drawn."""

from __future__ import annotations

import pytest

import tiny_policy
from poise.eval.sampling import HFSampler, Sampling
from poise.lab.rollouts import Drawing


@pytest.fixture(scope="session")
def sampler() -> HFSampler:
    return HFSampler(tiny_policy.model().eval(), tiny_policy.tokenizer())


@pytest.fixture(scope="session")
def rows() -> list[dict[str, str]]:
    return [{"prompt": f"{a}+{a + 1}=", "answer": str(a), "domain": "d"} for a in range(5)]


@pytest.fixture
def drawing(sampler: HFSampler) -> Drawing:
    sampling = Sampling(k=4, temperature=1.0, top_p=1.0, max_new_tokens=6, batch_size=8, seed=0)
    return Drawing(sampler, sampling, ((1, 2), (3, 10)), (), captured=2, score_batch=3)
