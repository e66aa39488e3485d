"""A random tiny policy with a character tokenizer, a prompt set and a reward it can learn: for tests of the trainer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from poise.trl import PoiseConfig, PoiseTrainer

SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<think>", "</think>"]
CHARACTERS = list("0123456789+-*=() abcdefghijklmnopqrstuvwxyz.,:?\n")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ m.get('tool_calls', '') }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)

# Batch layouts, one for each place where the trainer reads internal states.
LAYOUTS: dict[str, dict[str, Any]] = {
    "train": {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 8},
    "old": {"per_device_train_batch_size": 16, "steps_per_generation": 2},
    "extra": {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 3},
}


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(SPECIALS + CHARACTERS)}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    characters.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
        additional_special_tokens=["<think>", "</think>"],
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def model(seed: int = 0, layers: int = 4, tied: bool = True, experts: int = 0) -> Any:
    tok = tokenizer()
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tied,
        "pad_token_id": tok.pad_token_id,
        "eos_token_id": tok.eos_token_id,
        "bos_token_id": tok.bos_token_id,
    }
    if experts:
        shape |= {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        made: Any = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape))
    else:
        made = Qwen3ForCausalLM(Qwen3Config(**shape))
    made.generation_config.pad_token_id = tok.pad_token_id
    made.generation_config.eos_token_id = tok.eos_token_id
    return made


def prompts(count: int = 256, conversational: bool = False) -> Dataset:
    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        text = f"{a}+{b}=" + "?" * rng.randint(0, 6)
        prompt = [{"role": "user", "content": text}] if conversational else text
        rows.append({"prompt": prompt, "target": str(a + b), "domain": "small" if a + b < 20 else "large"})
    return Dataset.from_list(rows)


def reward(completions: list[Any], target: list[str], **columns: Any) -> list[float]:
    """1 if any digit of the sum is among the first eight characters: neither always nor never true of noise."""
    texts = [completion if isinstance(completion, str) else completion[0]["content"] for completion in completions]
    return [float(any(digit in text[:8] for digit in sum_)) for text, sum_ in zip(texts, target, strict=True)]


def config(folder: Path, **settings: Any) -> PoiseConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 32,
        "max_steps": 1,
        "max_completion_length": 12,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 1,
        "dataloader_pin_memory": False,
        "baseline": "probe",
        "cold_start_rows": 8,
        "prompt_components": 4,
        "reasoning_components": 4,
    }
    return PoiseConfig(**(defaults | settings))


def trainer(folder: Path, reward_funcs: Any = reward, **settings: Any) -> PoiseTrainer:
    others = ("peft_config", "callbacks", "rollout_func", "environment_factory", "eval_dataset")
    extra = {name: settings.pop(name) for name in others if name in settings}
    dataset = settings.pop("train_dataset", None) or prompts()
    policy = settings.pop("model", None) or model()
    return PoiseTrainer(
        model=policy,
        reward_funcs=reward_funcs,
        args=config(folder, **settings),
        train_dataset=dataset,
        processing_class=tokenizer(),
        **extra,
    )
