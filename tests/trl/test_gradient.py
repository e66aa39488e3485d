"""The gradient that PoiseTrainer takes is the policy gradient with A_i = r_i - b_i, b_i = g(z_sibling) or what "auto"
makes of it, in every batch layout, and costs no forward pass that TRL would not have run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM, TrainerCallback
from trl import GRPOTrainer

import tiny_policy
from poise.core import Credit, Features, Probe, Rollouts

LAYOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "one micro-batch": ({}, "train"),
    "accumulation": ({"gradient_accumulation_steps": 4, "per_device_train_batch_size": 8}, "train"),
    "activation checkpointing": (
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 16, "gradient_checkpointing": True},
        "train",
    ),
    "two windows a step": (
        {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 8, "steps_per_generation": 2},
        "train",
    ),
    "odd micro-batch": ({"gradient_accumulation_steps": 4, "per_device_train_batch_size": 3}, "extra"),
    "single rows": ({"gradient_accumulation_steps": 8, "per_device_train_batch_size": 1}, "extra"),
    "forced extra": (
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 16, "capture": "extra"},
        "extra",
    ),
    "two updates a batch": ({"per_device_train_batch_size": 16, "steps_per_generation": 2}, "old"),
    "two iterations": ({"num_iterations": 2}, "old"),
    "groups of four": ({"num_generations": 4, "gradient_accumulation_steps": 2}, "train"),
    "KL to the reference": ({"num_iterations": 2, "beta": 0.04}, "old"),
    "self-choosing": ({"baseline": "auto", "gradient_accumulation_steps": 2, "num_generations": 4}, "train"),
    "self-choosing, two updates": (
        {"baseline": "auto", "per_device_train_batch_size": 16, "steps_per_generation": 2},
        "old",
    ),
}


class Watch(TrainerCallback):
    """What happened in the last generation window: the probe in use, the batches and the gradients."""

    def __init__(self) -> None:
        self.windows: list[dict[str, Any]] = []
        self.credits: list[Credit] = []  # of each window, as the probe learnt from them
        self.together: list[list[set[int]]] = []  # of each window: groups that were credited in one call

    def attach(self, trainer: Any) -> None:
        generate = trainer._generate_and_score_completions

        def spy(inputs: Any) -> Any:
            probe = trainer.estimator.probes.get(0)  # the one that will credit this batch
            past = list(trainer.estimator.mixture.past.values()) if trainer.args.chosen_baseline == "auto" else []
            output = generate(inputs)
            batch = {name: value.clone() for name, value in output.items() if isinstance(value, Tensor)}
            rewards_B = trainer._rewards_B.clone()
            self.windows.append({"probe": probe, "past": past, "batch": batch, "rewards_B": rewards_B, "gradients": []})
            return output

        trainer._generate_and_score_completions = spy
        credit_, update, calls = trainer.estimator.credit, trainer.estimator.update, list[set[int]]()

        def called(rollouts: Rollouts) -> Credit:
            calls.append({*rollouts.groups_B.tolist()})
            return credit_(rollouts)

        def note(credit: Credit) -> dict[str, float]:
            self.credits.append(credit.map(torch.clone))
            self.together.append([calls.pop(0) for _ in range(len(calls))])
            return update(credit)

        trainer.estimator.credit, trainer.estimator.update = called, note

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gradient = [parameter.grad.clone() for parameter in kwargs["model"].parameters()]
        self.windows[-1]["gradients"].append(gradient)


def mean(gradients: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]


def saved_policy(folder: Path) -> Any:
    """From disk, so that TRL can build a reference model of it."""
    tiny_policy.model().save_pretrained(folder / "policy")
    return Qwen3ForCausalLM.from_pretrained(folder / "policy")


def reference_gradient(
    policy: Any, window: dict[str, Any], group: int, layer: int = 2, end_token: int = 5
) -> list[Tensor]:
    """The same by plain loops: transformers' own hidden states, one rollout at a time."""
    batch, rewards_B = window["batch"], window["rewards_B"]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    written = batch["completion_mask"] * batch.get("tool_mask", 1)
    width, response_mask = batch["prompt_ids"].shape[1], written.float()
    policy.zero_grad()
    out = policy(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    log_p = out.logits[:, width - 1 : -1].log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1).detach()
    log_p_taken = log_p.gather(-1, batch["completion_ids"][..., None])[..., 0]
    hidden = out.hidden_states[layer].detach()
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for i in range(len(ids)):
        prompt = mask[i, :width].nonzero().flatten()[-10:]
        response = written[i].nonzero().flatten()
        ends = (written[i].bool() & (batch["completion_ids"][i] == end_token)).nonzero().flatten()
        reasoning = response[response <= ends[0]] if len(ends) else response
        answer = response[response > ends[0]] if len(ends) else response[:0]
        parts = [entropy[i, part].mean() for part in (response, reasoning, answer)]
        rows.append((hidden[i, prompt].mean(0), hidden[i, width + reasoning[-10:]].mean(0), torch.stack(parts)))
    squared_score = ((1 - log_p_taken.detach().exp()).square() * response_mask).sum(1)
    torch.testing.assert_close(window["weights_B"], squared_score, atol=1e-5, rtol=1e-4)
    columns = (torch.stack(column) for column in zip(*rows, strict=True))
    features = Features(*columns, reward_B=rewards_B, squared_score_B=squared_score)
    probe: Probe | None = window["probe"]
    assert probe is not None
    predictions, rewards, scores = probe.predict(features).tolist(), rewards_B.tolist(), squared_score.tolist()
    # The prompt's states are the same in every sibling, and so is what is predicted from them.
    from_prompt = probe.predict_prompt(features).tolist()
    advantages = []
    for i, reward in enumerate(rewards):
        first = i // group * group
        siblings = [j for j in range(first, first + group) if j != i]
        baseline = sum(predictions[j] for j in siblings) / len(siblings)
        if window["past"]:
            (past,) = window["past"]  # of the one domain
            (together,) = [groups for groups in window["together"] if i // group in groups]
            others = [j for j in range(len(rewards)) if j // group in together - {i // group}]
            offers = []
            for rows, (sum_, total) in ((siblings, (0.0, 0.0)), (others, past.rewards_2.tolist())):
                sum_ += sum(scores[j] * rewards[j] for j in rows)
                offers.append(sum_ / (total + sum(scores[j] for j in rows)))
            offers += [baseline, from_prompt[i]]
            baseline = sum(share * offer for share, offer in zip(past.errors.weights().tolist(), offers, strict=True))
        advantages.append(reward - baseline)
    ratio = (log_p_taken - log_p_taken.detach()).exp()
    loss = -(ratio * torch.tensor(advantages)[:, None] * response_mask).sum() / response_mask.sum()
    loss.backward()
    return [parameter.grad.clone() for parameter in policy.parameters()]


def forward_calls(trainer: Any) -> list[int]:
    """Rows of each forward pass that scores tokens (generation passes no labels)."""
    calls: list[int] = []
    forward = trainer.model.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("labels") is not None:
            calls.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    trainer.model.forward = counting
    return calls


def with_environment(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Rollouts of 11 or 12 tokens, four of them another party's, elsewhere in each, an end of reasoning among them."""
    responses, written = [], []
    for place in range(len(prompts)):
        length, start = 12 - place % 2, 3 + place % 3
        response = torch.randint(6, 20, (length,))
        response[start + 1] = 5
        if place % 4 == 0:
            response[10] = 5
        responses.append(response.tolist())
        written.append([1] * start + [0] * 4 + [1] * (length - start - 4))
    ids = trainer.processing_class(prompts)["input_ids"]
    return {"prompt_ids": ids, "completion_ids": responses, "logprobs": None, "env_mask": written}


@pytest.mark.parametrize("layout", ["accumulation", "two windows a step", "forced extra", "two updates a batch"])
def test_what_an_environment_writes_is_no_part_of_the_response(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of its states, nor of its entropies, nor of its score."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    test_gradient_is_the_policy_gradient(layout, tmp_path, rollout_func=with_environment)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_is_the_policy_gradient(layout: str, tmp_path: Path, **keywords: Any) -> None:
    settings, mode = LAYOUTS[layout]
    settings = settings | keywords
    # One domain, so that one probe credits every row; without a learning rate every window sees the same policy.
    settings = {"learning_rate": 0.0, "max_grad_norm": 0.0, "max_steps": 6, "domain_column": "", **settings}
    settings |= {"probe_weights": "score", "probe_sibling_outcome": True}  # everything that the probe can see
    trainer = tiny_policy.trainer(tmp_path, model=saved_policy(tmp_path), **settings)
    assert trainer.capture_mode == mode
    watch = Watch()
    watch.attach(trainer)
    trainer.add_callback(watch)
    trainer.train()
    # A window of several updates has several gradients, an update over several windows one: compare their means.
    per_step = trainer.args.gradient_accumulation_steps // trainer.window or 1
    assert len(watch.credits) == len(watch.windows)
    windows = [
        window | {"weights_B": credit.weights_B, "together": together}
        for window, credit, together in zip(watch.windows, watch.credits, watch.together, strict=True)
    ]
    windows = windows[2 * per_step : 3 * per_step]
    taken = mean([gradient for window in windows for gradient in window["gradients"]])
    expected = mean([reference_gradient(trainer.model, window, trainer.num_generations) for window in windows])
    error = sum((a - b).square().sum() for a, b in zip(taken, expected, strict=True)).sqrt()
    size = sum(b.square().sum() for b in expected).sqrt()
    assert size > 1e-3
    # fp32 sums in another order; a wrong sibling, probe or token is off by more than 1e-2
    assert error / size < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_forward_passes_are_those_of_grpo(layout: str, tmp_path: Path) -> None:
    settings, mode = LAYOUTS[layout]
    counts, ours = {}, settings.get("baseline", "probe")
    for baseline in (ours, "group-mean"):
        own = {**settings, "baseline": baseline}
        trainer = tiny_policy.trainer(tmp_path / baseline, max_steps=2, model=saved_policy(tmp_path), **own)
        calls = forward_calls(trainer)
        trainer.train()
        counts[baseline] = calls
    extra = len(counts[ours]) - len(counts["group-mean"])
    if mode == "extra":
        assert extra == 2 * settings["gradient_accumulation_steps"]  # two batches, in micro-batches
    else:
        assert counts[ours] == counts["group-mean"]


def test_plain_grpo_trainer_takes_as_many_forward_passes(tmp_path: Path) -> None:
    """The rival above is PoiseTrainer with TRL's advantages; here it is TRL's own class."""
    from trl import GRPOConfig

    ours = tiny_policy.trainer(tmp_path / "poise", max_steps=2, gradient_accumulation_steps=2)
    our_calls = forward_calls(ours)
    ours.train()
    settings = {
        name: getattr(ours.args, name) for name in ("max_steps", "max_completion_length", "learning_rate", "seed")
    }
    theirs = GRPOTrainer(
        model=tiny_policy.model(),
        reward_funcs=tiny_policy.reward,
        args=GRPOConfig(
            output_dir=str(tmp_path / "grpo"),
            num_generations=2,
            per_device_train_batch_size=32,
            gradient_accumulation_steps=2,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            **settings,
        ),
        train_dataset=tiny_policy.prompts(),
        processing_class=tiny_policy.tokenizer(),
    )
    their_calls = forward_calls(theirs)
    theirs.train()
    assert our_calls == their_calls


@pytest.mark.parametrize("weights", ["score", "none"])
def test_the_probe_sees_the_whole_score_where_the_loss_divides_by_length(weights: str, tmp_path: Path) -> None:
    """What a rollout weighs is divided; how unsure the policy was of it is not, and is there without weights too."""
    trainer = tiny_policy.trainer(tmp_path, loss_type="grpo", probe_weights=weights, max_steps=1)
    watch = Watch()
    watch.attach(trainer)
    trainer.train()
    (credit,), (window,) = watch.credits, watch.windows
    assert credit.features is not None
    scores_B, lengths_B = credit.features.squared_score_B, window["batch"]["completion_mask"].sum(1)
    assert scores_B is not None
    expected_B = scores_B / lengths_B.square() if weights == "score" else torch.ones_like(scores_B)
    torch.testing.assert_close(credit.weights_B, expected_B)
    assert float(scores_B.max()) > 1
