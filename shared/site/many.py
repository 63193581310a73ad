"""What several GPUs did: the tables of a results file, for the page and for the README.

    python shared/site/many.py          # what stands in the README

``packages/gpt-compare/bench/several.py`` writes the file, a line of JSON for each run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parents[2] / "packages" / "gpt-compare" / "results" / "h200-x2.jsonl"
LIBRARIES = ("torch", "triton", "jax")
NAMES = {"plain": "`plain.py`, `torch.compile`, DDP"}


class Row(NamedTuple):
    """A run.

    Attributes:
        name: The backend, and how it differs from what it does by itself.
        shard: What is shared out; ``alone`` on one GPU.
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
    """The runs of one backend and model; those on one GPU are a row, their mean."""
    alone = [one for one in group if one["shard"] == "alone"]
    speed = math.nan
    if alone:
        speed = _mean(one["tokens_per_second"] / one["gpus"] for one in alone)
        ms = _mean(ms for one in alone for ms in one["ms"])
        yield _row(alone[0], speed, math.nan, ms)
    for one in group:
        if one["shard"] != "alone":
            yield _row(
                one, one["tokens_per_second"], one["tokens_per_second"] / one["gpus"] / speed, max(one["ms"])
            )


def _row(one: dict[str, Any], speed: float, share: float, ms: float) -> Row:
    name = ", ".join(word for word in (NAMES.get(one["backend"], one["backend"]), one["note"]) if word)
    waits = one["unhidden_ms"]
    unhidden = (min(waits), max(waits)) if waits else None
    return Row(one["preset"], name, one["shard"], speed, share, ms, unhidden, one["peak_memory_bytes"] / 1e9)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


HEADS = ("", "GPUs", "tokens/s", "of {0} times one", "ms a step", "only sending", "GB a GPU")
WORDS = {2: "two"}


def cells(row: Row, gpus: str) -> list[str]:
    """A row as text."""
    kinds = {"alone": "one", "ddp": gpus}
    kind = kinds.get(row.shard, f"{gpus}, `--shard {row.shard}`")
    share = "" if math.isnan(row.share) else f"{row.share:.3f}"
    waits = "" if row.unhidden is None else "-".join(dict.fromkeys(f"{ms:.1f}" for ms in row.unhidden))
    figures = (f"{row.speed:,.0f}", share, f"{row.ms:.1f}", waits, f"{row.memory:.1f}")
    return [f"{row.model}, {row.name}", kind, *figures]


def whole(lines: list[dict[str, Any]]) -> list[list[str]]:
    """The table, its heads first."""
    count = max(one["gpus"] for one in lines)
    gpus = WORDS.get(count, str(count))
    return [[head.format(gpus) for head in HEADS], *(cells(row, gpus) for row in rows(lines))]


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
    sizes = dict.fromkeys(f"{one['rows']} rows for {one['preset']}" for one in lines)
    return (
        f"{count} x {lines[0]['device']} of one host ({made}, {lines[0]['date'][:10]}), "
        f"{lines[0]['precision']}, a GPU has {' and '.join(sizes)}, of {lines[0]['context']:,} tokens"
    )


if __name__ == "__main__":
    found = read_lines()
    print(heading(found), markdown(found), sep="\n\n")
