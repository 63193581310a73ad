"""The derivative of taking rows of a table by index: sums in a fixed order.

    y_m = table[index_m],     d_table[v] = sum over { m : index_m = v } of d_y_m

A stable sort brings the occurrences of an index together. A tile of rows is summed by a product with the
matrix that says which row belongs to which index; an index that goes on through several tiles gets their
sums by a second such product. Every row of the table then takes its sum, so that nothing is added
atomically and nothing is written twice.

Shapes: M indices, V rows of the table, D width, N tiles, t rows of a tile, s sums of a tile (s = t, as
every row may be another index).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

TILE = 128
"""Rows that one product sums: a multiple of what a tensor core takes."""


def sum_by_index(values: Float[Tensor, "M D"], index: Int[Tensor, " M"], height: int) -> Float[Tensor, "V D"]:
    """Row ``v`` of the result is the sum of all ``values[m]`` with ``index[m] == v``.

    Args:
        index: Where each row goes, in ``[0, height)``.
    """
    ordered, order = index.sort(stable=True)
    missing = -len(index) % TILE
    tiles = F.pad(ordered, (0, missing), value=height).view(-1, TILE)  # [N, t]
    rows = F.pad(values[order], (0, 0, 0, missing)).view(-1, TILE, values.shape[1])  # [N, t, D]
    place = F.pad((tiles[:, 1:] != tiles[:, :-1]).long(), (1, 0)).cumsum(1)  # [N, t]
    member = place[:, None] == torch.arange(TILE, device=index.device)[:, None]  # [N, s, t]
    sums = _join_tiles(member.to(values.dtype) @ rows, tiles, place[:, -1])
    ids = torch.arange(height, device=index.device, dtype=ordered.dtype)
    first = torch.searchsorted(ordered, ids)  # [V]
    there = torch.searchsorted(ordered, ids, right=True) > first
    first = torch.where(there, first, 0)
    taken = sums[first // TILE, place.flatten()[first]]
    return torch.where(there[:, None], taken, 0.0)


def _join_tiles(
    sums: Float[Tensor, "N s D"], tiles: Int[Tensor, "N t"], place: Int[Tensor, " N"]
) -> Float[Tensor, "N s D"]:
    """Add to each tile's last sum the first sums of the tiles that go on with its index."""
    number, end = (torch.arange(size, device=tiles.device) for size in sums.shape[:2])
    goes_on = (number[:, None] < number) & (tiles[:, -1:] == tiles[:, 0])  # [N, N]
    rest = goes_on.to(sums.dtype) @ sums[:, 0]
    return sums + torch.where((end == place[:, None])[:, :, None], rest[:, None], 0.0)
