"""Environment and Hydra overrides of a verl run on CPU: what any such run here has in common."""

from __future__ import annotations

import os
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent


def environment() -> dict[str, str]:
    """The environment of a run (and of `ray start`): this platform, one thread a process, nothing online."""
    path = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "cpu_verl",
        # The adapter registers its engine for accelerators only; this makes verl look it up as if there were one.
        "VERL_ENGINE_DEVICE": "cuda",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_memory_monitor_refresh_ms": "0",  # Ray would end its workers for what other programs take
        "RAY_worker_niceness": "0",  # Ray's 15 starves the workers wherever anything else computes
        "VERL_LOGGING_LEVEL": "WARN",
        "HYDRA_FULL_ERROR": "1",
    }


def on_cpu(ranks: int = 2, nodes: int = 1) -> list[str]:
    """Overrides that put a run on the CPU: fp32, sdpa, FSDP2, the generation server of `cpu_verl.rollout`."""
    return [
        "trainer.device=cpu",
        f"trainer.n_gpus_per_node={ranks // nodes}",
        f"trainer.nnodes={nodes}",
        "actor_rollout_ref.model.external_lib=cpu_verl.rollout",
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        "actor_rollout_ref.actor.strategy=fsdp2",
        "actor_rollout_ref.actor.use_torch_compile=False",
        "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision.reduce_dtype=fp32",
        "actor_rollout_ref.rollout.name=hf",
        f"actor_rollout_ref.rollout.tensor_model_parallel_size={ranks}",
        f"actor_rollout_ref.rollout.n_gpus_per_node={ranks // nodes}",
        "actor_rollout_ref.rollout.calculate_log_probs=False",
        "actor_rollout_ref.rollout.free_cache_engine=False",
        "actor_rollout_ref.rollout.load_format=auto",
        "actor_rollout_ref.rollout.agent.num_workers=1",
        "reward.num_workers=1",
        "data.dataloader_num_workers=0",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        "transfer_queue.backend.SimpleStorage.total_storage_size=4096",
    ]


def local_ray(ranks: int = 2) -> list[str]:
    """Overrides for a run that starts Ray itself, with one logical GPU per rank."""
    return [
        "+ray_kwargs.ray_init.address=local",  # never a cluster that happens to run here
        "ray_kwargs.ray_init.num_cpus=16",
        f"+ray_kwargs.ray_init.num_gpus={ranks}",
        "+ray_kwargs.ray_init.include_dashboard=False",
        "+ray_kwargs.ray_init.object_store_memory=500000000",
    ]
