"""The shared rollouts through the TRL adapter: `python trl_side.py FOLDER OUT`.

A process of its own, for verl 0.9.1 does not start where a trl is importable that lacks its old value-head model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from capture_cases import TEMPERATURE
from datasets import Dataset
from shared_rollouts import PER_PROMPT, SOURCES, SPEC, credited, rollouts_of_step
from tokenizers import Tokenizer as Vocabulary
from tokenizers import models
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from poise.core import Rollouts, StateCapture
from poise.trl import PoiseConfig, PoiseTrainer
from poise.trl.batch import domains_of


def trainer_of(folder: Path) -> PoiseTrainer:
    words = {f"t{index}": index for index in range(64)}
    vocabulary = Vocabulary(models.WordLevel(words, unk_token="t3"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="t0", eos_token="t1", unk_token="t3")
    args = PoiseConfig(
        str(folder / "trl"),
        per_device_train_batch_size=8,
        num_generations=PER_PROMPT,
        temperature=TEMPERATURE,
        bf16=False,
        report_to="none",
        use_cpu=True,
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = Dataset.from_list([{"prompt": "t10"}] * 8)
    trainer = PoiseTrainer(model, _no_reward, args, rows, processing_class=tokenizer)
    # Ends of reasoning by id: this vocabulary cannot write one.
    trainer._capture.states = StateCapture(trainer.model, SPEC)
    return trainer


def _no_reward(completions: list[str], **columns: object) -> list[float]:
    return [0.0] * len(completions)


def padded(rows: list[Tensor], left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and mask, padded on one side."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        where = slice(width - len(tokens), None) if left else slice(0, len(tokens))
        ids[row, where], mask[row, where] = tokens, 1
    return ids, mask


def rollouts_by(trainer: PoiseTrainer, step: int) -> Rollouts:
    """As TRL lays a step out: prompts padded on the left, completions on the right, groups adjacent."""
    prompts, responses, rewards_B = rollouts_of_step(step)
    prompt_ids, prompt_mask = padded(prompts, left=True)
    completion_ids, completion_mask = padded(responses, left=False)
    seen = trainer._capture.extra_forward(
        {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": completion_ids,
            "completion_mask": completion_mask,
        }
    )
    domains_B = domains_of([{"domain": source} for source in SOURCES], "domain", torch.device("cpu"))
    return Rollouts(rewards_B, torch.arange(8) // trainer.num_generations, seen.features, domains_B, seen.weights_B)


if __name__ == "__main__":
    from_trl = trainer_of(Path(sys.argv[1]))
    torch.save(credited(lambda step: rollouts_by(from_trl, step)), sys.argv[2])
