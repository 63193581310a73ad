"""Each process its share of the optimizer's state, and of its work: elements of the flat buffers (ZeRO-1).

    gradients      summed over processes, each its share         (reduce-scatter)
    optimizer      every process updates its share of the weights
    weights        every process's share, gathered               (all-gather)

Shapes: P elements of a buffer, n of a region of it, S of a process's share of that.

References:
    Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models".
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from gpt_trainer.backend import OptimizerConfig
from gpt_trainer.ranks.collectives import gather_parts, send_from_owners, sum_over_processes, sum_parts
from gpt_trainer.ranks.place import Place
from jaxtyping import Float
from torch import Tensor

from gpt_triton.model import Parameters, Plan, Stretch
from gpt_triton.ops import Ops
from gpt_triton.optimizer import OptimizerState
from gpt_triton.step import Sums, TrainingState, finish


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


class Shared:
    """This process's shares, and what it does for them together with the others.

    Args:
        params: Of as many aligned shares as there are processes, see ``zeros``.
        uncut: As in ``regions``.
    """

    def __init__(self, params: Parameters, place: Place, *, uncut: bool) -> None:
        self._place, self._like = place, params.flat
        self._regions = regions(params, place.world, uncut=uncut)
        # at one address, which a recorded step knows
        self._norm = params.flat.new_zeros(1)

    def optimizer_init(self) -> OptimizerState:
        """Zeros for every element of the shares."""
        return {
            tree: Stretch(torch.zeros_like(region.parts(self._like)[self._place.rank]))
            for region in self._regions
            for tree in region.kept
        }

    def whole(self, tree: str) -> Stretch:
        """Zeros for all processes' shares of one of the optimizer's buffers."""
        region = self._region(tree)
        return Stretch(torch.zeros_like(region.of(self._like)), region.start)

    def own(self, tree: str, whole: Stretch) -> Float[Tensor, " S"]:
        """This process's share of such a buffer."""
        return self._parts(tree, whole)[self._place.rank]

    def gathered(self, tree: str, own: Stretch) -> Stretch:
        """The whole buffer of which every process has such a share."""
        whole = self.whole(tree)
        self.own(tree, whole).copy_(own.values)
        gather_parts(self._parts(tree, whole), self._place)
        return whole

    def sum(self, sums: Sums, ops: Ops) -> None:
        """Sum over all processes: the loss, and each its shares of the gradient; its whole norm is kept."""
        sum_over_processes(sums.loss, self._place)
        self._norm.zero_()
        for region in self._regions:
            parts = region.parts(sums.gradients.flat)
            sum_parts(parts, self._place)
            own = parts[self._place.rank]
            if len(own):
                self._norm.add_(ops.global_norm(own).square_())
        sum_over_processes(self._norm, self._place)
        self._norm.sqrt_()

    def finish(
        self,
        state: TrainingState,
        sums: Sums,
        scalars: Float[Tensor, " 4"],
        config: OptimizerConfig,
        plan: Plan,
    ) -> Float[Tensor, " 3"]:
        """``step.finish``, of the shares alone."""
        own = [self._share(state, sums, region) for region in self._regions]
        return [finish(*each, scalars, config, plan, self._norm) for each in own][-1]

    def gather(self, state: TrainingState) -> None:
        """Make whole what the passes read; of another's share of the float32 matrices nothing is known."""
        params, shadow, last = state.params, state.shadow, self._regions[-1]
        self.gather_flat(shadow.flat)
        if shadow is not params:
            # gains and biases are read in float32
            send_from_owners(last.parts(params.flat), params.decay_count - last.start)

    def gather_flat(self, flat: Float[Tensor, " P"]) -> None:
        """Make a buffer whole from every process's shares."""
        for region in self._regions:
            gather_parts(region.parts(flat), self._place)

    def _region(self, tree: str) -> Region:
        return next(region for region in self._regions if tree in region.kept)

    def _parts(self, tree: str, whole: Stretch) -> tuple[Float[Tensor, " S"], ...]:
        return whole.values.split(self._region(tree).sizes)

    def _share(self, state: TrainingState, sums: Sums, region: Region) -> tuple[TrainingState, Sums]:
        """Of a region what this process changes, and by which gradient."""
        rank = self._place.rank
        own = region.share(state.params, rank)
        narrow = own if state.shadow is state.params else region.share(state.shadow, rank)
        kept = {tree: state.optimizer[tree] for tree in region.kept}
        return TrainingState(own, kept, narrow), Sums(sums.loss, region.share(sums.gradients, rank))
