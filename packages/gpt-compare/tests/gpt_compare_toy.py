"""Metrics made by hand, rows made of them, and the flags of a run that takes a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_compare.figures import Row, measure

TOKENS = 30_000
SMALL = [
    *("--preset", "cpu-demo", "--tokenizer", "bytes", "--device", "cpu"),
    *("--n-layer", "2", "--n-head", "3", "--d-model", "24", "--context", "31"),
    *("--tokens-per-step", "248", "--micro-batch", "4", "--warmup", "2", "--lr", "1e-2"),
]


def metrics(
    losses: Sequence[float], seconds: Sequence[float], memory: int = 10, **more: Any
) -> list[dict[str, Any]]:
    """The lines of a run that evaluates before its first step and after its last."""
    lines: list[dict[str, Any]] = [{"step": 0, "val_loss": 9.0, "val_targets": 5}]
    for step, (loss, time) in enumerate(zip(losses, seconds, strict=True), 1):
        tokens = step * TOKENS
        lines.append({"step": step, "tokens": tokens, "loss": loss, "seconds": time, **more})
        lines[-1]["peak_memory_bytes"] = memory + step
    return [*lines, {"step": len(losses), "val_loss": 3.25, "val_targets": 5}]


def finished(
    label: str, losses: Sequence[float], seconds: Sequence[float], watts: float | None = None, **more: Any
) -> Row:
    """A row with figures."""
    made_by = {"backend": label, "device": "a device", "torch": "2.0", "attention": "written"}
    figures = measure(metrics(losses, seconds, **more))
    return Row(label, figures=figures, first_step_after=4.0, total_seconds=99.0, made_by=made_by, watts=watts)


def text_folder(folder: Path) -> Path:
    """Numbers, their squares and cubes, to train on and to evaluate on."""
    folder.mkdir()
    text = "".join(f"{n} squared is {n * n}, cubed it is {n**3}.\n" for n in range(2000))
    for name in ("train", "val"):
        (folder / f"{name}.txt").write_text(text)
    return folder
