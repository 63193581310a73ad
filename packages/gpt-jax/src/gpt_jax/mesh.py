"""Several devices: how the rows of a step and the state of training are divided among them.

One axis. Each device takes its rows of every micro-batch through the model of ``model.py``, as if it were
alone. What differs is where weights lie and how gradients come together:

    none        every device has the whole state                     g = sum_d g_d on every device
    optimizer   a device has some rows of each matrix and its        weights gathered before the pass,
                moments, and updates them                            its rows of sum_d g_d behind it
    all         the same, but the matrices of the blocks are         gathered for a product, and again for its
                never whole for longer than one product              derivative, which sums over devices

The optimizer knows nothing of it: XLA divides what is written for whole trees by their shardings.

Shapes: n devices, R rows of a matrix, o columns.

References:
    Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models".
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from gpt_trainer.backend import Shard
from jax import lax
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

AXIS = "devices"
EMBEDDINGS = frozenset({"wte", "wpe"})
MATRICES = EMBEDDINGS | {"qkv_weight", "out_weight", "up_weight", "down_weight"}
"""Leaves that are 2-D before the blocks are stacked: they decay, and they are what is worth dividing."""


class Division(NamedTuple):
    """How a leaf is divided.

    Attributes:
        name: Its field.
        spec: Which axis is divided, if any.
        early: It is gathered once, before the pass, and not where it is used.
    """

    name: str
    spec: P
    early: bool


@dataclass(frozen=True)
class Layout:
    """Where the state of training and the rows of a step lie.

    Attributes:
        devices: Those of all processes, each process's own together.
        shard: ``"none"``, ``"optimizer"`` or ``"all"``.
    """

    devices: tuple[jax.Device, ...]
    shard: Shard = "none"

    @property
    def count(self) -> int:
        """Number of devices, n."""
        return len(self.devices)

    @property
    def own(self) -> int:
        """Number of this process's devices."""
        return sum(device.process_index == jax.process_index() for device in self.devices)

    @property
    def here(self) -> jax.Device:
        """This process's first device."""
        return next(device for device in self.devices if device.process_index == jax.process_index())

    @property
    def mesh(self) -> Mesh:
        """The devices along ``AXIS``, over which XLA divides what is written for one."""
        return Mesh(self.devices, AXIS, axis_types=(AxisType.Auto,))

    def entered(self) -> AbstractContextManager[Any]:
        """Within, what is traced knows that XLA divides it among several devices."""
        return nullcontext() if self.count == 1 else jax.set_mesh(self.mesh)

    def spec(self, name: str, shape: tuple[int, ...]) -> P:
        """How a leaf is divided: a matrix by its rows if their number allows it."""
        if self.shard == "none" or name not in MATRICES or shape[-2] % self.count:
            return P()
        return P(*[None] * (len(shape) - 2), AXIS, None)

    def divisions(self, tree: Any) -> list[Division]:
        """How each leaf of a tree of parameters, or of several, is divided, in their order."""
        paths, _ = jax.tree_util.tree_flatten_with_path(tree)
        # moments stand in a dictionary by whole paths: a leaf's last key may hold several parts
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
        leaves = zip(names, jax.tree.leaves(tree), strict=True)
        return [self._division(name.rpartition(".")[2], leaf.shape) for name, leaf in leaves]

    def _division(self, name: str, shape: tuple[int, ...]) -> Division:
        spec = self.spec(name, shape)
        early = spec != P() and (self.shard == "optimizer" or name in EMBEDDINGS)
        return Division(name, spec, early)

    def keep(self, tree: Any) -> Any:
        """Tell XLA that the leaves of a new state lie as those of the old one do."""
        if self.count == 1:
            return tree
        leaves, structure = jax.tree.flatten(tree)
        shardings = [self.sharding(division.spec) for division in self.divisions(tree)]
        return jax.tree.unflatten(structure, lax.with_sharding_constraint(leaves, shardings))

    def sharding(self, spec: P) -> Sharding:
        """A spec on these devices."""
        if self.count == 1:
            return SingleDeviceSharding(self.devices[0])
        return NamedSharding(self.mesh, spec)

    def put(self, name: str, value: np.ndarray) -> Array:
        """A leaf on the devices, from a host array that every process has; as a float32 copy."""
        sharding = self.sharding(self.spec(name, value.shape))
        # JAX may use a host array's memory as it is, so it gets one that nobody else writes to
        return jax.make_array_from_callback(
            value.shape, sharding, lambda part: np.array(value[part], np.float32, order="C", copy=True)
        )

    def spread(self, array: np.ndarray) -> Array:
        """This process's rows, the second axis, of micro-batches, the first; as they follow each other."""
        return jax.make_array_from_process_local_data(self.sharding(P(None, AXIS)), array)

    def fetch(self, leaf: Array) -> np.ndarray:
        """A leaf on the host, whole; where processes have parts of it, all of them must ask."""
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(process_allgather(leaf, tiled=True))

    def at_hand(self, tree: Any) -> Any:
        """The leaves, whole, on ``here``; where processes have parts of them, all of them must ask."""
        if self.count == 1:
            return tree
        together = jax.device_put(tree, self.sharding(P()))
        return jax.tree.map(lambda leaf: _on(leaf, self.here), together)


def _on(leaf: Array, device: jax.Device) -> Array:
    """A replicated leaf as ``device`` has it."""
    return next(shard.data for shard in leaf.addressable_shards if shard.device == device)


def whole(part: Float[Array, "r o"], rows: int, dtype: str) -> Float[Array, "R o"]:
    """A matrix of which this device may have only some rows, as they are next to be used.

    Args:
        rows: Of the whole matrix, R.
        dtype: Type of the product that takes it: what travels is rounded to it.
    """
    return part if part.shape[0] == rows else _gather(part, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(part: Float[Array, "*L r o"], dtype: str) -> Float[Array, "*L R o"]:
    return lax.all_gather(part.astype(dtype), AXIS, axis=part.ndim - 2, tiled=True).astype(part.dtype)


def _gather_fwd(part: Float[Array, "*L r o"], dtype: str) -> tuple[Float[Array, "*L R o"], None]:
    return _gather(part, dtype), None


def _gather_bwd(dtype: str, _: None, d_whole: Float[Array, "*L R o"]) -> tuple[Float[Array, "*L r o"]]:
    # gradients are summed in the type of the parameters, whatever travelled forward
    del dtype
    # a loop's sums would be sent a round later, its last round be copied behind it, and with that a second
    # call of cuDNN's like the first, which is not found when it is to run: see ``attention.fused_scale``
    return (lax.optimization_barrier(_scatter(d_whole)),)


_gather.defvjp(_gather_fwd, _gather_bwd)


def _scatter(d_whole: Float[Array, "*L R o"]) -> Float[Array, "*L r o"]:
    """This device's rows of the sum over devices."""
    return lax.psum_scatter(d_whole, AXIS, scatter_dimension=d_whole.ndim - 2, tiled=True)


def gather_early(leaves: list[Array], divisions: list[Division], dtype: str) -> list[Array]:
    """Parameters as the model takes them: whole, except for what is gathered where it is used.

    Args:
        dtype: Type of the products; embeddings are added up in the parameters' own.
    """
    return [
        _gather(leaf, str(leaf.dtype) if name in EMBEDDINGS else dtype) if early else leaf
        for leaf, (name, _, early) in zip(leaves, divisions, strict=True)
    ]


def add_up(gradients: list[Array], divisions: list[Division]) -> list[Array]:
    """The sum of all devices' gradients, of which each keeps what it has of the parameters."""
    return [_add_up(leaf, division) for leaf, division in zip(gradients, divisions, strict=True)]


def _add_up(gradient: Array, division: Division) -> Array:
    if division.spec == P():
        return lax.psum(gradient, AXIS)
    # what was gathered where it was used has been added up there
    return _scatter(gradient) if division.early else gradient
