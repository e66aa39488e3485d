"""The policy of a run: from a name to its folder, its tokenizer, its shape, and how its weights are loaded."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.errors import ConfigError
from poise.runs.configfile import suggest
from poise.runs.folder import RunFolder
from poise.runs.settings import ModelSettings

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass
class Policy:
    """What is known about the policy before its weights are loaded.

    Args:
        name: what transformers loads: a folder or a hub name.
        tokenizer: padded on the left, with a pad token.
        config: architecture.
        skeleton: the model without weights (meta device), to look at its layers.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    skeleton: nn.Module


def locate(name: str, revision: str | None = None) -> str:
    """Folder or hub name of a model: "bundled", a run folder (its final model, else its last complete checkpoint), ...

    Raises:
        ConfigError: a folder holds no model, or a path that can be no hub name leads nowhere; or a revision is asked
            for, and the model is not on the hub.
    """
    found = _located(name)
    if revision is not None and Path(found).exists():
        raise ConfigError(f"--revision {revision} is one of a hub model, and {name} is not on the hub")
    return found


def _located(name: str) -> str:
    if name == "bundled":
        from poise.models import bundled

        return str(bundled())
    path = Path(name)
    if not path.exists():
        if name.startswith(("/", ".", "~")) or name.count("/") > 1:
            hint = "; a model on the hub is called owner/name" if "://" in name else ""
            raise ConfigError(f"no model {name!r}: there is no such folder{hint}")
        return name
    run = RunFolder(path)
    if run.exists:
        done = [checkpoint.path for checkpoint in run.all_checkpoints() if checkpoint.step is not None]
        path = run.model if _holds_model(run.model) or not done else done[-1]
    if not _holds_model(path):
        raise ConfigError(f"{path} holds no model (no config.json); give a folder that save_pretrained wrote")
    return str(path)


def _holds_model(folder: Path) -> bool:
    """Whether a whole model or adapters for one were saved there."""
    return any((folder / file).exists() for file in ("config.json", "adapter_config.json"))


def look_at(settings: ModelSettings) -> Policy:
    """Tokenizer, configuration and skeleton of a model, without loading its weights.

    Raises:
        ConfigError: there is no such model or revision, or it has no tokenizer or no causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    name = locate(settings.model, settings.revision)
    base = _base_of_adapter(name) or name
    try:
        config = AutoConfig.from_pretrained(base, revision=settings.revision)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=settings.revision, padding_side="left")
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise ConfigError(_why_not(settings.model, name, error)) from error
    _refuse_missing_files(settings.model, name, tokenizer)
    _refuse_no_policy(settings.model, config, tokenizer, skeleton)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {settings.model} has no end-of-sequence token: no rollout would ever end")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Policy(name, tokenizer, config, skeleton)


def _refuse_missing_files(asked: str, name: str, tokenizer: Any) -> None:
    """Refuses a folder without weights or tokenizer: a library would make an empty tokenizer up, or fail much later."""
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ConfigError(
            f"the tokenizer of {asked} knows no token but special ones; are its files (tokenizer.json) there?"
        )
    if not Path(name).is_dir():
        return
    weights = [file for kind in ("*.safetensors", "*.bin", "*.index.json") for file in Path(name).glob(kind)]
    if not weights:
        raise ConfigError(f"{name} holds no weights (no model.safetensors); give a folder that save_pretrained wrote")
    from safetensors import SafetensorError, safe_open

    for file in Path(name).glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"the weights in {file} cannot be read: {error}") from error


def _refuse_no_policy(asked: str, config: Any, tokenizer: Any, skeleton: Any) -> None:
    """Refuses a model that was saved without its language head, and a tokenizer whose tokens it has no rows for."""
    import transformers

    for saved_as in config.architectures or ():
        if not hasattr(getattr(transformers, saved_as, skeleton), "generate"):
            raise ConfigError(f"{asked} was saved as {saved_as}, which generates no text; give a causal language model")
    rows = skeleton.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ConfigError(
            f"the tokenizer of {asked} has {len(tokenizer)} tokens, and the model's embedding {rows}; give the "
            "tokenizer that belongs to it, or resize_token_embeddings and save it"
        )


def _base_of_adapter(name: str) -> str | None:
    """Where the base model of an adapter folder is; None for a full model."""
    file = Path(name) / "adapter_config.json"
    if not file.exists() or (Path(name) / "config.json").exists():
        return None
    import json

    return json.loads(file.read_text("utf-8")).get("base_model_name_or_path")


def _why_not(asked: str, name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    if Path(name).exists():
        return f"the model in {name} cannot be loaded: {reason}"
    return (
        f"no model {asked!r}: there is no such folder, and the hub does not give it "
        f"({type(error).__name__}: {reason}); check the name, or the network"
    )


def forward_dtype(settings: ModelSettings) -> str:
    """Precision of the forward pass: auto is bfloat16 where a GPU has it; on a CPU it would be several times slower."""
    import torch

    if settings.dtype != "auto":
        return settings.dtype
    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"


def init_arguments(settings: ModelSettings) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`.

    Weights that are trained stay in float32: at the usual learning rates, updates would be rounded away in bfloat16.
    Weights that adapters leave frozen take the forward pass's precision.
    """
    weights = forward_dtype(settings) if settings.lora_rank else "float32"
    chosen = {"dtype": weights, "revision": settings.revision, "attn_implementation": settings.attention}
    return {key: value for key, value in chosen.items() if value is not None}


def refuse_attention(settings: ModelSettings) -> None:
    """Refuses an attention whose package is not installed, nor the one that fetches its kernels from the hub.

    Raises:
        ConfigError: neither is there.
    """
    packages = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
    package = packages.get(settings.attention or "")
    if package and importlib.util.find_spec(package) is None and importlib.util.find_spec("kernels") is None:
        raise ConfigError(f"--attention {settings.attention} needs the package {package}; sdpa needs none")


def refuse_lora_targets(settings: ModelSettings, skeleton: nn.Module) -> None:
    """Refuses a layer for adapters that the model does not have; peft's rule is that a dotted name ends in it.

    Raises:
        ConfigError: the name, and the nearest of the model's linear layers.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if settings.lora_rank == 0 or settings.lora_targets == ("all-linear",):
        return
    named, kinds = dict(skeleton.named_modules()), (nn.Linear, Conv1D)
    linear = {name.rpartition(".")[2] for name, module in named.items() if isinstance(module, kinds)}
    for target in settings.lora_targets:
        if not any(f".{name}".endswith(f".{target}") for name in named):
            raise ConfigError(f"--lora-targets {target} is no layer of this model{suggest(target, linear)}")


def lora(settings: ModelSettings, depth: int) -> LoraConfig | None:
    """The adapters that are trained; None trains all weights.

    Args:
        settings: rank, scale, layers.
        depth: number of the model's blocks.

    Raises:
        ConfigError: peft is not installed, or the rank or the number of blocks is out of range.
    """
    if not 0 <= settings.lora_blocks <= depth:
        raise ConfigError(f"--lora-blocks must be 0 (all) to the model's {depth} blocks, got {settings.lora_blocks}")
    if settings.lora_rank == 0:
        return None
    if settings.lora_rank < 0:
        raise ConfigError(f"--lora-rank must be 0 (no adapters) or more, got {settings.lora_rank}")
    if settings.lora_blocks and settings.lora_targets == ("all-linear",):
        raise ConfigError("--lora-blocks needs the layers by name, e.g. --lora-targets q_proj v_proj up_proj down_proj")
    try:
        from peft import LoraConfig
    except ImportError:
        raise ConfigError("--lora-rank needs peft: pip install 'poise-rl[peft]'") from None
    targets = list(settings.lora_targets)
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # pyright: ignore
        lora_dropout=settings.lora_dropout,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        layers_to_transform=list(range(depth - settings.lora_blocks, depth)) if settings.lora_blocks else None,
        task_type="CAUSAL_LM",
    )
