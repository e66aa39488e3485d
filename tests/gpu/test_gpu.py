"""On a CUDA device, in bfloat16 with SDPA attention: states as in transformers, the probe as on the CPU, and it learns.

    PYTHONPATH=src python3 -m pytest tests/gpu

Everywhere else these are skipped. Speed and memory there: benchmarks/trainer.py and benchmarks/probe.py --device cuda.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

import tiny_policy
from poise.core import (
    EstimatorConfig,
    Features,
    ProbeConfig,
    Rollouts,
    StateCapture,
    StateSpec,
    TokenLayout,
    ValueEstimator,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LAYERS, WIDTH, END = 8, 1024, 5


def policy(dtype: torch.dtype = torch.bfloat16) -> Any:
    """Random weights, as wide as Qwen3-0.6B."""
    torch.manual_seed(0)
    shape = {"num_hidden_layers": LAYERS, "hidden_size": WIDTH, "intermediate_size": 3 * WIDTH}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    ids = {name: getattr(tiny_policy.tokenizer(), name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    config = Qwen3Config(**shape, **heads, **ids, vocab_size=64, attn_implementation="sdpa")
    return Qwen3ForCausalLM(config).to("cuda", dtype)


def pooled(hidden_BTH: Tensor, layout: TokenLayout, window: int = 10) -> list[Tensor]:
    """Mean of the last tokens of both parts, by a plain loop over the rollouts of a padded batch."""
    width, rows = layout.prompt_ids_BP.shape[1], []
    for i in range(len(hidden_BTH)):
        prompt = layout.prompt_mask_BP[i].nonzero().flatten()[-window:]
        response = layout.response_mask_BC[i].nonzero().flatten()
        ends = (layout.response_ids_BC[i] == END).nonzero().flatten()
        reasoning = response[response <= ends[0]] if len(ends) else response
        rows.append([hidden_BTH[i, part].float().mean(0) for part in (prompt, width + reasoning[-window:])])
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def test_states_are_those_of_transformers() -> None:
    """In one and the same forward pass, so that nothing but the pooling can differ."""
    model, rows = policy(), 16
    ids_BT = torch.randint(6, 64, (rows, 96), device="cuda")
    ids_BT[: rows // 2, 60] = END
    lengths_B = torch.arange(rows, device="cuda")
    place_T = torch.arange(48, device="cuda")
    prompt_mask_BP, response_mask_BC = place_T >= lengths_B[:, None], place_T < 48 - 2 * lengths_B[:, None]
    layout = TokenLayout.padded(ids_BT[:, :48], prompt_mask_BP, ids_BT[:, 48:], response_mask_BC)
    capture = StateCapture(model, StateSpec(3, 6, end_of_reasoning=(END,)))
    mask_BT = torch.cat([prompt_mask_BP, response_mask_BC], 1).long()
    with torch.no_grad(), capture.armed(layout) as states:
        hidden = model(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True).hidden_states
    assert states.prompt_BH.dtype == torch.float32
    torch.testing.assert_close(states.prompt_BH, pooled(hidden[3], layout)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states.reasoning_BH, pooled(hidden[6], layout)[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient checkpointing"])
@pytest.mark.parametrize("mode", ["train", "old", "extra"])
def test_trainer_reads_the_states_of_its_own_rollouts(mode: str, checkpointing: bool, tmp_path: Path) -> None:
    """Learning rate zero, so that the policy can be asked again afterwards; tolerance for bfloat16 in other batches."""
    trainer = tiny_policy.trainer(
        tmp_path,
        model=policy(),
        use_cpu=False,
        bf16=True,
        learning_rate=0.0,
        max_steps=2,
        gradient_checkpointing=checkpointing,
        **tiny_policy.LAYOUTS[mode],
    )
    assert trainer.capture_mode == mode
    batches: list[dict[str, Tensor]] = []
    seen: list[Rollouts] = []
    generate, credit = trainer._generate_and_score_completions, trainer.estimator.credit

    def note_batch(inputs: Any) -> Any:
        output = generate(inputs)
        batches.append({name: value for name, value in output.items() if isinstance(value, Tensor)})
        return output

    def note_rollouts(rollouts: Rollouts) -> Any:
        seen.append(rollouts)
        return credit(rollouts)

    trainer._generate_and_score_completions, trainer.estimator.credit = note_batch, note_rollouts
    trainer.train()
    batch, model = batches[0], trainer.model
    layout = TokenLayout.padded(
        *(batch[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"))
    )
    inputs = {name: torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], 1) for name in ("ids", "mask")}
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        hidden = model(inputs["ids"], attention_mask=inputs["mask"], output_hidden_states=True).hidden_states
    wanted = pooled(hidden[LAYERS // 2], layout)
    for name, wanted_BH in zip(("prompt_BH", "reasoning_BH"), wanted, strict=True):
        found_BH = torch.cat([getattr(part.features, name) for part in seen])[: len(wanted_BH)]
        assert found_BH.device.type == "cuda"
        error_BB = torch.cdist(found_BH, wanted_BH) / wanted_BH.norm(dim=1)  # the trainer may credit in another order
        assert float(error_BB.amin(0).max()) < 0.02
        assert float(error_BB.amin(1).max()) < 0.02
        assert float(error_BB.median()) > 0.1, "rollouts are told apart"


def test_the_probe_is_the_cpus_and_deterministic() -> None:
    """Credit and update over six batches, on either device and twice on the GPU."""

    def batches(device: str) -> list[Rollouts]:
        made = torch.Generator().manual_seed(0)
        found = []
        for _ in range(6):
            prompt_BH, reasoning_BH = (torch.randn(256, 512, generator=made) for _ in range(2))
            rewards_B = (prompt_BH[:, 0] + reasoning_BH[:, 1] + torch.randn(256, generator=made) > 0).float()
            entropy_B3, scores_B = torch.rand(256, 3, generator=made), torch.rand(256, generator=made).to(device)
            states = (part.to(device) for part in (prompt_BH, reasoning_BH, entropy_B3))
            features = Features(*states, squared_score_B=scores_B)
            group_B = torch.arange(256, device=device) // 2
            found.append(Rollouts(rewards_B.to(device), group_B, features, weights_B=scores_B))
        return found

    def baselines(device: str) -> Tensor:
        probe = ProbeConfig(weights="score", sibling_outcome=True)
        estimator, found = ValueEstimator(EstimatorConfig(probe=probe, cold_start_rows=256)), []
        for rollouts in batches(device):
            credit = estimator.credit(rollouts)
            found.append(credit.baselines_B.cpu())
            estimator.update(credit)
        return torch.cat(found)

    on_gpu = baselines("cuda")
    assert torch.equal(on_gpu, baselines("cuda"))
    torch.testing.assert_close(on_gpu, baselines("cpu"), atol=1e-4, rtol=1e-4)


def test_training_learns(tmp_path: Path) -> None:
    """A random policy learns to open with a digit, in bfloat16 autocast over float32 weights."""
    trainer = tiny_policy.trainer(
        tmp_path,
        model=policy(torch.float32),
        use_cpu=False,
        bf16=True,
        learning_rate=1e-4,
        max_steps=40,
        per_device_train_batch_size=64,
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    first, last = (sum(part) / len(part) for part in (rewards[:8], rewards[-8:]))
    assert last > first + 0.2, rewards
