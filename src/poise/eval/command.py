"""`poise eval`: a model and a task in, a small table on the screen and a JSON out that two runs can be compared by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from poise.errors import ConfigError

if TYPE_CHECKING:
    from poise.eval import Comparison, Evaluation, Sampler, Sampling


@dataclass(frozen=True)
class EvalConfig:
    """Evaluate a model on a task: avg@k, unbiased pass@k and maj@k with bootstrap intervals. Resumable."""

    model: str = "bundled"
    """Folder, run folder, hub name, or "bundled" for the tiny model that comes with the package."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    task: str = "tiny"
    """Task name (aime24, gsm8k, tiny, reasoning-gym:NAME, ...), a local file, or hub:owner/dataset."""
    task_options: tuple[str, ...] = ()
    """Options of the task as name=value, e.g. path=data/aime24.jsonl template=boxed chat=true."""
    split: Literal["test", "train"] = "test"
    """Split of the task."""
    size: int | None = None
    """Number of prompts, drawn by the seed; all of them if not set."""
    reward: tuple[str, ...] = ()
    """Reward that verifies (built-in name or module:function); several are summed. The task's own if not set."""
    reward_weights: tuple[float, ...] = ()
    """One weight per reward; 1 each if not set."""
    k: int = 32
    """Samples per prompt. Published: 32."""
    temperature: float = 0.6
    """Sampling temperature; 0 is greedy (then k must be 1). Published: 0.6."""
    top_p: float = 0.95
    """Nucleus sampling; 1 keeps every token. Published: 0.95."""
    max_new_tokens: int = 8192
    """Length limit of a completion. Published: 8192."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion."""
    template_options: tuple[str, ...] = ()
    """Arguments of the chat template as name=value, e.g. enable_thinking=false."""
    sampler: Literal["hf", "vllm"] = "hf"
    """What generates: transformers, or vLLM (needs poise-rl[vllm])."""
    engine_options: tuple[str, ...] = ()
    """Arguments of vllm.LLM as name=value, e.g. tensor_parallel_size=2 max_model_len=16384 (vLLM only)."""
    batch_size: int = 64
    """Sequences generated at once (transformers only)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; auto takes bfloat16 on a GPU that has it and float32 on a CPU."""
    device: str = "auto"
    """Where the model runs: auto, cpu, cuda, cuda:1, ..."""
    correct_at: float = 1.0
    """Score from which a sample counts as correct in pass@k and maj@k."""
    seed: int = 0
    """Seed of the drawn prompts, the sampling and the intervals."""
    out: str | None = None
    """Folder for evaluation.json and samples.jsonl; runs/eval/MODEL-TASK if not set. Run again to resume."""
    against: str | None = None
    """Another run's folder or evaluation.json, for a paired test of this model against that one."""


def run(config: EvalConfig) -> int:
    """Evaluates, prints, writes; returns the exit code. Errors of the user's are PoiseErrors for the caller to print.

    Raises:
        PoiseError: something asked for does not exist or cannot work.
    """
    from rich.console import Console
    from rich.progress import Progress

    from poise.eval import Evaluation, compare, evaluate_with
    from poise.eval.store import prompt_key
    from poise.runs.prompts import answers_as_text, judged
    from poise.tasks import load_task, named_options

    # What can be wrong cheaply is found before a model is loaded.
    if config.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {config.seed}")
    if not math.isfinite(config.correct_at):
        raise ConfigError(f"--correct-at must be a finite number, got {config.correct_at}")
    other = Evaluation.from_json(_evaluation_file(config.against)) if config.against else None
    options = named_options("task", config.task_options)
    dataset = load_task(config.task, config.split, config.size, config.seed, **options)
    dataset, verify, reward = judged(dataset, config.task, config.reward, config.reward_weights)
    if other is not None and not {prompt_key(dict(row)) for row in dataset} & {result.key for result in other.results}:
        raise ConfigError(
            f"none of these {len(dataset)} prompts is among the {len(other.results)} of --against {config.against}; "
            "compare on the same task, split and template"
        )
    sampling = _sampling(config)
    out = Path(config.out or Path("runs", "eval", f"{slug(config.model)}-{slug(config.task)}"))
    console = Console()
    for note in answers_as_text(dataset, options, config.reward):
        console.print(f"note: {note}", highlight=False, markup=False)
    sampler = load_sampler(config)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("sampling", total=len(dataset))
        found = evaluate_with(
            sampler,
            dataset,
            verify,
            sampling,
            samples_path=out / "samples.jsonl",
            settings={**_described(config), "reward": reward},
            correct_at=config.correct_at,
            on_prompt=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    found.to_json(out / "evaluation.json")
    console.print(table(found, f"{config.model} on {config.task}"))
    if other is not None:
        console.print(verdict(compare(other, found), config.against or "", config.model))
    console.print(f"written to {out / 'evaluation.json'}", highlight=False)
    return 0


def table(found: Evaluation, title: str) -> Any:
    """The estimates of an evaluation as a rich table."""
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for column, justify in (("measure", "left"), ("value", "right"), ("95% interval", "right"), ("prompts", "right")):
        shown.add_column(column, justify=justify)
    most = max(found.pass_at, default=1)
    rows = [(f"avg@{most}", found.average)]
    rows += [(f"pass@{k}", estimate) for k, estimate in found.pass_at.items() if k > 1]
    rows += [(f"maj@{most}", found.majority)] if found.majority is not None and most > 1 else []
    if len(found.domains) > 1:
        rows += [(f"  avg@{most}, {domain}", estimate) for domain, estimate in found.domains.items()]
    for name, estimate in rows:
        interval = f"{estimate.low:.3f} - {estimate.high:.3f}"
        shown.add_row(name, f"{estimate.mean:.3f}", interval, str(estimate.prompts))
    shown.add_row("truncated", f"{found.truncated:.1%}", "", "")
    shown.add_row("tokens a sample", f"{found.tokens:.0f}", "", "")
    if found.failed:
        most_common = next(iter(found.failures))
        shown.add_row(
            "[red]failed verifications", f"[red]{found.failed} of {found.samples}", f"[red]{most_common[:40]}", ""
        )
    return shown


def verdict(comparison: Comparison, other: str, model: str) -> str:
    """One sentence that says what a paired comparison found."""
    difference = comparison.difference
    sentence = (
        f"{model} {comparison.second:.3f} against {other} {comparison.first:.3f}: difference {difference.mean:+.3f} "
        f"[{difference.low:+.3f}, {difference.high:+.3f}], p = {comparison.p_value:.4f}, "
        f"paired over {comparison.prompts} prompts"
    )
    alone = comparison.only_first + comparison.only_second
    sentence += f" ({alone} prompts are in one run only)" if alone else ""
    unlike = ", ".join(f"{name} {now!r} against {then!r}" for name, (then, now) in comparison.unlike.items())
    return sentence + (f"; the two were not measured alike: {unlike}" if unlike else "")


def _evaluation_file(place: str) -> Path:
    path = Path(place)
    return path / "evaluation.json" if path.is_dir() else path


def _sampling(config: EvalConfig) -> Sampling:
    from poise.eval import Sampling
    from poise.tasks import named_options

    return Sampling(
        k=config.k,
        temperature=config.temperature,
        top_p=config.top_p,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        seed=config.seed,
        stop=config.stop,
        template=named_options("template", config.template_options),
    )


def load_sampler(config: EvalConfig) -> Sampler:
    """The model and its tokenizer on the device, as something that samples.

    Raises:
        ConfigError: the model cannot be loaded, or an option has no meaning for it.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from poise.eval import HFSampler
    from poise.runs.policy import locate
    from poise.tasks import named_options

    name = locate(config.model, config.revision)
    if config.engine_options and config.sampler == "hf":
        raise ConfigError(f"--engine-options {' '.join(config.engine_options)} are vLLM's; add --sampler vllm")
    cuda = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    device = config.device if config.device != "auto" else "cuda" if cuda else "cpu"
    half = cuda and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    dtype = config.dtype if config.dtype != "auto" else "bfloat16" if half else "float32"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=config.revision)
        if config.sampler == "vllm":
            from poise.eval.vllm_sampler import VLLMSampler

            given = {"dtype": dtype, "revision": config.revision, "seed": config.seed}
            return VLLMSampler(name, tokenizer, **{**given, **named_options("engine", config.engine_options)})
        model = AutoModelForCausalLM.from_pretrained(name, revision=config.revision, dtype=getattr(torch, dtype))
        return HFSampler(model.to(device), tokenizer)
    except (OSError, TypeError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"cannot load the model {config.model!r}: {' '.join(str(error).split())[:300]}") from error


def _described(config: EvalConfig) -> dict[str, Any]:
    names = ("model", "revision", "task", "task_options", "split", "size", "sampler", "dtype")
    return {**{name: getattr(config, name) for name in names}, "weights": weights_of(config.model)}


def weights_of(model: str) -> str | None:
    """Sizes and times of a local model's weight files: samples of a model that was trained on since are not resumed."""
    from poise.runs.policy import locate

    files = sorted(Path(locate(model)).glob("*.safetensors"))
    return "; ".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files) or None


def slug(name: str) -> str:
    """A name that a folder can have."""
    return "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in name).strip("-.") or "model"
