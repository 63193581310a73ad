"""What each of several processes has of the leaves, without the processes."""

from __future__ import annotations

import torch
from gpt_torchfunc.optimizer import BLOCK_MATRICES
from gpt_torchfunc.sharing import Shared
from gpt_torchfunc.tree import named_leaves
from gpt_trainer.ranks.place import Place

WORLD = 3


def test_parts_are_whole_blocks_or_equal_cuts_and_together_the_leaves(params):
    leaves = named_leaves(params)
    shares = [Shared(params, Place(rank, WORLD), BLOCK_MATRICES).parts_of(leaves) for rank in range(WORLD)]
    for name, leaf in leaves.items():
        parts = [share[name] for share in shares]
        if name in BLOCK_MATRICES:
            assert [len(part) for part in parts] == [0, 1, 1]  # of two blocks
            assert torch.equal(torch.cat(parts), leaf)
        else:
            assert len({part.shape for part in parts}) == 1
            whole = torch.cat(parts)
            assert torch.equal(whole[: leaf.numel()].view(leaf.shape), leaf)
            assert not whole[leaf.numel() :].any()
