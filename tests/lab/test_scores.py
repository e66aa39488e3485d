"""Score vectors against plain differentiation, the projection against the identity, proxies against literal numbers."""

from __future__ import annotations

import pytest
import torch

from poise.core import TokenLayout, squared_score
from poise.eval.sampling import HFSampler
from poise.lab.rollouts import PROXIES, norm_proxies
from poise.lab.scores import Projection, score_vectors

PAIRS = [([7, 8, 9], [10, 11]), ([12], [13, 14, 15, 1]), ([20, 21], [22])]


def test_score_vectors_are_the_full_gradient(sampler: HFSampler) -> None:
    model = sampler.model
    together = torch.cat(list(score_vectors(model, PAIRS, 0.8, batch=2)))
    alone = torch.cat(list(score_vectors(model, PAIRS, 0.8, batch=1)))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert together.shape == (3, sum(parameter.numel() for parameter in model.parameters()))
    for (prompt, response), found_D in zip(PAIRS, alone, strict=True):
        model.zero_grad()
        logits = model(torch.tensor([prompt + response])).logits[0] / 0.8
        log_p = logits.log_softmax(-1)
        total = sum(log_p[len(prompt) - 1 + place, token] for place, token in enumerate(response))
        total.backward()
        wanted_D = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        torch.testing.assert_close(found_D, wanted_D, rtol=1e-4, atol=1e-6)
    model.zero_grad()


def test_projection_by_hand_and_unbiased() -> None:
    assert Projection(4, 0, 0, "cpu")(torch.ones(1, 4)).tolist() == [[1.0] * 4]
    vectors_BD = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sketch = Projection(50, 8, 3, "cpu")
    wanted = torch.zeros(2, 8, dtype=torch.float64)
    for d in range(50):
        wanted[:, sketch.bucket_D[d]] += sketch.sign_D[d] * vectors_BD[:, d]
    torch.testing.assert_close(sketch(vectors_BD), wanted)
    grams = [(p := Projection(50, 8, seed, "cpu")(vectors_BD)) @ p.T for seed in range(2000)]
    # The standard error of the mean of 2,000 is ‖s‖²·√(2/8)/√2000, about one in a hundred.
    torch.testing.assert_close(torch.stack(grams).mean(0), vectors_BD @ vectors_BD.T, rtol=0.04, atol=1.5)


def test_proxies_by_hand() -> None:
    """One response of two tokens over three words, probabilities (.5, .25, .25) and (.2, .6, .2), tokens 0 and 1."""
    logits_BCV = torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]]]).log()
    layout = TokenLayout.padded(
        torch.tensor([[1]]), torch.tensor([[1]]), torch.tensor([[0, 1, 2]]), torch.tensor([[1, 1, 0]])
    )
    found = dict(zip(PROXIES, norm_proxies(logits_BCV, layout)[0].tolist(), strict=True))
    assert found["one_minus_pi"] == pytest.approx(0.25 + 0.16)
    assert found["residual"] == pytest.approx((1 - 1 + 0.375) + (1 - 1.2 + 0.44))
    assert found["nll"] == pytest.approx(0.693147 + 0.510826, abs=1e-5)
    assert found["length"] == 2
    core = squared_score(torch.tensor([[0.5, 0.6, 0.8]]).log(), layout.response_mask_BC)
    assert found["one_minus_pi"] == pytest.approx(float(core[0]))
