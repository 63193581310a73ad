"""What many GPUs send each other in a step, on paper: bytes and milliseconds from sizes and published rates.

A ring of n GPUs takes the sum of S bytes on all of them by 2 (n - 1) / n S bytes that each sends; a sum of
which each keeps a part, or parts that all get, by half of that. Within a host they go by NVLink; rings
over hosts enter and leave each host once, and share all of its adapters.

References:
    NVIDIA H200 Tensor Core GPU data sheet (2024): NVLink, 900 GB/s in both directions together.
    NVIDIA DGX H200 data sheet (2024): eight ConnectX-7 adapters of 400 Gb/s for eight GPUs.
    Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple, get_args

from gpt_trainer.backend import Shard
from gpt_trainer.model_config import MODEL_PRESETS, ModelConfig
from gpt_trainer.parameters import parameter_shapes

PERFORMANCE = Path(__file__).parents[2] / "packages" / "gpt-triton" / "docs" / "performance.md"
NVLINK, HOST, GPUS_OF_HOST = 450e9, 8 * 50e9, 8
"""Bytes a second in one direction: of a GPU to the others of its host, of a host to the others."""
GPUS = (2, 8, 64, 512)
ROWS = {"gpt2-124m": 64, "gpt2-1.5b": 16}
"""Rows of 1,024 tokens on a GPU."""
LINES = {"gpt2-124m": "gpt-triton, B=64", "gpt2-1.5b": "gpt2-1.5b, B=16"}
"""Where gpt-triton's tables tell a step of them on one H200."""
BACKWARD = 2 / 3
"""Share of a step behind which gradients can hide: of its products, as each has two in the backward."""


class Traffic(NamedTuple):
    """What one GPU sends in a step.

    Attributes:
        before: Bytes that the pass waits for.
        under: Bytes that can go while it computes.
        behind: Bytes that are complete only when the backward is.
    """

    before: float
    under: float
    behind: float

    @property
    def bytes(self) -> float:
        """All of them."""
        return sum(self)


class Plan(NamedTuple):
    """A step of one size, sharding and number of GPUs; milliseconds, gigabytes."""

    model: str
    gpus: int
    shard: Shard
    sent: float
    wire: float
    seen: float
    step: float
    state: float

    @property
    def share(self) -> float:
        """Of ``gpus`` times the speed of one."""
        return self.step / (self.step + self.seen)

    @property
    def first(self) -> str:
        """What a faster machine of this size would need first."""
        if self.seen < 0.01 * self.step:
            return "the GPU itself"
        return (
            "the wire" if self.wire > BACKWARD * self.step else "the embedding's gradient, last and unhidden"
        )


def measured(model: str) -> float:
    """Milliseconds of a step on one H200, from gpt-triton's tables.

    Raises:
        LookupError: If the row is gone.
    """
    line, text = LINES[model], PERFORMANCE.read_text(encoding="utf-8")
    row = re.search(rf"^\| {re.escape(line)} \| \**([\d.]+)", text, re.MULTILINE)
    if row is None:
        raise LookupError(f"{PERFORMANCE} has no row {line!r}")
    return float(row[1])


def sizes(config: ModelConfig) -> tuple[float, float]:
    """Parameters of the embeddings, and of the rest."""
    counts = {name: float(math.prod(shape)) for name, shape in parameter_shapes(config).items()}
    ends = counts["transformer.wte.weight"] + counts["transformer.wpe.weight"]
    return ends, sum(counts.values()) - ends


def traffic(config: ModelConfig, shard: Shard, gpus: int) -> Traffic:
    """What each GPU sends, gradients and embeddings in float32, the blocks' weights in bfloat16."""
    ends, blocks = sizes(config)
    part = (gpus - 1) / gpus
    if shard == "none":
        return Traffic(0.0, 2 * part * 4 * blocks, 2 * part * 4 * ends)
    times = 2 if shard == "all" else 1
    return Traffic(part * 4 * ends, part * (times * 2 + 4) * blocks, part * 4 * ends)


def plan(model: str, shard: Shard, gpus: int, step: float | None = None) -> Plan:
    """One row of the table.

    Args:
        step: Milliseconds of the GPU's own work; as measured if not given.
    """
    config, own = MODEL_PRESETS[model], measured(model) if step is None else step
    found = traffic(config, shard, gpus)
    rate = NVLINK if gpus <= GPUS_OF_HOST else min(NVLINK, HOST)
    before, under, behind = (1e3 * part / rate for part in found)
    parts = 1 if shard == "none" else gpus
    # weights and two moments in parts; the gradient whole while the pass goes on, but for all
    state = 4 * sum(sizes(config)) * (3 / parts + (1 / parts if shard == "all" else 1)) / 1e9
    seen = before + behind + max(0.0, under - BACKWARD * own)
    return Plan(model, gpus, shard, found.bytes / 1e9, before + under + behind, seen, own, state)


def weak() -> list[Plan]:
    """Each GPU as busy as one alone."""
    return [plan(model, shard, gpus) for model in ROWS for gpus in GPUS for shard in get_args(Shard)]


def strong(tokens: int = 524_288, context: int = 1024) -> list[Plan]:
    """A step of half a million tokens, however many GPUs share it."""
    found = []
    for model, rows in ROWS.items():
        one = measured(model) / (rows * context)
        found += [plan(model, "optimizer", gpus, one * tokens / gpus) for gpus in GPUS]
    return found


HEADS = ("model", "GPUs", "--shard", "GB sent by each", "ms on the wire", "of them seen", "ms of its own",
         "of N times one", "GB of state", "first bottleneck")  # fmt: skip


def table(plans: list[Plan]) -> str:
    """HTML, which a narrow page moves past by itself."""
    head = "".join(f"<th>{name}</th>" for name in HEADS)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in _cells(one))}</tr>" for one in plans)
    whole = f"<table class='docutils'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="table-wrapper container">{whole}</div>'


def _cells(one: Plan) -> list[str]:
    figures = (f"{one.sent:.2f}", f"{one.wire:.1f}", f"{one.seen:.1f}", f"{one.step:.1f}")
    return [
        *(one.model, str(one.gpus), one.shard, *figures),
        *(f"{one.share:.3f}", f"{one.state:.1f}", one.first),
    ]
