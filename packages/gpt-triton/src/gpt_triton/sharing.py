"""Each process its share of the optimizer's state, and of its work: elements of the flat buffers (ZeRO-1).

    gradients      summed over processes, each its share         (reduce-scatter)
    optimizer      every process updates its share of the weights
    weights        every process's share, gathered               (all-gather)

Shapes: P elements of a buffer, n of a region of it, S of a process's share of that.

References:
    Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gpt_triton.model import Parameters, Stretch
from gpt_triton.optimizer import OptimizerState
from gpt_triton.step import Sums, TrainingState


class Region(NamedTuple):
    """Elements of a buffer that are shared out over processes.

    Attributes:
        start: Its first element.
        sizes: Elements of each process's share, one behind the other.
        blocks: Which blocks' matrices they are: where each share begins, and the end; empty if they are cut
            anywhere.
    """

    start: int
    sizes: tuple[int, ...]
    blocks: tuple[int, ...] = ()

    def of(self, flat: Float[Tensor, " P"]) -> Float[Tensor, " n"]:
        """The region of a whole buffer."""
        return flat[self.start : self.start + sum(self.sizes)]

    def parts(self, flat: Float[Tensor, " P"]) -> tuple[Float[Tensor, " S"], ...]:
        """Every process's share of a whole buffer."""
        return self.of(flat).split(self.sizes)

    @property
    def kept(self) -> tuple[str, ...]:
        """What the optimizer keeps of each element."""
        return ("momentum",) if self.blocks else ("first", "second")

    def share(self, tree: Parameters, rank: int) -> Parameters:
        """A process's share of a tree, for what reads the buffer, or the blocks' matrices, alone."""
        own, start = self.parts(tree.flat)[rank], self.start + sum(self.sizes[:rank])
        blocks = tree.blocks[slice(*self.blocks[rank : rank + 2])] if self.blocks else ()
        decayed = min(max(tree.decay_count - start, 0), len(own))
        return tree._replace(
            flat=own, blocks=blocks, muon_count=len(own) if self.blocks else 0, decay_count=decayed
        )


def regions(tree: Parameters, shares: int, *, uncut: bool) -> list[Region]:
    """How a tree's elements are shared out: in equal parts, the last region ending in gains and biases.

    Args:
        tree: Of as many aligned shares, see ``zeros``.
        uncut: The blocks' matrices are a region before, of whole blocks, as equal as they can be.
    """
    start = tree.muon_count if uncut else 0
    rest = Region(start, ((tree.flat.numel() - start) // shares,) * shares)
    if not uncut:
        return [rest]
    count, size = len(tree.blocks), tree.muon_count // len(tree.blocks)
    ends = tuple(count * share // shares for share in range(shares + 1))
    return [Region(0, tuple(size * (end - begin) for begin, end in pairwise(ends)), ends), rest]


def init_shares(params: Parameters, regions: Sequence[Region], rank: int) -> OptimizerState:
    """Zeros for every element of a process's shares."""
    return {
        tree: Stretch(torch.zeros_like(region.parts(params.flat)[rank]))
        for region in regions
        for tree in region.kept
    }


def share_of_step(state: TrainingState, sums: Sums, region: Region, rank: int) -> tuple[TrainingState, Sums]:
    """A process's share of what a step changes."""
    own = region.share(state.params, rank)
    narrow = own if state.shadow is state.params else region.share(state.shadow, rank)
    kept = {tree: state.optimizer[tree] for tree in region.kept}
    return TrainingState(own, kept, narrow), Sums(sums.loss, region.share(sums.gradients, rank))
