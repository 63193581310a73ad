"""Sums over the processes of a run by ``torch.distributed``, in the same order each time; no host waits."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from gpt_trainer.backend import Shard
from gpt_trainer.ranks.place import Place


def sum_over_processes(buffer: Tensor, place: Place) -> None:
    """Replace a buffer by the sum over all processes, in the same order each time; the host does not wait."""
    if place.world > 1:
        dist.all_reduce(buffer)


def shares_optimizer(shard: Shard, place: Place) -> bool:
    """Whether each process holds a share of the optimizer's state only.

    Raises:
        ValueError: If weights are to be shared too.
    """
    if shard == "all":
        raise ValueError(
            "shard='all' is not here: whole weights are read where they lie; use shard='optimizer'"
        )
    return shard == "optimizer" and place.world > 1


def sum_parts(parts: Sequence[Tensor], place: Place) -> None:
    """Sum this process's part over all processes; the others are left as they fall.

    Args:
        parts: Vectors, one for each process, one behind the other in one buffer; equal ones go at once.
    """
    if _are_equal(parts):
        dist.reduce_scatter_tensor(parts[place.rank], _whole(parts))
        return
    for rank, part in enumerate(parts):
        if part.numel():
            dist.reduce(part, rank)


def gather_parts(parts: Sequence[Tensor], place: Place) -> None:
    """Fill in every process's part.

    Args:
        parts: As ``sum_parts``.
    """
    if _are_equal(parts):
        dist.all_gather_into_tensor(_whole(parts), parts[place.rank])
    else:
        send_from_owners(parts, 0)


def send_from_owners(parts: Sequence[Tensor], first: int) -> None:
    """Fill in the end of a buffer from the processes whose parts it lies in, part by part.

    Args:
        parts: As ``sum_parts``.
        first: Of the elements to send, counted through all parts.
    """
    for rank, part in enumerate(parts):
        end = part[max(first, 0) :]
        if end.numel():
            dist.broadcast(end, rank)
        first -= part.numel()


def _are_equal(parts: Sequence[Tensor]) -> bool:
    return len({part.numel() for part in parts}) == 1


def _whole(parts: Sequence[Tensor]) -> Tensor:
    """What the parts are parts of."""
    return parts[0].as_strided((sum(part.numel() for part in parts),), (1,))
