"""Each process its share of the optimizer's state: of every leaf an equal part of its elements (ZeRO-1).

Of the leaves that Muon takes it is whole matrices, of some of the blocks.

    gradients      summed over processes, each its part          (reduce-scatter)
    optimizer      every process updates its part of the weights
    weights        every process's part, gathered                (all-gather)

The update is ``finish``, as of whole leaves, on trees of parts. Shapes: P elements of a buffer, S of a part;
n blocks, R rows, C columns.

References:
    Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models".
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from gpt_trainer.ranks.collectives import gather_parts, sum_over_processes, sum_parts
from gpt_trainer.ranks.place import Place
from jaxtyping import Float
from torch import Tensor

from gpt_torchfunc.model import Parameters
from gpt_torchfunc.optimizer import global_norm
from gpt_torchfunc.tree import Leaves, from_leaves, in_shares, named_leaves, zeros_in_one


class Shared:
    """A tree that is whole everywhere, and this process's part of it.

    Attributes:
        tree: The leaves, views into one buffer.
        part: A tree of vectors [S], or matrices [n, R, C], views into the same.
        last: A number at the buffer's end.

    Args:
        uncut: Leaves of which each process has whole matrices.
    """

    def __init__(self, like: Parameters, place: Place, uncut: AbstractSet[str] = frozenset()) -> None:
        self._place, self._uncut = place, uncut
        flat, self.last, self.tree = zeros_in_one(like, place.world)
        self._parts = in_shares(flat, like, place.world, uncut)
        own = {
            name: parts[place.rank].view(-1, *leaf.shape[1:]) if name in uncut else parts[place.rank]
            for (name, leaf), parts in zip(named_leaves(like).items(), self._parts, strict=True)
        }
        self.part = from_leaves(own.values())
        self.flat: Float[Tensor, " P"] = flat

    def parts_of(self, values: Leaves) -> Leaves:
        """This process's parts of some of the leaves."""
        whole = Shared(self.tree, self._place, self._uncut)
        for name, value in values.items():
            named_leaves(whole.tree)[name].copy_(value)
        return {name: named_leaves(whole.part)[name] for name in values}

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

    def gathered(self, parts: Leaves) -> Leaves:
        """The whole leaves of which every process has such parts."""
        whole = Shared(self.tree, self._place, self._uncut)
        for name, value in parts.items():
            named_leaves(whole.part)[name].copy_(value)
        whole.gather()
        return {name: named_leaves(whole.tree)[name] for name in parts}
