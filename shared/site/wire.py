"""What many GPUs send each other in a step, on paper: bytes and milliseconds from sizes and published rates.

A ring of n GPUs takes the sum of S bytes on all of them by 2 (n - 1) / n S bytes that each sends; a sum of
which each keeps a part, or parts that all get, by half of that. Within a host they go by NVLink; rings
over hosts enter and leave each host once, and share all of its adapters. NCCL is taken to reach of both rates
what it reached of NVLink's with the same model's gradients, on two GPUs. None of it is taken as hidden: on a
GPU at its limit of power, sums under the backward took from the products what they saved behind them.

References:
    NVIDIA H200 Tensor Core GPU data sheet (2024): NVLink, 900 GB/s in both directions together.
    NVIDIA DGX H200 data sheet (2024): eight ConnectX-7 adapters of 400 Gb/s for eight GPUs.
    Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
"""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple, get_args

from gpt_trainer.backend import Shard
from gpt_trainer.model_config import MODEL_PRESETS, ModelConfig
from gpt_trainer.parameters import parameter_shapes
from many import RESULTS, read_lines
from many import rows as seen_rows

PERFORMANCE = Path(__file__).parents[2] / "packages" / "gpt-triton" / "docs" / "performance.md"
NVLINK, HOST, GPUS_OF_HOST = 450e9, 8 * 50e9, 8
"""Bytes a second in one direction: of a GPU to the others of its host, of a host to the others."""
GPUS = (2, 8, 64, 512)
ROWS = {"gpt2-124m": 64, "gpt2-1.5b": 16}
"""Rows of 1,024 tokens on a GPU."""
LINES = {"gpt2-124m": "gpt-triton, B=64", "gpt2-1.5b": "gpt2-1.5b, B=16"}
"""Where gpt-triton's tables tell a step of them on one H200."""


class Plan(NamedTuple):
    """A step of one size, sharding and number of GPUs: milliseconds, gigabytes; the share that was seen."""

    model: str
    gpus: int
    shard: Shard
    sent: float
    wire: float
    step: float
    state: float
    seen: str = ""

    @property
    def share(self) -> float:
        """Of ``gpus`` times the speed of one."""
        return self.step / (self.step + self.wire)

    @property
    def first(self) -> str:
        """What a faster machine of this size would need first."""
        return "the GPU itself" if self.wire < 0.05 * self.step else "the wire"


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


def traffic(config: ModelConfig, shard: Shard, gpus: int, width: int = 4) -> float:
    """Bytes that each GPU sends, embeddings in float32, the blocks' weights in bfloat16.

    Args:
        width: Bytes of a gradient.
    """
    ends, blocks = sizes(config)
    part = (gpus - 1) / gpus
    if shard == "none":
        return 2 * part * width * (blocks + ends)
    times = 2 if shard == "all" else 1
    return part * ((times * 2 + width) * blocks + (4 + width) * ends)


@cache
def reached(model: str) -> float:
    """Share of NVLink's published rate at which NCCL summed a model's gradients on several GPUs.

    Raises:
        LookupError: If no run tells it.
    """
    for one in read_lines():
        if (one["backend"], one["preset"], one["shard"], one["note"]) == ("gpt-triton", model, "none", ""):
            # the GPU that comes last waits least
            seconds = 1e-3 * min(one["unhidden_ms"])
            return traffic(MODEL_PRESETS[model], "none", one["gpus"]) / seconds / NVLINK
    raise LookupError(f"{RESULTS} has no run of {model}")


def plan(model: str, shard: Shard, gpus: int, step: float | None = None, width: int = 4) -> Plan:
    """One row of the table.

    Args:
        step: Milliseconds of the GPU's own work; as measured if not given.
        width: Bytes of a gradient that is sent.
    """
    config, own = MODEL_PRESETS[model], measured(model) if step is None else step
    sent = traffic(config, shard, gpus, width)
    rate = reached(model) * (NVLINK if gpus <= GPUS_OF_HOST else min(NVLINK, HOST))
    parts = 1 if shard == "none" else gpus
    # weights and two moments in parts; the gradient whole while the pass goes on, but for all
    state = 4 * sum(sizes(config)) * (3 / parts + (1 / parts if shard == "all" else 1)) / 1e9
    return Plan(model, gpus, shard, sent / 1e9, 1e3 * sent / rate, own, state)


def seen(one: Plan) -> str:
    """The least and the most of as many times one GPU that backends reached, as far as they were run."""
    shares = [
        row.share
        for row in seen_rows(read_lines())
        if (row.model, row.gpus, row.shard) == (one.model, one.gpus, one.shard) and row.share > 0
    ]
    return "-".join(dict.fromkeys(f"{share:.3f}" for share in (min(shares), max(shares)))) if shares else ""


def weak() -> list[Plan]:
    """Each GPU as busy as one alone."""
    plans = [plan(model, shard, gpus) for model in ROWS for gpus in GPUS for shard in get_args(Shard)]
    return [one._replace(seen=seen(one)) for one in plans]


def narrow(gpus: int = GPUS_OF_HOST) -> list[Plan]:
    """Gradients of a host's GPUs sent as bfloat16; what rounds them is not counted."""
    return [plan(model, shard, gpus, width=2) for model in ROWS for shard in get_args(Shard)]


def strong(tokens: int = 524_288, context: int = 1024) -> list[Plan]:
    """A step of half a million tokens, however many GPUs share it."""
    found = []
    for model, rows in ROWS.items():
        one = measured(model) / (rows * context)
        found += [plan(model, "optimizer", gpus, one * tokens / gpus) for gpus in GPUS]
    return found


HEADS = ("model", "GPUs", "--shard", "GB sent by each", "ms on the wire", "ms of its own",
         "of N times one", "seen", "GB of state", "first bottleneck")  # fmt: skip


def table(plans: list[Plan]) -> str:
    """HTML."""
    return tabulate([[*HEADS], *map(_cells, plans)])


def tabulate(rows: list[list[str]]) -> str:
    """HTML of heads and rows, which a narrow page moves past by itself; backticks mark code."""
    heads, *body = [[re.sub("`([^`]*)`", r"<code>\1</code>", cell) for cell in row] for row in rows]
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body)
    whole = f"<table class='docutils'><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="table-wrapper container">{whole}</div>'


def _cells(one: Plan) -> list[str]:
    figures = (f"{one.sent:.2f}", f"{one.wire:.1f}", f"{one.step:.1f}")
    return [
        *(one.model, str(one.gpus), one.shard, *figures),
        *(f"{one.share:.3f}", one.seen, f"{one.state:.1f}", one.first),
    ]
