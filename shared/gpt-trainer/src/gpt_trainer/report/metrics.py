"""``metrics.jsonl``: one object per line, written whole, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt_trainer.errors import WriteError

METRICS_NAME = "metrics.jsonl"
TIMING_FIELDS = ("seconds", "tokens_per_second", "mfu", "peak_memory_bytes")
"""Fields that differ between two runs of the same configuration; all others are equal to the bit."""


class MetricsFile:
    """Appends lines; every one is handed to the system before the next step is settled.

    Args:
        last_evaluated: The same for evaluations, which may lag behind.
        last_measured: The same for extra evaluations, told by their lines having no loss; as ``last_step`` if
            None.

    Raises:
        WriteError: If the file cannot be written.
    """

    def __init__(
        self, folder: Path, last_step: int = -1, last_evaluated: int = -1, last_measured: int | None = None
    ) -> None:
        self.path = folder / METRICS_NAME
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            last = (last_step, last_evaluated, last_step if last_measured is None else last_measured)
            self._size = _end_of_steps(self.path, *last)
            os.ftruncate(self._descriptor, self._size)
        except OSError as error:
            raise self._refuse(error) from None

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            WriteError: If it cannot be written; the file then ends with the line before.
        """
        line = json.dumps(values, allow_nan=False).encode() + b"\n"
        try:
            written = os.pwrite(self._descriptor, line, self._size)
            if written < len(line):
                written += os.pwrite(self._descriptor, line[written:], self._size + written)
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise self._refuse(error) from None
        self._size += len(line)

    def flush(self) -> None:
        """Have the lines so far on disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._refuse(error) from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _refuse(self, error: OSError) -> WriteError:
        return WriteError(
            f"cannot write {self.path}: {error.strerror or error}; checkpoints are as they were: "
            "free some space there and resume"
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; none if there is no file."""
    return [values for _, values in _whole_lines(path)]


def _whole_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each object up to the first damaged line, and the position behind its line."""
    if not path.is_file():
        return
    position = 0
    with path.open("rb") as file:
        for line in file:
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                return
            if (
                not line.endswith(b"\n")
                or not isinstance(values, dict)
                or type(values.get("step")) is not int
            ):
                return
            position += len(line)
            yield position, values


def _end_of_steps(path: Path, last_step: int, last_evaluated: int, last_measured: int) -> int:
    end = 0
    for position, values in _whole_lines(path):
        last = last_evaluated if "val_loss" in values else last_step if "loss" in values else last_measured
        if values["step"] > last:
            break
        end = position
    return end
