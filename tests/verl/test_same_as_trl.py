"""The same rollouts through both adapters: same baselines, same advantages, step by step."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("verl")
from capture_cases import Case, batch_of, engine_of
from shared_rollouts import ESTIMATORS, SOURCES, SPEC, STEPS, credited, rollouts_of_step, save_model
from verl.workers.utils.padding import response_from_nested

from poise.core import Features, Rollouts, squared_score
from poise.verl import engine as capturing
from poise.verl.credit import BatchRows

pytestmark = [pytest.mark.verl, pytest.mark.timeout(300)]
SCRIPT = Path(__file__).parent / "support" / "trl_side.py"
# `make test-verl` installs TRL here, out of verl's sight.
TRL = Path(sys.prefix) / "trl"
# verl orders the rows of a batch as it likes.
ORDER = [5, 0, 3, 6, 1, 7, 2, 4]
TOLERANCE = 1e-4
KEYS = [f"p{row // 2}_{row % 2}_0" for row in range(8)]


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/rendezvous")
    yield
    dist.destroy_process_group()


def rollouts_by(engine: Any, step: int) -> Rollouts:
    """As verl lays a step out: packed, in an order of its own, found by key."""
    prompts, responses, rewards_B = rollouts_of_step(step)
    masks = [torch.ones_like(response) for response in responses]
    parts = tuple([part[row] for row in ORDER] for part in (prompts, responses, masks))
    with engine.eval_mode():
        batch = batch_of(parts, Case("packed"), capturing.request_of(SPEC))
        output = engine.infer_batch(batch)["model_output"]
    names = (capturing.PROMPT, capturing.REASONING, capturing.ENTROPY)
    features = Features(*(torch.stack(list(output[name].unbind())) for name in names))
    rows = BatchRows.of([KEYS[row] for row in ORDER], [{}] * len(ORDER))
    # As verl's driver cuts them out, before it stores them as the old log-probabilities.
    log_probs = response_from_nested(output["log_probs"], batch["response_mask"]).to_padded_tensor(0)
    scores_B = squared_score(log_probs, batch["response_mask"].to_padded_tensor(0))
    return rows.rollouts(rewards_B[ORDER], features, [SOURCES[row] for row in ORDER], (scores_B, scores_B))


def test_same_baselines_and_advantages(tmp_path: Path, one_rank: None) -> None:
    if not TRL.is_dir():
        pytest.skip(f"TRL is not installed in {TRL}: make test-verl")
    save_model(tmp_path / "model")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TRL), str(SCRIPT.parent)])}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "model"), str(tmp_path / "trl.pt")]
    subprocess.run(command, check=True, env=environment, timeout=200)
    from_trl = torch.load(tmp_path / "trl.pt", weights_only=True)

    engine = engine_of(Case("packed", model="model"), str(tmp_path))
    from_verl = credited(lambda step: rollouts_by(engine, step))
    for name in ESTIMATORS:
        for step in range(STEPS):
            ours = from_verl[name][step]
            theirs = {column: value[ORDER] for column, value in from_trl[name][step].items()}
            assert torch.equal(ours["domains_B"], theirs["domains_B"])
            assert torch.equal(ours["from_probe_B"], theirs["from_probe_B"])
            if name != "auto":  # which starts with the means, and counts them as its own
                assert bool(ours["from_probe_B"].any()) == (step > 0), "the first step is cold, the others are not"
            for column in ("baselines_B", "advantages_B", "predictions_B", "weights_B"):
                torch.testing.assert_close(ours[column], theirs[column], atol=TOLERANCE, rtol=0, equal_nan=True)
        assert ours["predictions_B"].nan_to_num(0).std() > 50 * TOLERANCE, "they differ, or nothing is proved"
    last = [from_verl[name][-1]["baselines_B"].nan_to_num(0) for name in ESTIMATORS]
    for first, second in combinations(last, 2):
        assert (first - second).abs().max() > 50 * TOLERANCE, "the estimators differ"
