"""Model FLOP/s utilization: the arithmetic that training needs, over what the device could do."""

from __future__ import annotations

import re

from gpt_trainer.backend import Precision
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import parameter_count

# Dense peaks in TFLOP/s, (bfloat16, float32 outside the tensor cores), from NVIDIA's data sheets: H100 and
# H200 (2024), A100 (2021), L40S, L4, A10, V100 (no bfloat16), GeForce Ada and Ampere white papers (dense
# bf16 with float32 accumulation). Longer names stand before those that they begin with.
PEAKS: dict[str, tuple[float, float]] = {
    "B200": (2250.0, 75.0),
    "GH200": (989.4, 66.9),
    "H200": (989.4, 66.9),
    "H100 NVL": (835.5, 60.0),
    "H100 PCIe": (756.0, 51.2),
    "H100": (989.4, 66.9),
    "A100": (311.8, 19.5),
    "A10G": (70.0, 31.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
}


def flops_per_token(config: ModelConfig, context: int) -> float:
    """Floating-point operations of forward and backward for one token: ``6 N + 12 L D T``.

    N counts the parameters that take part in products: all but the position table, the tied head once.
    The second term is attention without regard to the causal mask, as is usual. Recomputation does not
    count.

    References:
        Chowdhery et al. 2022 (PaLM), appendix B.
    """
    weights = parameter_count(config) - config.context * config.d_model
    return 6.0 * weights + 12.0 * config.n_layer * config.d_model * context


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """The device's dense peak in FLOP/s; None for a device that is not in the table."""
    for name, (bfloat16, float32) in PEAKS.items():
        # an L40 is no L4, and a card's slower or faster sister no card of the table
        if re.search(rf"\b{name}\b(?! (Ti|D|Laptop))", device_name):
            return (bfloat16 if precision == "bfloat16" else float32) * 1e12
    return None
