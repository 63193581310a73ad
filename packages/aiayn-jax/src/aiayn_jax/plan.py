"""How the encoder-decoder is to run: precision, device, and the choices that change no value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
from gpt_jax import model
from gpt_jax.device import choose_devices
from gpt_jax.mesh import Layout
from gpt_jax.plan import LOGITS_IN_FLIGHT

from aiayn_jax.config import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class Plan(model.Plan):
    """What GPT-2's plan holds, and what only the encoder-decoder knows; made by ``make_plan``.

    Attributes:
        layout: Where the model runs: on each of its devices whole, with a share of a batch's rows.
        smoothing: Share of the target distribution that is spread over the vocabulary.
        unroll: Compile every layer for itself, instead of one for a loop over all.
        wide_logits: Keep the loss's logits in float32, instead of rounding them to ``dtype``.
        deterministic: On a GPU, use no routine whose order of summation differs from run to run.
    """

    layout: Layout
    smoothing: float
    unroll: bool = False
    wide_logits: bool = True
    deterministic: bool = True

    @property
    def device(self) -> jax.Device:
        """Where what one device does is done, such as translating."""
        return self.layout.here


def make_plan(
    config: TransformerConfig,
    *,
    precision: Literal["float32", "bfloat16"] = "float32",
    device: Literal["auto", "cpu", "gpu"] = "auto",
    attention: Literal["auto", "written", "cudnn"] = "auto",
    unroll: bool = False,
    wide_logits: bool = True,
    deterministic: bool = True,
    devices: int = 1,
) -> Plan:
    """Choose the device, and settle what ``"auto"`` leaves open.

    Args:
        precision: Type of activations and products; parameters, moments and statistics stay float32.
        attention: ``"auto"`` is cuDNN's where it can run, else written out.
        wide_logits: Keep the loss's logits in float32.
        devices: How many of them share a batch's rows.

    Raises:
        ValueError: If a choice is unknown, or this machine or model cannot have it.
    """
    for name, value, allowed in (
        ("precision", precision, ("float32", "bfloat16")),
        ("attention", attention, ("auto", "written", "cudnn")),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
    layout = Layout(tuple(choose_devices(device, devices, preallocate=False)))
    missing = _cudnn_obstacles(config, precision, layout.here, deterministic=deterministic)
    if attention == "cudnn" and missing:
        raise ValueError(f"attention='cudnn' needs {' and '.join(missing)}; use attention='written'")
    return Plan(
        n_head=config.n_head,
        vocab_size=config.vocab_size,
        dtype=precision,
        attention="written" if missing or attention == "written" else "cudnn",
        dropout=config.dropout,
        chunk=LOGITS_IN_FLIGHT["cpu" if layout.here.platform == "cpu" else "gpu"],
        layout=layout,
        smoothing=config.label_smoothing,
        unroll=unroll,
        wide_logits=wide_logits,
        deterministic=deterministic,
    )


def _cudnn_obstacles(
    config: TransformerConfig, precision: str, device: jax.Device, *, deterministic: bool
) -> list[str]:
    """What cuDNN's attention needs and does not find."""
    width = config.d_model // config.n_head
    obstacles = {
        "a GPU": device.platform == "cpu",
        "precision='bfloat16'": precision != "bfloat16",
        "a head width that is a multiple of 8, at most 128": width % 8 != 0 or width > 128,
        # XLA 0.11.2 fails to run several of cuDNN's kernels in one program that is to be deterministic
        "--no-deterministic": deterministic,
    }
    return [need for need, absent in obstacles.items() if absent]
