"""What a block keeps for its backward, and what the backward computes again: a choice of memory against time.

The stream before each norm, queries, keys, values and attention's output are always kept: 6 D numbers per
token. For the others the two plans decide. Bytes are those of gpt2-124m's 12 layers in bfloat16 at 64 rows of
1,024 tokens, milliseconds what keeping saves on an H200: 7.9 for the first and the last row in a whole step,
1.5 for both norms (2026-11-29); the rest is their difference:

| kept | numbers per token and block | GB | milliseconds |
|---|---|--:|---|
| output of the norm before attention | D | 1.2 | 0.8: one pass of LayerNorm |
| output of the norm before the MLP | D | 1.2 | 0.8: one pass of LayerNorm |
| GELU's output and its slope | 8 D | 9.7 | 7.1: the MLP's first product |

Shapes: B rows, T positions, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from gpt_triton.options import KeepChoice


class Keep(NamedTuple):
    """What a block keeps besides the stream and attention's tensors.

    Attributes:
        norm1: The output of the norm before attention.
        norm2: The output of the norm before the MLP.
        hidden: GELU's output and its slope.
    """

    norm1: bool
    norm2: bool
    hidden: bool


# the fastest, and the smallest that costs less than a twelfth of the speed
PLANS: dict[KeepChoice, Keep] = {"all": Keep(True, True, True), "less": Keep(False, True, False)}
NOTHING = Keep(False, False, False)
