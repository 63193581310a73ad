"""Rows of a table by index, with a derivative that sums in a fixed order.

    y_m = table[index_m],     d_table[v] = sum over { m : index_m = v } of d_y_m

XLA's own derivative scatters with atomic additions on a GPU, whose order differs from run to run. Here a
stable sort brings the occurrences of an index together. A tile of rows is summed by a product with the
matrix that says which row belongs to which index; an index that goes on through several tiles gets their
sums by a second such product. Every sum is written once, and every shape is known beforehand, so that the
device never waits for the host.

Shapes: M indices, V rows of the table, D width, N tiles, t rows of a tile, s sums of a tile (s = t, as
every row may be another index).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax.precision import product

TILE = 128
"""Rows that one product sums: a multiple of what a tensor core takes."""


@jax.custom_vjp
def gather_rows(table: Float[Array, "V D"], index: Int[Array, "*M"]) -> Float[Array, "*M D"]:
    """``table[index]``; every index lies in ``[0, V)``."""
    return table[index]


def gather_rows_fwd(
    table: Float[Array, "V D"], index: Int[Array, "*M"]
) -> tuple[Float[Array, "*M D"], tuple[Int[Array, "*M"], Float[Array, "V 0"]]]:
    """The rows; kept are the indices, and an empty array that knows the table's height and type."""
    return table[index], (index, table[:, :0])


def gather_rows_bwd(
    residuals: tuple[Int[Array, "*M"], Float[Array, "V 0"]], d_rows: Float[Array, "*M D"]
) -> tuple[Float[Array, "V D"], None]:
    """Sum of ``d_rows`` by index."""
    index, empty = residuals
    flat = d_rows.reshape(-1, d_rows.shape[-1]).astype(empty.dtype)
    return sum_by_index(flat, index.reshape(-1), empty.shape[0]), None


gather_rows.defvjp(gather_rows_fwd, gather_rows_bwd)


def sum_by_index(
    values: Float[Array, "M D"], index: Int[Array, " M"], height: int
) -> Float[Array, "height D"]:
    """Row ``v`` of the result is the sum of all ``values[m]`` with ``index[m] == v``.

    Args:
        index: Where each row goes, in ``[0, height)``.
    """
    order, missing = jnp.argsort(index, stable=True), -len(index) % TILE
    # what fills the last tile up goes past the end, where it is dropped
    index = jnp.pad(index[order], (0, missing), constant_values=height).reshape(-1, TILE)  # [N, t]
    rows = jnp.pad(values[order], ((0, missing), (0, 0))).reshape(-1, TILE, values.shape[1])  # [N, t, D]
    place = jnp.cumsum(jnp.pad(index[:, 1:] != index[:, :-1], ((0, 0), (1, 0))), 1, dtype=jnp.int32)
    member = place[:, None] == jnp.arange(TILE, dtype=jnp.int32)[None, :, None]  # [N, s, t]
    sums = product("nst,ntd->nsd", member.astype(values.dtype), rows)
    owner = jnp.where(member, index[:, None], -1).max(-1)  # [N, s], -1 where there is no sum
    sums, owner = _join_tiles(sums, owner, index[:, -1], place[:, -1])
    past = height + 1 + jnp.arange(owner.size, dtype=jnp.int32).reshape(owner.shape)
    empty = jnp.zeros((height, values.shape[1]), values.dtype)
    return empty.at[jnp.where(owner < 0, past, owner)].set(sums, mode="drop", unique_indices=True)


def _join_tiles(
    sums: Float[Array, "N s D"], owner: Int[Array, "N s"], last: Int[Array, " N"], place: Int[Array, " N"]
) -> tuple[Float[Array, "N s D"], Int[Array, "N s"]]:
    """Add to each tile's last sum the first sums of the tiles that go on with its index."""
    number, first = jnp.arange(len(last), dtype=jnp.int32), owner[:, 0]
    goes_on = (number[:, None] < number[None]) & (last[:, None] == first[None])  # [N, N]
    rest = product("nm,md->nd", goes_on.astype(sums.dtype), sums[:, 0])
    ends = jnp.arange(sums.shape[1], dtype=jnp.int32)[None] == place[:, None]
    sums = sums + jnp.where(ends[:, :, None], rest[:, None], 0.0)
    begun_before = jnp.pad(last[:-1], (1, 0), constant_values=-1) == first
    return sums, owner.at[:, 0].set(jnp.where(begun_before, -1, first))
