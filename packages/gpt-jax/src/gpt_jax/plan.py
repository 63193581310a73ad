"""What the flags come to on a given device."""

from __future__ import annotations

from typing import Literal

import jax
from gpt_trainer.backend import Runtime
from gpt_trainer.model_config import ModelConfig

from gpt_jax.model import Plan
from gpt_jax.options import Options

LOGITS_IN_FLIGHT = {"gpu": 8192 * 50304, "cpu": 2**24}
"""Logits that exist at a time in the loss: large products keep a GPU busy, small ones stay in a cache."""


def make_plan(config: ModelConfig, runtime: Runtime, options: Options, device: jax.Device) -> Plan:
    """What the forward pass needs to know, with open choices made.

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


def stacks_layers(options: Options, device: jax.Device) -> bool:
    """Whether the blocks are stacked and looped over."""
    return options.layers == "scan" or (options.layers == "auto" and device.platform == "cpu")
