"""Probes of a study are the product's own on crossed pairs; the critic and the perceptron learn what can be learnt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from planted_rollouts import planted
from poise.core import Features, ProbeConfig, fit_probe
from poise.errors import ConfigError
from poise.eval.sampling import HFSampler
from poise.lab.critic import fit_critic, validates
from poise.lab.mlp import fit_mlp
from poise.lab.policy import Prompts
from poise.lab.probes import Training, Variant, features_of, fit_and_predict, verified
from poise.lab.study import left_out
from poise.rewards import Verdict

CONFIG = ProbeConfig(prompt_components=None, reasoning_components=None, alpha=1.0)
BASE = Variant((1, 1), (1, 1), CONFIG)


def test_variant_is_the_products_probe_on_crossed_pairs() -> None:
    train, test = planted(60, 2, 0), planted(20, 3, 1)
    domains = torch.zeros(60, dtype=torch.long)
    found_PF, _ = fit_and_predict(BASE, Training(train, domains), test, torch.zeros(20, dtype=torch.long), 0)
    flat = Features(
        *(s.flatten(0, 1) for s in (train.prompt_states["1/1"], train.reasoning_states["1/1"], train.entropy_PFE))
    )
    targets = torch.stack([train.rewards_PK[:, 1], train.rewards_PK[:, 0]], dim=1).flatten()
    wanted = fit_probe(flat, targets, CONFIG).predict(features_of(test, BASE)).view(20, 3)
    torch.testing.assert_close(found_PF, wanted)
    assert float(torch.corrcoef(torch.stack([found_PF[:, 0], test.prompt_states["1/1"][:, 0, 0]]))[0, 1]) > 0.8


def test_parts_rows_weights_and_domains_change_the_fit() -> None:
    train, test = planted(300, 2, 0), planted(20, 3, 1)
    domains = torch.arange(300) % 2
    asked = torch.arange(20) % 2

    def fitted(variant: Variant) -> torch.Tensor:
        return fit_and_predict(variant, Training(train, domains), test, asked, 0)[0]

    whole = fitted(BASE)
    seen = features_of(test, replace(BASE, parts=("length",)))
    assert (seen.prompt_BH.shape, seen.entropy_BE.tolist()) == ((60, 0), [[3.0]] * 60)
    for changes in ({"parts": ("prompt",)}, {"rows": 40}, {"weights": "nll"}, {"per_domain": True}, {"mlp": True}):
        other = fitted(replace(BASE, **changes))
        assert other.isfinite().all()
        assert not torch.allclose(other, whole)


def test_a_domain_of_few_rows_is_served_by_the_probe_of_all() -> None:
    """Of 310 training prompts ten are of domain 1, and none of domain 2, which is asked about as well."""
    train, test = planted(310, 2, 0), planted(30, 3, 1)
    domains, asked = (torch.arange(310) >= 300).long(), torch.arange(30) % 3
    shared, own = (
        fit_and_predict(replace(BASE, per_domain=per_domain), Training(train, domains), test, asked, 0)[0]
        for per_domain in (False, True)
    )
    torch.testing.assert_close(own[asked > 0], shared[asked > 0])
    assert not torch.allclose(own[asked == 0], shared[asked == 0])


def test_failed_rewards_are_not_learnt_from() -> None:
    train = planted(60, 2, 0)
    train.rewards_PK[3, 1] = torch.nan
    training = Training(train, torch.zeros(60, dtype=torch.long))
    assert training.usable_B.sum() == 118
    assert fit_and_predict(BASE, training, planted(9, 2, 1), torch.zeros(9, dtype=torch.long), 0)[0].isfinite().all()


def test_prompts_that_the_reward_failed_on_are_left_out() -> None:
    """The domains are numbered by those that are left: "a" is lost with its only prompt."""
    rows = [{"prompt": str(place), "domain": "b"} for place in range(6)]
    prompts = Prompts(rows, [{"prompt": "x", "domain": "a"}, *rows[:3]], lambda *_: Verdict(1.0))
    train, test = planted(6, 2, 0), planted(4, 3, 1)
    test.rewards_PK[0, 2] = torch.nan
    training, kept, named = verified(prompts, train, test, 3)
    torch.testing.assert_close(kept.rewards_PK, test.rewards_PK[1:])
    assert (named.domains, training.domains_P.tolist()) == (["b"] * 3, [0] * 6)
    assert left_out(4, 3) == ["1 of 4 held-out prompts were left out: the reward failed on a rollout of theirs."]
    assert left_out(4, 4) == []
    with pytest.raises(ConfigError, match="of only 3 of 4 held-out prompts, and a study needs 4"):
        verified(prompts, train, test, 4)
    train.rewards_PK[:, 0] = torch.nan
    with pytest.raises(ConfigError, match="of only 0 of 6 training prompts"):
        verified(prompts, train, test, 3)


def test_perceptron_learns_what_no_line_can() -> None:
    generator = torch.Generator().manual_seed(0)
    design_BK = torch.rand(800, 2, generator=generator, dtype=torch.float64) * 2 - 1
    targets_B = (design_BK.prod(1) > 0).double()
    predict = fit_mlp(design_BK, targets_B, torch.arange(800) % 8 == 0, seed=0)
    assert float((predict(design_BK) - targets_B).abs().mean()) < 0.2


def test_an_eighth_of_the_prompts_validates_whatever_takes_turns() -> None:
    chosen = validates(torch.arange(4000)).nonzero()[:, 0]
    assert 420 < len(chosen) < 580
    assert all(0.4 < float((chosen % 2 == parity).float().mean()) < 0.6 for parity in (0, 1))


def test_critic_learns_from_the_prompt(sampler: HFSampler) -> None:
    """Prompts that begin with one of two tokens have rewards 1 and 3; the prompts left out choose the epoch."""
    generator = torch.Generator().manual_seed(0)
    tails = torch.randint(6, 50, (128, 4), generator=generator).tolist()
    sequences = [[10 + 20 * (place % 2), *tail] for place, tail in enumerate(tails)]
    targets_B = torch.tensor([1.0, 3.0] * 64)
    ticks: list[int] = []
    fit = fit_critic(
        sampler.model, sequences, targets_B, torch.arange(128), (1e-2, 1e-4), 6, 0, lambda: ticks.append(1)
    )
    assert (len(ticks), fit.rate) == (12, 1e-2)
    assert fit.total_seconds > fit.seconds > 0
    predicted = fit.predict([[10, 7, 8], [30, 7, 8, 9, 11]]).tolist()
    assert predicted[0] == pytest.approx(1.0, abs=0.4)
    assert predicted[1] == pytest.approx(3.0, abs=0.4)
