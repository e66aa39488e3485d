"""What the engine captures in each layout of verl's old-log-prob forward equals transformers' hidden states."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("verl")
from capture_cases import CASES, END, RANKS, TEMPERATURE, Case, rollouts_of
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

pytestmark = [pytest.mark.verl, pytest.mark.timeout(500)]
SCRIPT = Path(__file__).parent / "support" / "capture_cases.py"
WINDOW, HIDDEN = 3, 32


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random four-block Qwen3s with and without tied embeddings, and a random LoRA adapter."""
    folder = tmp_path_factory.mktemp("capture")
    torch.manual_seed(0)
    for name, is_tied in (("tied", True), ("untied", False)):
        model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=64,
                hidden_size=HIDDEN,
                intermediate_size=64,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                tie_word_embeddings=is_tied,
            )
        )
        with torch.no_grad():  # the usual init of 0.02 gives entropies that are all alike
            model.lm_head.weight.mul_(40)
        model.save_pretrained(folder / name)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def captured(model_folder: Path) -> list[dict[str, Any]]:
    """Each rank's results of all cases."""
    subprocess.run([sys.executable, str(SCRIPT), str(model_folder)], check=True, timeout=450)
    return [torch.load(model_folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_transformers(case: Case, captured: list[dict[str, Any]], model_folder: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model_folder / case.model, attn_implementation="eager").eval()
    if case.lora:
        reference = PeftModel.from_pretrained(reference, model_folder / "adapter").eval()
    for results in captured:
        result = results[case.name]
        assert "error" not in result, result["error"]
        rows = result["rows"]
        for row, (prompt, response, mask) in enumerate(zip(*rollouts_of(result["data_rank"]), strict=True)):
            expected = expected_features(reference, prompt, response, mask)
            for part, value in expected.items():
                torch.testing.assert_close(
                    rows[f"poise_{part}"][row],
                    value,
                    atol=2e-5,
                    rtol=0,
                    equal_nan=True,
                    msg=lambda text, row=row, part=part: f"{part} of row {row}: {text}",
                )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_only_pooled_vectors_leave_the_worker_and_only_on_request(case: Case, captured: list[dict[str, Any]]) -> None:
    for results in captured:
        result = results[case.name]
        assert result["unasked"] == ["entropy", "log_probs"]
        shapes = {name: {tuple(row.shape) for row in rows} for name, rows in result["rows"].items()}
        del shapes["entropy"], shapes["log_probs"]
        assert shapes == {
            "poise_prompt": {(HIDDEN,)},
            "poise_reasoning": {(HIDDEN,)},
            "poise_entropy": {(3,)},
            "poise_seconds": {(1,)},
        }
        assert all(float(seconds) > 0 for seconds in result["rows"]["poise_seconds"])


def test_the_ranks_saw_different_rollouts_unless_they_share_a_sequence(captured: list[dict[str, Any]]) -> None:
    data_ranks = {name: [results[name]["data_rank"] for results in captured] for name in ("packed-dynamic", "ulysses")}
    assert data_ranks == {"packed-dynamic": [0, 1], "ulysses": [0, 0]}


def expected_features(model: Any, prompt: Tensor, response: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The features of one rollout by plain loops over its tokens, from transformers' own outputs."""
    with torch.no_grad():
        output = model(torch.cat([prompt, response])[None], output_hidden_states=True)
    first = len(prompt)
    written = [position for position in range(len(response)) if mask[position]]
    end = next((p for p in written if tuple(response[p - 1 : p + 1].tolist()) == END), None)
    reasoning = [p for p in written if end is None or p <= end]
    answer = [p for p in written if end is not None and p > end]
    log_p = (output.logits[0] / TEMPERATURE).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)

    def mean_state(layer: int, positions: list[int]) -> Tensor:
        states = [output.hidden_states[layer][0, position] for position in positions[-WINDOW:]]
        return torch.stack(states).mean(0) if states else torch.full_like(output.hidden_states[layer][0, 0], torch.nan)

    def mean_entropy(positions: list[int]) -> Tensor:
        return torch.stack([entropy[first + p - 1] for p in positions]).mean() if positions else torch.tensor(torch.nan)

    return {
        "prompt": mean_state(1, list(range(first))),
        "reasoning": mean_state(3, [first + position for position in reasoning]),
        "entropy": torch.stack([mean_entropy(part) for part in (written, reasoning, answer)]),
    }
