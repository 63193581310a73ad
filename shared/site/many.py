"""What several GPUs did: the tables of a results file, for the page and for the README.

    python shared/site/many.py          # what stands in the README

``packages/gpt-compare/bench/several.py`` writes the file, a line of JSON for each run; those on one GPU
stand before those that they are compared with, and what was measured without one before them all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parents[2] / "packages" / "gpt-compare" / "results" / "h200-x2.jsonl"
LIBRARIES = ("torch", "triton", "jax")
NAMES = {"plain": "`plain.py`, `torch.compile`"}


class Row(NamedTuple):
    """A run.

    Attributes:
        name: The backend, and how it differs from what it does by itself.
        shard: What is shared out; ``alone`` on one GPU.
        gpus: How many of them.
        speed: Tokens a second of all GPUs.
        share: Of as many times the speed of one; NaN if none was measured.
        ms: A step.
        unhidden: Milliseconds of it in which a GPU only sends or waits for another, if it was looked into:
            the least and the most of the GPUs.
        memory: Peak of a GPU, gigabytes.
    """

    model: str
    name: str
    shard: str
    gpus: int
    speed: float
    share: float
    ms: float
    unhidden: tuple[float, float] | None
    memory: float


def read_lines(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Every run of the file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows(lines: list[dict[str, Any]]) -> Iterator[Row]:
    """Model by model and backend by backend, in the file's order: one GPU, then several beside it."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["preset"], line["backend"]), []).append(line)
    for model in dict.fromkeys(model for model, _ in groups):
        for (its_model, _), group in groups.items():
            if its_model == model:
                yield from _of_backend(group)


def _of_backend(group: list[dict[str, Any]]) -> Iterator[Row]:
    """The runs of one backend and model: those on one GPU, one after another, are a row, their mean.

    The runs behind them, of the same call, are told beside it.
    """
    speed = math.nan
    for on_one, runs in groupby(group, lambda one: one["shard"] == "alone"):
        found = list(runs)
        if on_one:
            speed = _mean(one["tokens_per_second"] / one["gpus"] for one in found)
            yield _row(found[0], speed, math.nan, _mean(ms for one in found for ms in one["ms"]))
            continue
        for one in found:
            total = one["tokens_per_second"]
            yield _row(one, total, total / one["gpus"] / speed, max(one["ms"]))


def _row(one: dict[str, Any], speed: float, share: float, ms: float) -> Row:
    name = ", ".join(word for word in (NAMES.get(one["backend"], one["backend"]), one["note"]) if word)
    waits = one["unhidden_ms"]
    unhidden = (min(waits), max(waits)) if waits else None
    gpus = 1 if one["shard"] == "alone" else one["gpus"]
    memory = one["peak_memory_bytes"] / 1e9
    return Row(one["preset"], name, one["shard"], gpus, speed, share, ms, unhidden, memory)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


HEADS = ("", "GPUs", "tokens/s", "of {0} times one", "ms a step", "only sending", "GB a GPU")
WORDS = {1: "one", 2: "two"}


def cells(row: Row) -> list[str]:
    """A row as text."""
    kind = WORDS.get(row.gpus, str(row.gpus))
    kind += {"alone": "", "ddp": ", DDP"}.get(row.shard, f", `--shard {row.shard}`")
    share = "" if math.isnan(row.share) else f"{row.share:.3f}"
    waits = "" if row.unhidden is None else "-".join(dict.fromkeys(f"{ms:.1f}" for ms in row.unhidden))
    figures = (f"{row.speed:,.0f}", share, f"{row.ms:.1f}", waits, f"{row.memory:.1f}")
    return [f"{row.model}, {row.name}", kind, *figures]


def whole(lines: list[dict[str, Any]]) -> list[list[str]]:
    """The table, its heads first."""
    count = max(one["gpus"] for one in lines)
    gpus = WORDS.get(count, str(count))
    return [[head.format(gpus) for head in HEADS], *map(cells, rows(lines))]


def markdown(lines: list[dict[str, Any]]) -> str:
    """``whole`` as text."""
    heads, *others = whole(lines)
    ruler = ["---", "---", *["--:"] * (len(heads) - 2)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ruler, *others))


def heading(lines: list[dict[str, Any]]) -> str:
    """Device, versions, date and rows."""
    count, versions = max(one["gpus"] for one in lines), dict[str, str]()
    for one in lines:
        versions |= {name: one["choices"][name] for name in LIBRARIES if name in one["choices"]}
    made = ", ".join(f"{name} {versions[name]}" for name in LIBRARIES if name in versions)
    days = " and ".join(sorted({one["date"][:10] for one in lines}))
    sizes = dict.fromkeys(f"{one['rows']} rows for {one['preset']}" for one in lines)
    return (
        f"{count} x {lines[0]['device']} of one host ({made}, {days}), "
        f"{lines[0]['precision']}, a GPU has {' and '.join(sizes)}, of {lines[0]['context']:,} tokens"
    )


def summary(lines: list[dict[str, Any]]) -> str:
    """The least and the most of twice one, and each backend beside DDP."""
    found = list(rows(lines))
    shares = [row.share for row in found if row.share > 0 and row.shard != "ddp"]
    models = dict.fromkeys(row.model for row in found if row.shard == "ddp")
    beside = ((model, _beside([row for row in found if row.model == model])) for model in models)
    times = [f"{model} ({', '.join(backends)})" for model, backends in beside]
    return (
        f"Two GPUs of one host give {min(shares):.2f} to {max(shares):.2f} times twice what one gives, and "
        f"by `--shard none` and `optimizer` so many times the tokens/s of PyTorch's DDP around `plain.py`: "
        f"{' and '.join(times)}."
    )


def _beside(found: list[Row]) -> Iterator[str]:
    """The backends of one model in the table's order; of several calls the mean."""
    speeds: dict[str, dict[str, list[float]]] = {}
    for row in found:
        speeds.setdefault(row.name.split(",")[0], {}).setdefault(row.shard, []).append(row.speed)
    ddp = next(_mean(its["ddp"]) for its in speeds.values() if "ddp" in its)
    for name, its in speeds.items():
        times = [f"{_mean(its[shard]) / ddp:.2f}" for shard in ("none", "optimizer") if shard in its]
        if times:
            yield f"{name} {' and '.join(times)}"


if __name__ == "__main__":
    found = read_lines()
    print(summary(found), heading(found), markdown(found), sep="\n\n")
