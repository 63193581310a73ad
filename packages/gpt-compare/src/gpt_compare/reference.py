"""A published curve to be drawn beside those of a comparison: of another text, machine and recipe."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gpt_data.store.reading import read_bytes
from gpt_trainer.errors import InputError

LARGEST = 1 << 20


class Reference(NamedTuple):
    """A curve and what it is.

    Attributes:
        name: For the legend; it says of which text it is.
        tokens: Trained on, ascending.
        losses: In nats per token.
    """

    name: str
    tokens: tuple[float, ...]
    losses: tuple[float, ...]


def read_reference(path: Path) -> Reference:
    """A curve from a file: its name in the first line, then tokens and loss, with a comma between them.

    Raises:
        InputError: If it cannot be read or is of another form.
    """
    try:
        raw = read_bytes(path, LARGEST, follow_link=True)
    except InputError as error:
        raise InputError(f"--reference: {error}") from None
    try:
        name, *lines = raw.decode().splitlines()
        points = [(float(tokens), float(loss)) for tokens, loss in csv.reader(lines)]
        tokens, losses = zip(*points, strict=True)
    except ValueError as error:
        raise InputError(
            f"--reference {path} is no name with lines of tokens,loss below it: {error}"
        ) from None
    return Reference(name.strip("# "), tokens, losses)


def reference_from_json(values: Mapping[str, Any] | None) -> Reference | None:
    """What ``Reference._asdict`` gave."""
    if values is None:
        return None
    return Reference(values["name"], tuple(values["tokens"]), tuple(values["losses"]))
