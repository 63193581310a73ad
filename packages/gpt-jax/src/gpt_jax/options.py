"""The flags that only this backend has, and what they come to on a given device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args, get_type_hints

import jax
from gpt_trainer.backend import Runtime
from gpt_trainer.model_config import ModelConfig

from gpt_jax.model import Plan

LOGITS_IN_FLIGHT = {"gpu": 2**28, "cpu": 2**24}
"""Logits that exist at a time in the loss: large products keep a GPU busy, small ones stay in a cache."""


@dataclass(frozen=True)
class Options:
    """Flags that only this backend has.

    Attributes:
        attention: ``"written"`` out; ``"cudnn"``, the fused kernel behind ``jax.nn``; ``"auto"``: fused on
            a GPU in bfloat16. cuDNN has no float32 kernel, draws its own random numbers and is told of no
            documents: float32, training with dropout, and packed documents use the written form.
        layers: ``"scan"`` compiles one block and loops over it; ``"unroll"`` compiles each for itself. On an
            H200 (gpt2-124m, bfloat16, 64 rows of 1024, jax 0.11.2, 2026-11-23) unrolling gave 5 % more
            tokens per second and took 19 % less memory, for 16.5 s to the first step instead of 5.1 s.
            Scanning is the default because XLA 0.11.2 fails to run several of cuDNN's kernels in one
            program when it is told to be deterministic.
        preallocate: ``"on"`` takes most of a GPU's memory at the start, as JAX does by default.

    Raises:
        ValueError: If a value is not one of the choices.
    """

    attention: Literal["auto", "written", "cudnn"] = field(
        default="auto",
        metadata={"help": "attention written out, or cuDNN's kernel (auto: cuDNN on a GPU in bfloat16)"},
    )
    layers: Literal["scan", "unroll"] = field(
        default="scan",
        metadata={"help": "loop over blocks, or compile each one: slower to start, faster to run"},
    )
    preallocate: Literal["off", "on"] = field(
        default="off", metadata={"help": "take most of the GPU's memory at the start"}
    )

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Options).items():
            if getattr(self, name) not in get_args(hint):
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(get_args(hint))}")


def make_plan(config: ModelConfig, runtime: Runtime, options: Options, device: jax.Device) -> Plan:
    """What the forward pass needs to know, with open choices made.

    Args:
        config: The model's sizes.
        runtime: For the precision.
        options: For the attention.
        device: Where the model runs.

    Raises:
        ValueError: If the precision is unknown, or cuDNN is asked for where it cannot run.
    """
    if runtime.precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision={runtime.precision!r} is not one of float32, bfloat16")
    return Plan(
        n_head=config.n_head,
        vocab_size=config.vocab_size,
        dtype=runtime.precision,
        attention=_choose_attention(config, runtime, options, device),
        dropout=config.dropout,
        chunk=LOGITS_IN_FLIGHT["cpu" if device.platform == "cpu" else "gpu"],
    )


def _choose_attention(
    config: ModelConfig, runtime: Runtime, options: Options, device: jax.Device
) -> Literal["written", "cudnn"]:
    """What ``"auto"`` comes to; a wish that cannot be met is refused."""
    obstacles = {
        "a GPU": device.platform == "cpu",
        "precision='bfloat16'": runtime.precision != "bfloat16",
        # cuDNN's flash attention takes head widths that are multiples of 8, up to 128
        "a head width that is a multiple of 8, at most 128": config.head_width % 8 or config.head_width > 128,
    }
    missing = [need for need, absent in obstacles.items() if absent]
    if options.attention == "cudnn" and missing:
        raise ValueError(f"attention='cudnn' needs {' and '.join(missing)}; use attention='written'")
    return "written" if missing or options.attention == "written" else "cudnn"


def stacks_layers(options: Options, plan: Plan, *, deterministic: bool) -> bool:
    """Whether the blocks are stacked and looped over.

    Args:
        options: For the caller's choice.
        plan: For the attention.
        deterministic: Whether XLA is told to be.

    Raises:
        ValueError: If the choice is one that XLA cannot run.
    """
    if options.layers == "unroll" and plan.attention == "cudnn" and deterministic:
        raise ValueError(
            "layers='unroll' with cuDNN's attention needs --no-deterministic: "
            "XLA cannot run several of these kernels in one deterministic program"
        )
    return options.layers == "scan"
