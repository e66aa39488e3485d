"""vLLM generates inside the trainer (colocate mode): states come from the old log-prob pass, no pass is added.

Run by `make test-vllm` in an environment of its own; vLLM and the newest transformers exclude each other.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm", reason="needs the vLLM environment: make test-vllm")

from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback  # noqa: E402

from poise.models import bundled  # noqa: E402
from poise.rewards import as_trl_reward, resolve  # noqa: E402
from poise.tasks import load_task, reward_of  # noqa: E402
from poise.trl import PoiseConfig, PoiseTrainer  # noqa: E402

SINGLE_PROCESS = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29577",
    "ACCELERATE_USE_CPU": "true",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@pytest.mark.timeout(900)
def test_poise_trains_with_colocated_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SINGLE_PROCESS.items():
        monkeypatch.setitem(os.environ, name, value)
    # Where oneDNN is to be had, vLLM's CPU build packs each weight for it and drops the weight itself, so that no
    # new one can be loaded into the engine; sharing weights with a trainer needs the plain product.
    monkeypatch.setattr("vllm._custom_ops._supports_onednn", False)
    config = PoiseConfig(
        output_dir=str(tmp_path),
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=256,
        vllm_gpu_memory_utilization=0.1,
        per_device_train_batch_size=32,
        max_steps=4,
        max_completion_length=100,
        learning_rate=1e-3,
        baseline="probe",
        cold_start_rows=32,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = PoiseTrainer(
        AutoModelForCausalLM.from_pretrained(bundled()),
        as_trl_reward(resolve(reward_of("tiny"))),
        config,
        load_task("tiny", "train", size=128, seed=0),
        processing_class=AutoTokenizer.from_pretrained(bundled()),
    )
    trainer.remove_callback(PrinterCallback)
    assert trainer.capture_mode == "old"
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "poise/probe_share" in entry]
    assert log[-1]["poise/probe_share"] == 1.0
    assert log[-1]["poise/buffer_rows"] == 4 * 32
    assert log[-1]["reward"] > 0.1, "the bundled model solves more than a tenth; garbage from vLLM would not"
    # vLLM and the trainer agree on the policy that they share.
    assert log[-1]["sampling/sampling_logp_difference/mean"] < 0.05
