"""Where items come from: a file of JSON lines, compressed or not, or the hub's copy of HellaSwag."""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from gpt_data.errors import InputError, first_line
from gpt_data.hub import ANSWER_SECONDS, HubBusyError, ask
from gpt_data.store.json_lines import read_json_lines

from hellaswag_eval.items import Item, read_item

HUB_NAME = "Rowan/hellaswag"
HUB_SPLIT = "validation"
LONGEST_LINE, LONGEST_FILE = 2**20, 2**30
"""Bytes, unpacked; HellaSwag's own lines have 2,000 and its largest file 50 million."""


def read_items(data: Path | None) -> list[Item]:
    """All items of a file, or the hub's validation split.

    Args:
        data: JSON lines, compressed or not; None for the hub.

    Raises:
        InputError: As ``read_file`` or ``read_hub``.
    """
    return read_hub() if data is None else read_file(data)


def read_file(path: Path) -> list[Item]:
    """The items of a file of JSON lines.

    Raises:
        InputError: If it cannot be read, is too long or empty, or a line, which is named, is not an item.
    """
    lines = enumerate(read_json_lines(path, LONGEST_LINE, LONGEST_FILE))
    items = [read_item(values, row, where) for row, (where, values) in lines]
    if not items:
        raise InputError(f"{path} holds no items")
    return items


def read_hub() -> list[Item]:
    """The validation split of ``Rowan/hellaswag``, or the copy of an earlier day if the hub does not answer.

    Raises:
        InputError: If the library ``datasets`` is not installed, or there is neither answer nor copy.
    """
    advice = "or name a file with --data"
    try:
        datasets: Any = import_module("datasets")
    except ImportError:
        raise InputError(
            f"{HUB_NAME} is read with the extra hellaswag-eval[data], which is not installed; {advice}"
        ) from None
    reason = _why_silent()
    # the library would ask six times over half a minute; told that it is offline, it reads its own cache
    datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE or reason is not None
    try:
        rows = datasets.load_dataset(HUB_NAME, split=HUB_SPLIT)
    # the library passes on whatever its network stack raises
    except Exception as error:
        raise InputError(f"cannot read {HUB_NAME}: {reason or first_line(error)}; {advice}") from error
    return [read_item(values, row, f"{HUB_NAME} row {row}") for row, values in enumerate(rows)]


def _why_silent() -> str | None:
    """Why the hub cannot be asked; None if it answers."""
    try:
        ask(lambda hub: hub.dataset_info(HUB_NAME, timeout=ANSWER_SECONDS))
    except (InputError, HubBusyError) as error:
        return str(error)
    return None


def choose(items: Sequence[Item], limit: int | None, seed: int | None) -> list[Item]:
    """A part of the items, in their order.

    Args:
        items: All of them.
        limit: How many; all if None, or if there are fewer.
        seed: Decides which; the first ones if None.

    Raises:
        InputError: If ``limit`` is not positive.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit} is not positive")
    if limit is None or limit >= len(items):
        return list(items)
    if seed is None:
        return list(items[:limit])
    return [items[row] for row in sorted(random.Random(seed).sample(range(len(items)), limit))]
