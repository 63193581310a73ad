"""``gpt-compare diff A B``: what got slower, or larger, from one report to another."""

from __future__ import annotations

from collections.abc import Iterator

from gpt_compare.comparison import Comparison
from gpt_compare.figures import Figures, Row

MORE_MEMORY = 1.02
"""Allocators round: a peak that is so many times larger counts as grown."""


def differences(before: Comparison, after: Comparison) -> Iterator[tuple[str, bool]]:
    """A line for each competitor of either report, and whether it got worse by more than the spread."""
    old, new = ({row.label: row for row in each.rows} for each in (before, after))
    for label in dict.fromkeys([*old, *new]):
        yield _difference(label, old.get(label), new.get(label))


def _difference(label: str, old: Row | None, new: Row | None) -> tuple[str, bool]:
    if old is None or new is None:
        return f"{label}: only in the {'second' if old is None else 'first'}", False
    if new.figures is None:
        return f"{label}: {new.error}", old.figures is not None
    if old.figures is None:
        return f"{label}: finishes now; before: {old.error}", False
    ratio = new.figures.step_seconds[1] / old.figures.step_seconds[1]
    grown = new.figures.peak_memory_bytes / old.figures.peak_memory_bytes
    slower = ratio > 1.0 and not _overlap(old.figures, new.figures)
    times = f"{1e3 * old.figures.step_seconds[1]:.1f} -> {1e3 * new.figures.step_seconds[1]:.1f} ms"
    sizes = f"{old.figures.peak_memory_bytes / 1e9:.2f} -> {new.figures.peak_memory_bytes / 1e9:.2f} GB"
    verdict = (
        "slower" if slower else "faster" if not _overlap(old.figures, new.figures) else "within the spread"
    )
    words = f"{label}: {times} ({ratio - 1.0:+.1%}, {verdict}), {sizes} ({grown - 1.0:+.1%})"
    return words, slower or grown > MORE_MEMORY


def _overlap(old: Figures, new: Figures) -> bool:
    """Whether the two spreads of a step's time, 20th to 80th percentile, have a time in common."""
    return old.step_seconds[0] <= new.step_seconds[2] and new.step_seconds[0] <= old.step_seconds[2]
