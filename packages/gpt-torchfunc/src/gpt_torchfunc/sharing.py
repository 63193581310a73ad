"""Each process its share of the optimizer's state: of every leaf an equal part of its elements (ZeRO-1).

    gradients      summed over processes, each its part          (reduce-scatter)
    optimizer      every process updates its part of the weights
    weights        every process's part, gathered                (all-gather)

The update is ``finish``, as of whole leaves, on trees of parts. Shapes: P elements of a buffer, S of a part.

References:
    Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models".
"""

from __future__ import annotations

from gpt_trainer.ranks.collectives import gather_parts, sum_over_processes, sum_parts
from gpt_trainer.ranks.place import Place
from jaxtyping import Float
from torch import Tensor

from gpt_torchfunc.model import Parameters, from_leaves, leaves
from gpt_torchfunc.optimizer import global_norm
from gpt_torchfunc.tree import in_shares, zeros_in_one


class Shared:
    """A tree that is whole everywhere, and this process's part of it.

    Attributes:
        tree: The leaves, views into one buffer.
        part: A tree of vectors [S], views into the same.
        last: A number at the buffer's end.
    """

    def __init__(self, like: Parameters, place: Place) -> None:
        self._place = place
        flat, self.last, self.tree = zeros_in_one(like, place.world)
        self._parts = in_shares(flat, like, place.world)
        self.part = from_leaves([parts[place.rank] for parts in self._parts])
        self.flat: Float[Tensor, " P"] = flat

    def fill(self, values: Parameters | None) -> None:
        """Write a tree's values, or zeros."""
        self.flat.zero_()
        for buffer, value in zip(leaves(self.tree), leaves(values) if values else [], strict=bool(values)):
            buffer.copy_(value)

    def sum(self) -> Float[Tensor, ""]:
        """Sum over all processes: the number, and each process its part; the norm of the whole tree's sum."""
        sum_over_processes(self.last, self._place)
        for parts in self._parts:
            sum_parts(parts, self._place)
        square = global_norm(self.part).square()
        sum_over_processes(square, self._place)
        return square.sqrt()

    def gather(self) -> None:
        """Make the tree whole from every process's part."""
        for parts in self._parts:
            gather_parts(parts, self._place)

    def gathered(self, part: Parameters) -> Parameters:
        """The whole tree of which every process has such a part."""
        whole = Shared(self.tree, self._place)
        for own, value in zip(leaves(whole.part), leaves(part), strict=True):
            own.copy_(value)
        whole.gather()
        return whole.tree
