"""What PoiseTrainer relies on inside TRL, said once, checked when a trainer is built.

TRL has no advantage hook, so a subclass is the supported way in; the price is a handful of private names. A release
that moves one of them must fail with a sentence here, not with a wrong gradient later.
"""

from __future__ import annotations

import inspect

import trl
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from poise.errors import ConfigError

# Method of GRPOTrainer -> parameters that we pass or read.
METHODS: dict[str, tuple[str, ...]] = {
    "_get_per_token_logps_and_entropies": (
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
    ),
    "_get_train_sampler": ("dataset",),
    "_generate": ("prompts",),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_and_score_completions": ("inputs",),
    "_prepare_inputs": ("generation_batch",),
    "_compute_loss": ("model", "inputs"),
    "training_step": ("model", "inputs", "num_items_in_batch"),
    "_maybe_log_save_evaluate": (),
    "_save_checkpoint": ("model", "trial"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_get_output_dir": ("trial",),
}
# Names that the methods above must still mention: attributes we set, keys we replace.
MENTIONS: dict[str, tuple[str, ...]] = {
    "__init__": (
        "self._buffered_inputs = ",
        "self._step = ",
        "self._logs = ",
        "self._metrics = ",
        "self._tokenizer = ",
        "self._is_vlm = ",
        "self.reward_funcs = ",
        "self.reward_func_names = ",
        "self.reward_weights = ",
        "self.num_iterations = ",
        "self.environment_factories = ",
        "self.vllm_importance_sampling_correction = ",
    ),
    "_get_train_sampler": ("RepeatSampler(", "seed=self.args.seed"),
    "_prepare_inputs": ("_buffered_inputs", "_step % generate_every", "split_tensor_dict", "shuffle_sequence_dict"),
    "_generate": ("return prompt_ids, completion_ids, tool_mask, ",),
    "_generate_and_score_completions": (
        "gradient_accumulation_steps % generate_every != 0",
        "self._calculate_rewards(",
        '"advantages": advantages',
        '_logs["advantages"]',
        '_logs["extra"]',
        '"prompt_mask"',
        '"completion_mask"',
        '"num_items_in_batch"',
    ),
    "_compute_loss": ('inputs["advantages"]', '"tool_mask" not in inputs', "self._get_per_token_logps_and_entropies("),
    "training_step": ("self._step += 1",),
}


def check() -> None:
    """Compare the installed TRL with what this package was built on.

    Raises:
        ConfigError: a private method or name that PoiseTrainer overrides or sets is gone or has changed.
    """
    missing = [
        f"GRPOTrainer.{name}({', '.join(parameters)})"
        for name, parameters in METHODS.items()
        if not hasattr(GRPOTrainer, name)
        or not set(parameters) <= set(inspect.signature(getattr(GRPOTrainer, name)).parameters)
    ]
    for name, mentions in MENTIONS.items():
        source = inspect.getsource(getattr(GRPOTrainer, name, GRPOTrainer))
        missing += [f"{mention!r} in GRPOTrainer.{name}" for mention in mentions if mention not in source]
    missing += [
        name
        for name in ("split_tensor_dict", "disable_gradient_checkpointing", "get_callable_name", "is_async_callable")
        if not hasattr(grpo_trainer, name)
    ]
    if missing:
        raise ConfigError(
            f"trl {trl.__version__} has moved what PoiseTrainer builds on ({'; '.join(missing)}); install a release "
            "that poise-rl was tested with (trl>=1.16,<1.17)"
        )
