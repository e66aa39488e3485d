"""Every setting of a training run: one frozen dataclass per stage, in the order of the flow.

The field's name is the TOML key (`[generation] temperature = 1.0`) and, with dashes, the flag (`--temperature 1.0`), so
names are unique across stages. Defaults are the published ones where a paper gives them and no preset decides
(core/presets.py), scaled down where a run of 512 x 2 rollouts of 8,192 tokens would not fit one machine. This file
imports nothing heavy: `--help` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Baseline = Literal[
    "probe", "prompt-probe", "auto", "leave-one-out", "shrinkage", "tracker", "critic", "group-mean", "none"
]


@dataclass(frozen=True)
class ModelSettings:
    """The policy that is trained."""

    model: str = "bundled"
    """Folder, finished run folder, hub name, or "bundled" for the tiny model that comes with the package."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward pass (trained weights stay in float32); auto is bfloat16 on a GPU that has it."""
    attention: str | None = None
    """Attention implementation, e.g. sdpa, eager, flash_attention_2; the library's choice if not set."""
    lora_rank: int = 0
    """Rank of LoRA adapters; 0 trains all weights. Needs `pip install poise-rl[peft]`."""
    lora_alpha: float = 32.0
    """Scale of the LoRA update (it is multiplied by alpha / rank)."""
    lora_dropout: float = 0.0
    """Dropout inside the adapters."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Names of the layers that get adapters."""
    lora_blocks: int = 0
    """Adapters in this many of the last blocks only; the backward pass ends there. 0 puts them in all blocks."""


@dataclass(frozen=True)
class DataSettings:
    """Where prompts come from: a named task, or a dataset with a `prompt` column (text or messages)."""

    task: str | None = None
    """Named task: tiny, chain_sum, gsm8k, reasoning-gym:NAME, ...; "tiny" if neither task nor data is set."""
    data: str | None = None
    """JSONL, JSON, CSV or parquet file, or a hub dataset (owner/name), instead of a named task."""
    task_options: tuple[str, ...] = ()
    """Options of the task as name=value, e.g. max_terms=4, template=dapo, test_file=held_out.jsonl."""
    prompt_column: str = "prompt"
    """Column of the data that holds the prompt."""
    answer_column: str = "answer"
    """Column of the data that holds the ground truth."""
    domain_column: str = "domain"
    """Column of the data that names each row's domain (one probe per domain), where there is one."""
    train_size: int | None = None
    """Training prompts, drawn with data_seed; all of them if not set (a procedural task: what the run needs)."""
    eval_size: int = 256
    """Held-out prompts, at most; 0 turns evaluation off."""
    eval_task: str | None = None
    """Task, file (all of it) or hub:owner/name to evaluate on instead of the held-out split of the training task."""
    data_seed: int = 0
    """Draws (or generates) the prompts; which of them a step trains on follows `seed`."""
    max_prompt_tokens: int = 2048
    """Longer prompts are dropped before the run, and counted."""


@dataclass(frozen=True)
class RewardSettings:
    """What is verified."""

    reward: tuple[str, ...] = ()
    """Built-in name, `package.module:function` or `file.py:function`; several are summed. Default: the task's own."""
    reward_weights: tuple[float, ...] = ()
    """One weight per reward; 1 each if not set."""
    reward_timeout: float | None = None
    """Seconds after which a call of a reward function counts as failed; no limit if not set."""


@dataclass(frozen=True)
class PoiseSettings:
    """Where baselines come from, and the probe behind them."""

    baseline: Baseline | None = None
    """probe (POISE as published), prompt-probe (from the prompt alone), auto (what did best so far: a combination of
    these and the means), leave-one-out (RLOO), shrinkage (James-Stein), tracker (SPO), critic (PPO), group-mean (GRPO),
    or none. Preset default: auto; preset paper: probe."""
    prompt_layer: float = 0.5
    """Block whose output describes the prompt: index from 1, negative index, or fraction of depth."""
    reasoning_layer: float = 0.5
    """The same for the reasoning part."""
    state_window: int = 10
    """How many of the last tokens of each part are averaged. Published: 10 to 32."""
    end_of_reasoning: str = "</think>"
    """Text that closes the reasoning; without effect if the tokenizer has no such token."""
    probe_head: Literal["ridge", "logistic"] = "ridge"
    """The probe's regression; logistic is for rewards between two bounds."""
    prompt_components: int = 32
    """Principal components kept of the prompt state; -1 keeps the state as it is."""
    reasoning_components: int = 64
    """Principal components kept of the reasoning state; -1 keeps the state as it is."""
    probe_alpha: float = 100.0
    """L2 penalty of the probe; -1 takes the one that erred least on past batches."""
    probe_clip: tuple[float, ...] = ()
    """Two bounds that predictions are clipped to; learned from the rewards if not set."""
    preset: Literal["default", "paper"] = "default"
    """paper is the published form of POISE; a preset decides what is not set of the baseline, the probe's weights, the
    sibling's outcome and the cold start."""
    probe_weights: Literal["none", "score"] | None = None
    """score fits with squared scores as weights: the baseline of least gradient variance; none fits expected reward.
    Preset default: score; preset paper: none."""
    probe_sibling_outcome: bool | None = None
    """The probe also sees the reward of the sibling whose states it sees, and how unsure the policy was of it. Preset
    default: yes; preset paper: no."""
    buffer_capacity: int = 4096
    """Rollouts in the rolling buffer that the probe is fitted on, per domain."""
    cold_start_rows: int | None = None
    """Rollouts the probe must have been fitted on before it takes over from leave-one-out; with auto, those from which
    on a domain has a probe of its own. Preset default: 256; preset paper: 1."""
    cold_start_steps: int | None = None
    """Steps with leave-one-out baselines before the probe takes over; not with auto. Preset default: 0; preset paper:
    16."""
    capture: Literal["auto", "extra"] = "auto"
    """auto reads the states off a forward pass that runs anyway; extra runs one for them."""
    dynamic_sampling: bool = False
    """DAPO: drop prompts whose rollouts all earn the same, and sample others until the step is full; for group-mean."""
    max_sampling_rounds: int = 10
    """Dynamic sampling: rounds per step, after which training goes on with what there is. DAPO's code: 10."""
    tracker_prior: float = 0.5
    """Baseline tracker: value of a prompt before any reward was seen."""
    tracker_half_life: float = 16.0
    """Baseline tracker: steps after which a prompt's past rewards weigh half."""
    whiten_advantages: bool = False
    """Subtract the mean of a step's advantages and divide by their deviation; for tracker (SPO), critic (PPO), none."""
    critic_learning_rate: float = 1e-5
    """Baseline critic: its AdamW learning rate. verl's default."""
    gae_lambda: float = 1.0
    """Baseline critic: how far advantages trust rewards (1) over the critic's next value (0). verl's default."""
    critic_clip: float = 0.0
    """Baseline critic: values move at most so far per step; 0 sets no bound. verl's default: 0.5."""
    scale_rewards: Literal["none", "group", "batch"] = "none"
    """Divide advantages by a standard deviation; only for group-mean, where it makes GRPO."""


@dataclass(frozen=True)
class OptimisationSettings:
    """The policy update."""

    steps: int = 100
    """Steps; a step is one batch of fresh rollouts and the updates made with it."""
    rollout_budget: int = 0
    """Stop after the step in which so many rollouts have been sampled, if `steps` are not reached before; 0 never."""
    prompts_per_step: int = 32
    """Different prompts in a step. Published: 256 to 1024."""
    rollouts_per_prompt: int = 2
    """Rollouts of each prompt; 1 only for baselines that need no sibling. Published: 2."""
    updates_per_step: int = 1
    """Optimiser updates per step, each on its own share of the step's prompts. Published: 16 to 32 prompts each."""
    micro_batch: int = 0
    """Rollouts per device in one forward and backward pass; 0 takes the largest share up to 16."""
    learning_rate: float = 1e-6
    """AdamW learning rate. Published: 1e-6, for billions of parameters; the bundled model wants 3e-4."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up."""
    warmup_updates: int = 0
    """Updates over which the learning rate rises to its value."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    adam_beta2: float = 0.999
    """Decay of AdamW's second moment; 0.99 adapts faster in short runs."""
    max_grad_norm: float = 1.0
    """Gradient norm is clipped to this."""
    update_norm: float = 0.0
    """Stretch or shrink every update to this L2 norm, times the schedule's share; 0 takes the optimiser's as it is."""
    clip_low: float = 0.2
    """The probability ratio is clipped below 1 - clip_low."""
    clip_high: float = 0.28
    """The probability ratio is clipped above 1 + clip_high."""
    dual_clip: float = 10.0
    """Bound on the probability ratio of rollouts with a negative advantage."""
    kl_weight: float = 0.0
    """Weight of the KL penalty to the starting policy; 0 loads no reference model."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""


@dataclass(frozen=True)
class GenerationSettings:
    """How training rollouts are sampled."""

    max_completion_tokens: int = 512
    """A rollout is cut after this many tokens. Published: 8192."""
    temperature: float = 1.0
    """Sampling temperature."""
    top_p: float = 1.0
    """Nucleus sampling; 1 keeps every token."""
    vllm: bool = False
    """Generate with vLLM on the same device. Needs `pip install poise-rl[vllm]`."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Held-out accuracy before, during and after the run."""

    eval_every: int = 0
    """Steps between evaluations; 0 evaluates before and after only."""
    eval_samples: int = 1
    """Completions per held-out prompt. Published: 32."""
    eval_temperature: float = 1.0
    """Sampling temperature; 0 is greedy. Published: 0.6."""
    eval_top_p: float = 1.0
    """Nucleus sampling. Published: 0.95."""
    eval_batch: int = 64
    """Completions generated at once."""
    measure_drift: bool = False
    """Log the norm of every update, and with each evaluation distance and KL from the start (kept in memory)."""
    track_every: int = 0
    """Steps between comparisons of the step's baselines with fresh rollouts of its prompts; 0 never. Published: 10."""
    track_samples: int = 8
    """Fresh rollouts per prompt, which are not trained on. Published: 8."""


@dataclass(frozen=True)
class RunSettings:
    """Where the run is written, and what can be repeated of it."""

    out: str = "runs/poise"
    """Run folder; an existing run is never overwritten."""
    seed: int = 0
    """Seed of prompt order, sampling and new weights: same seed, same run."""
    save_every: int = 10
    """Steps between checkpoints, which a killed run resumes from; 0 saves the final model only."""
    keep_checkpoints: int = 2
    """Complete checkpoints kept; older ones are deleted."""
    report_to: tuple[Literal["trackio", "wandb", "tensorboard"], ...] = ()
    """Trackers that are fed besides the run folder."""
    report: bool = True
    """Draw plots and write the report when the run ends; `poise report` does so at any time."""
    deterministic: bool = False
    """Refuse GPU kernels whose result may differ between two runs; slower."""


@dataclass(frozen=True)
class TrainSettings:
    """Train a language model with verifiable rewards and the value baseline it already computes."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    poise: PoiseSettings = field(default_factory=PoiseSettings)
    optimisation: OptimisationSettings = field(default_factory=OptimisationSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    run: RunSettings = field(default_factory=RunSettings)
