"""POISE learns: the bundled model, trained by the real trainer, gets better at both families, for every seed."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from poise.eval import evaluate
from poise.models import bundled
from poise.rewards import as_trl_reward, resolve
from poise.tasks import load_task, reward_of
from poise.trl import PoiseConfig, PoiseTrainer

STEPS, ROLLOUTS = 10, 256
# Held-out accuracy must rise by this much on either family; README's demo trains three times as long.
MARGIN = 0.08


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_accuracy_rises(seed: int, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled())
    policy = AutoModelForCausalLM.from_pretrained(bundled())
    verify, held_out = resolve(reward_of("tiny")), load_task("tiny", "test", size=512, seed=0)

    def accuracies() -> dict[str, float]:
        found = evaluate(
            policy, tokenizer, held_out, verify, k=1, temperature=1.0, top_p=1.0, max_new_tokens=48, batch_size=256
        )
        return {name: part.mean for name, part in found.domains.items()}

    config = PoiseConfig(
        output_dir=str(tmp_path),
        learning_rate=3e-4,
        warmup_steps=4,
        lr_scheduler_type="constant_with_warmup",
        adam_beta2=0.99,
        per_device_train_batch_size=64,
        gradient_accumulation_steps=2,
        steps_per_generation=ROLLOUTS // 64,
        max_steps=2 * STEPS,
        max_completion_length=48,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=seed,
    )
    before = accuracies()
    prompts = load_task("tiny", "train", size=STEPS * ROLLOUTS // 2, seed=seed)
    trainer = PoiseTrainer(policy, as_trl_reward(verify), config, prompts, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    after = accuracies()
    print(f"seed {seed}: held-out accuracy {before} -> {after}")
    assert len(after) == 2
    assert all(after[name] > before[name] + MARGIN for name in after)
