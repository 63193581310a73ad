"""Where items come from: a file of JSON lines, plain or gzipped, or the hub's copy of HellaSwag."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from gpt_trainer.errors import InputError

from hellaswag_eval.items import Item, read_item

HUB_NAME = "Rowan/hellaswag"
HUB_SPLIT = "validation"


def read_items(data: Path | None) -> list[Item]:
    """All items of a file, or the hub's validation split.

    Args:
        data: JSON lines, gzipped if the content begins as such a file does; None for the hub.

    Raises:
        InputError: If it cannot be read, is empty, or a line is not an item; the line is named.
    """
    return read_hub() if data is None else read_file(data)


def read_file(path: Path) -> list[Item]:
    """The items of a file of JSON lines; blank lines are passed over.

    Args:
        path: The file.

    Raises:
        InputError: If it cannot be read, is empty, or a line is not an item.
    """
    items: list[Item] = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where} is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise InputError(f"{where} is not a JSON object")
        items.append(read_item(values, len(items), where))
    if not items:
        raise InputError(f"{path} holds no items")
    return items


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        return content.decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None


def read_hub() -> list[Item]:
    """The validation split of ``Rowan/hellaswag``, through the library ``datasets``.

    Raises:
        InputError: If the library is not installed or the hub does not answer.
    """
    advice = "or name a file with --data"
    try:
        datasets: Any = import_module("datasets")
    except ImportError:
        raise InputError(
            f"{HUB_NAME} is read with the extra hellaswag-eval[data], which is not installed; {advice}"
        ) from None
    try:
        rows = datasets.load_dataset(HUB_NAME, split=HUB_SPLIT)
    # the library passes on whatever its network stack raises
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot read {HUB_NAME} from the hub ({line}); {advice}") from error
    return [read_item(values, row, f"{HUB_NAME} row {row}") for row, values in enumerate(rows)]


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
