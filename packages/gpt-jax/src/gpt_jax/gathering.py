"""Rows of a table by index, with a derivative that sums in a fixed order.

    y_m = table[index_m],     d_table[v] = sum over { m : index_m = v } of d_y_m

XLA's own derivative scatters with atomic additions on a GPU, whose order differs from run to run. Here
the occurrences of an index are brought together by a stable sort, summed by a segmented scan (a tree
of fixed shape), and each sum is written once.

Shapes: M indices, V rows of the table, D width.

References:
    Blelloch 1990, "Prefix sums and their applications", section 1.5 (segmented scans).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


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
    index = index[order]
    changes = index[1:] != index[:-1]
    edge = jnp.ones(1, bool)
    starts, ends = jnp.concatenate([edge, changes]), jnp.concatenate([changes, edge])
    sums, _ = lax.associative_scan(_add_within_segment, (values[order], starts[:, None]))
    # the last row of a segment holds its sum; all others go past the end, where they are dropped
    target = jnp.where(ends, index, height + jnp.arange(len(index), dtype=index.dtype))
    empty = jnp.zeros((height, values.shape[1]), values.dtype)
    return empty.at[target].set(sums, mode="drop", unique_indices=True)


def _add_within_segment(
    left: tuple[Float[Array, "m D"], Bool[Array, "m 1"]],
    right: tuple[Float[Array, "m D"], Bool[Array, "m 1"]],
) -> tuple[Float[Array, "m D"], Bool[Array, "m 1"]]:
    """The right part starts afresh if a segment starts in it."""
    return jnp.where(right[1], right[0], left[0] + right[0]), left[1] | right[1]
