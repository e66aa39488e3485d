"""Run by torchrun on two ranks: trains the tiny policy and writes what each rank ended with.

Usage: torchrun --nproc_per_node 2 two_ranks.py FOLDER JSON-SETTINGS
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

import tiny_policy

folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
if settings.get("fsdp"):
    import accelerate.state
    from accelerate.utils import DistributedType

    # accelerate never chooses FSDP on CPU; everything after the choice is its own code.
    init, plugins = accelerate.state.AcceleratorState.__init__, {}

    def choose_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            plugins["fsdp"] = fsdp_plugin
        if "fsdp" in plugins:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugins["fsdp"]

    accelerate.state.AcceleratorState.__init__ = choose_fsdp

resume, prompts = settings.pop("resume", None), settings.pop("prompts", 256)
trainer = tiny_policy.trainer(folder, train_dataset=tiny_policy.prompts(prompts), **settings)
trainer.train(resume_from_checkpoint=resume)


def digest(tensors: list[torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


state = trainer.estimator.state_dict()
parameters = list(trainer.model.parameters())
whole = [parameter.full_tensor() if isinstance(parameter, DTensor) else parameter for parameter in parameters]
result = {
    "ranks": trainer.accelerator.num_processes,
    "mode": trainer.capture_mode,
    "sharded": isinstance(parameters[0], DTensor),
    "estimator": digest([state["tensors"][name] for name in sorted(state["tensors"])]),
    "meta": state["meta"],
    "weights": digest(whole),
    "critic": digest(list(trainer.critic.critic.parameters())) if trainer.critic else None,
    "log": [entry for entry in trainer.state.log_history if "loss" in entry],
    "norms": [float(parameter.double().norm()) for parameter in whole],
}
rank = trainer.accelerator.process_index
(folder / f"rank{rank}.json").write_text(json.dumps(result))
