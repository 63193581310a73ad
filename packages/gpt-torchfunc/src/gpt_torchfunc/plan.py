"""What the flags come to on a given device."""

from __future__ import annotations

from typing import Literal

import torch
from gpt_trainer.backend import Runtime
from gpt_trainer.model_config import ModelConfig

from gpt_torchfunc.device import can_compile
from gpt_torchfunc.model import Plan
from gpt_torchfunc.options import Options
from gpt_torchfunc.repeatable import has_repeatable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LOGITS_IN_FLIGHT = {"cuda": 16384 * 50304, "cpu": 2**24}
"""Logits that exist at a time in the loss: large products keep a GPU busy, small ones stay in a cache."""


def make_plan(config: ModelConfig, runtime: Runtime, options: Options, device: torch.device) -> Plan:
    """What the forward pass needs to know, with open choices made.

    Raises:
        ValueError: If the precision is unknown, or cuDNN is wanted and cannot be asked.
    """
    if runtime.precision not in DTYPES:
        raise ValueError(f"precision={runtime.precision!r} is not one of {', '.join(DTYPES)}")
    return Plan(
        n_head=config.n_head,
        vocab_size=config.vocab_size,
        dtype=DTYPES[runtime.precision],
        attention=_choose_attention(runtime, options, device),
        dropout=config.dropout,
        chunk=LOGITS_IN_FLIGHT[device.type],
    )


def _choose_attention(
    runtime: Runtime, options: Options, device: torch.device
) -> Literal["written", "sdpa", "cudnn"]:
    """The form of attention; without ``deterministic`` torch asks cuDNN by itself."""
    repeatable = has_repeatable(device)
    if options.attention == "cudnn" and not repeatable:
        raise ValueError(
            "attention='cudnn' needs a Hopper GPU and a package nvidia-cudnn-frontend that fits torch's "
            "cuDNN; use attention='auto'"
        )
    if options.attention != "auto":
        return options.attention
    if device.type != "cuda":
        return "written"
    return "cudnn" if repeatable and runtime.deterministic else "sdpa"


def wants_compile(options: Options, device: torch.device) -> bool:
    """Whether the step is to be compiled.

    Raises:
        ValueError: If it is wanted and this machine lacks a compiler.
    """
    if options.compile == "on" and not can_compile(device):
        needed = (
            "triton and a C compiler (gcc or clang)"
            if device.type == "cuda"
            else "a C++ compiler (g++ or clang++)"
        )
        raise ValueError(f"compile='on' needs {needed}, not found here; use compile='off'")
    return options.compile == "on" or (
        options.compile == "auto" and device.type == "cuda" and can_compile(device)
    )


def tells_documents(plan: Plan, device: torch.device) -> bool:
    """Whether the fused kernel is told where documents begin: FlashAttention's, which has no float32."""
    half = plan.dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and plan.attention != "written" and half
