"""A generated batch on its way to the loss: which rollouts leave it, and how it is dealt into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from trl.trainer.grpo_trainer import split_tensor_dict

from poise.core import domain_id, map_tensors


def domains_of(rows: Sequence[Mapping[str, Any]], column: str, device: torch.device) -> Tensor:
    """`core.domain_id` of each dataset row; one domain for rows that name none."""
    return torch.tensor([domain_id(str(row[column])) if column in row else 0 for row in rows], device=device)


def leave_out(output: dict[str, Any], left_B: Tensor, gather: Callable[[Tensor], Tensor]) -> None:
    """Take the tokens of these rollouts out of the loss, its normaliser included (not out of attention).

    Args:
        output: TRL's generated batch, changed in place.
        left_B: which of this process's rollouts leave.
        gather: joins a tensor over processes.
    """
    if not bool(gather(left_B).any()):
        return
    mask_BT = output["completion_mask"]
    kept_BT = (~left_B).to(mask_BT)[:, None].expand_as(mask_BT)
    output["tool_mask"] = kept_BT * output.get("tool_mask", 1)
    output["num_items_in_batch"] = gather((mask_BT * output["tool_mask"]).sum()).sum()


def broadcast(value: Any, accelerator: Accelerator) -> Any:
    """The main process's object on every process, bit for bit."""
    if accelerator.num_processes == 1:
        return value
    box = [map_tensors(value, lambda tensor: tensor.cpu())]
    broadcast_object_list(box)
    return map_tensors(box[0], lambda tensor: tensor.to(accelerator.device))


def keep_groups_together(chunks: list[dict[str, Any]], group_size: int) -> list[dict[str, Any]]:
    """Deal a shuffled batch into micro-batches again so that no group is split.

    Args:
        chunks: TRL's micro-batches; `poise_row` holds each row's place in the generated batch.
        group_size: G; must divide the micro-batch.

    Returns:
        As many micro-batches of the same size; groups in the order in which TRL's shuffle first touched them, so no
        further random number is drawn.
    """
    batch: dict[str, Any] = {
        name: torch.cat([chunk[name] for chunk in chunks]) if _is_per_row(value) else value
        for name, value in chunks[0].items()
    }
    order_B = _whole_groups(batch["poise_row"], group_size)
    dealt = {name: value[order_B] if _is_per_row(value) else value for name, value in batch.items()}
    return [chunk | {"poise_credited": False} for chunk in split_tensor_dict(dealt, len(chunks))]


def _is_per_row(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _whole_groups(row_B: Tensor, group_size: int) -> Tensor:
    """Positions that bring each group's rows together, groups by first appearance.

    >>> _whole_groups(torch.tensor([3, 0, 2, 1]), 2)
    tensor([2, 0, 1, 3])
    """
    _, group_B = (row_B // group_size).unique(return_inverse=True)
    position_B = torch.arange(len(row_B), device=row_B.device)
    first_P = torch.full((int(group_B.max()) + 1,), len(row_B), device=row_B.device)
    first_P = first_P.scatter_reduce(0, group_B, position_B, "amin")
    key_B = first_P[group_B] * len(row_B) + (row_B - row_B.min())
    return key_B.argsort()
