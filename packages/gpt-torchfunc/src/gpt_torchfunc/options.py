"""The flags that only this backend has, and what they come to on a given device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args, get_type_hints

import torch
from gpt_trainer.backend import Runtime
from gpt_trainer.model_config import ModelConfig

from gpt_torchfunc.device import can_compile
from gpt_torchfunc.model import Plan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LOGITS_IN_FLIGHT = {"cuda": 8192 * 50304, "cpu": 2**24}
"""Logits that exist at a time in the loss: large products keep a GPU busy, small ones stay in a cache."""


@dataclass(frozen=True)
class Options:
    """Flags that only this backend has.

    Attributes:
        attention: ``"written"`` out; ``"sdpa"``, torch's fused kernel; ``"auto"``: fused on a GPU.
            With dropout the written form is used in training, as torch's kernel has its own random numbers.
        compile: Compile the step with ``torch.compile``; ``"auto"``: on a GPU, as on a CPU a compilation
            takes a minute and saves a quarter of each step.
        scoring: Log-probabilities by ``"trees"`` of tokens (see ``scoring.py``), on a CPU alone, or by
            ``"rows"``, as in training; ``"auto"``: by trees on a CPU.

    Raises:
        ValueError: If a value is not one of the choices.
    """

    attention: Literal["auto", "written", "sdpa"] = field(
        default="auto",
        metadata={"help": "attention written out, or torch's fused kernel (auto: fused on a GPU)"},
    )
    compile: Literal["auto", "on", "off"] = field(
        default="auto", metadata={"help": "compile the step with torch.compile (auto: on a GPU)"}
    )
    scoring: Literal["auto", "trees", "rows"] = field(
        default="auto",
        metadata={"help": "evaluate by trees of tokens, on a CPU alone, or by rows (auto: trees on a CPU)"},
    )

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Options).items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(get_args(kind))}")


def make_plan(config: ModelConfig, runtime: Runtime, options: Options, device: torch.device) -> Plan:
    """What the forward pass needs to know, with open choices made.

    Args:
        config: The model's sizes.
        runtime: For the precision.
        options: For the attention.
        device: Where the model runs.

    Raises:
        ValueError: If the precision is unknown.
    """
    if runtime.precision not in DTYPES:
        raise ValueError(f"precision={runtime.precision!r} is not one of {', '.join(DTYPES)}")
    auto: Literal["written", "sdpa"] = "sdpa" if device.type == "cuda" else "written"
    return Plan(
        n_head=config.n_head,
        vocab_size=config.vocab_size,
        dtype=DTYPES[runtime.precision],
        attention=auto if options.attention == "auto" else options.attention,
        dropout=config.dropout,
        chunk=LOGITS_IN_FLIGHT[device.type],
    )


def wants_compile(options: Options, device: torch.device) -> bool:
    """Whether the step is to be compiled.

    Args:
        options: For the caller's choice.
        device: Where the model runs.

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


def scores_trees(options: Options, device: torch.device) -> bool:
    """Whether log-probabilities are taken by trees of tokens.

    Args:
        options: For the caller's choice.
        device: Where the model runs.

    Raises:
        ValueError: If it is wanted on another device than a CPU.
    """
    if options.scoring == "trees" and device.type != "cpu":
        raise ValueError("scoring='trees' needs device='cpu'; use scoring='rows'")
    return options.scoring != "rows" and device.type == "cpu"
