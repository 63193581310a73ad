"""Rows of a table by index, with a derivative that sums in a fixed order.

    y_m = table[index_m],     d_table[v] = sum over { m : index_m = v } of d_y_m

XLA's own derivative scatters with atomic additions on a GPU, whose order differs from run to run. Here
the occurrences of an index are brought together by a stable sort, summed by a segmented scan in
``log2`` of the most occurrences passes, and each sum is written once.

Shapes: M indices, V rows of the table, D width.

References:
    Hillis and Steele 1986, "Data parallel algorithms" (prefix sums by doubling).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def gather_rows(table: Float[Array, "V D"], index: Int[Array, "*M"]) -> Float[Array, "*M D"]:
    """``table[index]``; every index lies in ``[0, V)``.

    Args:
        table: Rows to choose from.
        index: Which row each result takes.
    """
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
        values: What is summed.
        index: Where each row goes, in ``[0, height)``.
        height: Rows of the result.
    """
    order = jnp.argsort(index, stable=True)
    index, sums = index[order], values[order]
    count = len(index)
    place = jnp.arange(count, dtype=jnp.int32)

    def widen(step: Int[Array, ""], sums: Float[Array, "M D"]) -> Float[Array, "M D"]:
        """Each row holds the sum of up to ``2^step`` rows that end in it; join it with those before."""
        reach = jnp.int32(1) << step
        joins = (place >= reach) & (jnp.roll(index, reach) == index)
        return jnp.where(joins[:, None], sums + jnp.roll(sums, reach, axis=0), sums)

    # a loop, not an unrolled scan, which XLA fuses into code that takes minutes to compile; it ends once
    # no segment is longer than the reach, which with sentences of a large vocabulary is early
    first = jnp.concatenate([jnp.ones(1, bool), index[1:] != index[:-1]])
    start = lax.cummax(jnp.where(first, place, 0))
    longest = (place - start).max() + 1
    passes = 32 - lax.clz(longest - 1)
    sums = lax.fori_loop(0, passes, widen, sums)
    # the last row of a segment holds its sum; all others go past the end, where they are dropped
    ends = jnp.concatenate([index[1:] != index[:-1], jnp.ones(1, bool)])
    target = jnp.where(ends, index, height + place)
    empty = jnp.zeros((height, values.shape[1]), values.dtype)
    return empty.at[target].set(sums, mode="drop", unique_indices=True)
