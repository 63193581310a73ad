"""What the flags come to on a given device."""

from __future__ import annotations

import os

import torch
from gpt_trainer.backend import Runtime
from gpt_trainer.model_config import ModelConfig

from gpt_triton.model import Plan
from gpt_triton.ops import Keep, Ops
from gpt_triton.options import KeepChoice, Kernels, Options

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

KEEPS: dict[KeepChoice, Keep] = {
    "all": Keep(norm1=True, norm2=True, hidden=True),  # the fastest
    "most": Keep(norm1=False, norm2=True, hidden=True),  # a twenty-fifth less memory
    "less": Keep(norm1=False, norm2=True, hidden=False),  # the least for under a twelfth of the speed
}


def make_plan(config: ModelConfig, runtime: Runtime, options: Options, device: torch.device) -> Plan:
    """What the passes need to know, with open choices made.

    Raises:
        ValueError: If the precision is unknown, or Triton kernels are asked for where they cannot run.
    """
    if runtime.precision not in DTYPES:
        raise ValueError(f"precision={runtime.precision!r} is not one of {', '.join(DTYPES)}")
    return Plan(
        n_head=config.n_head,
        vocab_size=config.vocab_size,
        ops=choose_ops(choose_kernels(options.kernels, device)),
        dtype=DTYPES[runtime.precision],
        keep=KEEPS[options.keep],
        dropout=config.dropout,
    )


def choose_kernels(kernels: Kernels, device: torch.device) -> Kernels:
    """What ``"auto"`` comes to; a wish that cannot be met is refused.

    Raises:
        ValueError: If Triton kernels are asked for where they cannot run.
    """
    if kernels == "auto":
        return "triton" if device.type == "cuda" else "reference"
    if kernels == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "kernels='triton' needs a GPU; on a CPU choose 'reference' or 'auto', or set TRITON_INTERPRET=1 "
            "to run the kernels in Triton's (very slow) interpreter"
        )
    return kernels


def choose_ops(kernels: Kernels) -> Ops:
    """The set of ops; Triton is imported only if it is meant."""
    # not "from gpt_triton import": its __getattr__ would hide the modules from mypy
    if kernels == "reference":
        import gpt_triton.reference

        return gpt_triton.reference
    import gpt_triton.kernels

    return gpt_triton.kernels
