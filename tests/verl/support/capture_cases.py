"""Two gloo ranks that run verl's real FSDP engine, layout by layout, and report what it captured.

Started by test_capture.py as `python capture_cases.py FOLDER`, where FOLDER holds the models and the adapter; each rank
writes FOLDER/RANK.pt with, for every case, the engine's outputs (or the error that the case ended in).
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel

TEMPERATURE = 0.7
END = (4, 7)
RANKS = 2


@dataclass(frozen=True)
class Case:
    """One layout of verl's old-log-prob forward."""

    name: str
    model: str = "untied"
    strategy: str = "fsdp2"
    remove_padding: bool = True
    dynamic: bool = True
    shards: int = 1
    fused: bool = False
    checkpointing: bool = False
    lora: bool = False
    pad_to_length: bool = False


_LAYOUTS = (
    Case("packed-dynamic"),
    Case("packed-static", dynamic=False),
    Case("padded-dynamic", remove_padding=False),
    Case("padded-static", remove_padding=False, dynamic=False),
    Case("packed-to-length", pad_to_length=True),
    Case("gradient-checkpointing", checkpointing=True),
    Case("lora", lora=True),
    Case("ulysses", shards=2),
    Case("ulysses-to-length", shards=2, pad_to_length=True),
    Case("all-together", shards=2, checkpointing=True, lora=True),
)
# Last, for verl patches the model's class; tied, for verl's FSDP2 keeps an untied head sharded, out of their reach.
_FUSED = Case("fused-kernels", model="tied", fused=True)


def _on_fsdp1(case: Case) -> Case:
    """Ranks load tied models alike; verl leaves others to FSDP1's broadcast of the weights, which needs a GPU."""
    return replace(case, name=f"fsdp1-{case.name}", strategy="fsdp", model="tied")


CASES = (*_LAYOUTS, *map(_on_fsdp1, _LAYOUTS), _FUSED, _on_fsdp1(_FUSED))


def rollouts_of(data_rank: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Prompts, responses and response masks: with and without an end of reasoning, cut short, padding, tool output."""
    random = torch.Generator().manual_seed(100 + data_rank)

    def tokens(low: int, high: int) -> Tensor:
        length = int(torch.randint(low, high, (1,), generator=random))
        return torch.randint(10, 60, (length,), generator=random)

    prompts = [tokens(2, 15) for _ in range(8)]
    responses = [tokens(5, 20) for _ in range(8)]
    masks = [torch.ones_like(response) for response in responses]
    for row in (0, 2, 5):
        responses[row][2:4] = torch.tensor(END)
    responses[3][-2:] = torch.tensor(END)  # reasoning only, no answer
    responses[6] = responses[6][:1]
    masks[6] = torch.zeros_like(responses[6])  # as verl's padding rows: nothing that the policy wrote
    masks[7][3:5] = 0  # tool output
    return prompts, responses, masks


def batch_of(rollouts: tuple[list[Tensor], ...], case: Case, request: str) -> Any:
    """Prompts, responses and response masks as verl's log-prob call gets them."""
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu

    from poise.verl.engine import REQUEST

    def nested(rows: list[Tensor]) -> Tensor:
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    prompts, responses, masks = rollouts
    ids = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    fields = {
        "input_ids": nested(ids),
        "position_ids": nested([torch.arange(len(row)) for row in ids]),
        "prompts": nested(prompts),
        "responses": nested(responses),
        "response_mask": nested(masks),
        "loss_mask": nested(masks),
    }
    batch = TensorDict(fields, batch_size=len(ids))
    tu.assign_non_tensor(
        batch,
        use_remove_padding=case.remove_padding,
        use_dynamic_bsz=case.dynamic,
        max_token_len_per_gpu=64,
        micro_batch_size_per_gpu=2,
        use_fused_kernels=case.fused,
        temperature=TEMPERATURE,
        calculate_entropy=True,
        compute_loss=False,
        **{REQUEST: request},
    )
    return batch


class FSDP1OnCPU(FullyShardedDataParallel):
    """torch's FSDP1 computes on a CPU, but neither by that name nor with a broadcast of the weights."""

    def __init__(self, module: torch.nn.Module, **options: Any) -> None:
        super().__init__(module, **{**options, "device_id": torch.device("cpu"), "sync_module_states": False})


def engine_of(case: Case, folder: str) -> Any:
    """The engine that verl builds for this case, in the way its worker builds it."""
    from cpu_verl import attention
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry
    from verl.workers.engine.fsdp import transformer_impl

    from poise.verl.engine import VENDOR
    from poise.verl.worker import _engine_of

    transformer_impl.FSDP = FSDP1OnCPU
    # sdpa reads packed batches from position ids, but knows nothing of sequence parallelism.
    name = attention.register() if case.shards > 1 else "sdpa"
    model_config = HFModelConfig(
        path=f"{folder}/{case.model}",
        load_tokenizer=False,
        override_config={"attn_implementation": name},
        use_remove_padding=case.remove_padding,
        use_fused_kernels=case.fused,
        fused_kernel_options={"impl_backend": "torch"},
        enable_gradient_checkpointing=case.checkpointing,
        lora_rank=4 if case.lora else 0,
        lora_adapter_path=f"{folder}/adapter" if case.lora else None,
    )
    engine_config = FSDPEngineConfig(
        strategy=case.strategy,
        use_torch_compile=False,
        mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32"},
        ulysses_sequence_parallel_size=case.shards,
        pad_to_length=case.pad_to_length,
        pad_to_length_bucket=48,
        use_dynamic_bsz=case.dynamic,
        infer_max_token_len_per_gpu=64,
        infer_micro_batch_size_per_gpu=2,
    )
    with _engine_of(VENDOR):
        engine = EngineRegistry.new(
            "language_model",
            case.strategy,
            model_config=model_config,
            engine_config=engine_config,
            optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=10),
            checkpoint_config=CheckpointConfig(),
        )
    engine.initialize()
    return engine


def run_case(case: Case, folder: str) -> dict[str, Any]:
    """Outputs of one forward pass with a request, and the keys of one without."""
    from verl.utils import tensordict_utils as tu

    from poise.core import StateSpec
    from poise.verl.engine import REQUEST, CapturingFSDPEngine, request_of

    engine = engine_of(case, folder)
    assert isinstance(engine, CapturingFSDPEngine)
    data_rank = engine.get_data_parallel_rank()
    spec = StateSpec(prompt_layer=1, reasoning_layer=3, window=3, end_of_reasoning=END)
    batch = batch_of(rollouts_of(data_rank), case, request_of(spec))
    with engine.eval_mode():
        output = engine.infer_batch(batch)["model_output"]
        unasked = batch_of(rollouts_of(data_rank), case, "")
        tu.pop(unasked, REQUEST)
        keys = sorted(engine.infer_batch(unasked)["model_output"])
    rows = {name: [row.clone() for row in tensor.unbind()] for name, tensor in output.items()}
    return {"data_rank": data_rank, "rows": rows, "unasked": keys}


def worker(rank: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, init_method=f"file://{folder}/rendezvous")
    results: dict[str, Any] = {}
    for case in CASES:
        try:
            results[case.name] = {"case": asdict(case), **run_case(case, folder)}
        except Exception:
            results[case.name] = {"case": asdict(case), "error": traceback.format_exc()}
        torch.save(results, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(worker, args=tuple(sys.argv[1:]), nprocs=RANKS)
