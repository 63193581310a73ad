"""One HellaSwag question as text: a context, its possible endings, and which of them is the true one.

References:
    Zellers et al. 2019, "HellaSwag: Can a Machine Really Finish Your Sentence?"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gpt_trainer.errors import InputError

FEWEST_ENDINGS = 2


class Item(NamedTuple):
    """A question.

    Attributes:
        row: Its place in the data, from 0.
        context: What is to be continued.
        endings: Possible continuations, none of them blank.
        label: Index of the true ending.
        activity: Title of the article or name of the activity; None if the data does not say.
        parts: The context in two parts, the second being the beginning of the sentence that the endings
            finish, if any; None if the data has the context as a whole only.
        wikihow: Whether the text is from WikiHow, if the data says so.
    """

    row: int
    context: str
    endings: tuple[str, ...]
    label: int
    activity: str | None = None
    parts: tuple[str, str] | None = None
    wikihow: bool | None = None


def read_item(values: Mapping[str, Any], row: int, where: str) -> Item:
    """An item from the fields of the original files, or of a form of them without ``ctx_a`` and ``ctx_b``.

    Args:
        values: ``ctx`` or both its parts ``ctx_a`` and ``ctx_b``, ``endings``, ``label`` (a number or its
            digits), and, if there, ``activity_label``, ``source``, ``source_id``.
        row: The item's place in the data.
        where: What to call it in messages.

    Raises:
        InputError: If a field is missing or does not fit; an ending that is blank is one of these.
    """
    parts = _parts(values, where)
    context = values.get("ctx", " ".join(parts or ()).strip())
    if not isinstance(context, str) or not context.strip():
        raise InputError(f"{where}: ctx is {context!r}, expected a text")
    activity = values.get("activity_label")
    if activity is not None and not isinstance(activity, str):
        raise InputError(f"{where}: activity_label is {activity!r}, expected a text")
    endings = _endings(values.get("endings"), where)
    label = _label(values.get("label"), len(endings), where)
    return Item(row, context, endings, label, activity, parts, _is_wikihow(values))


def _parts(values: Mapping[str, Any], where: str) -> tuple[str, str] | None:
    if values.get("ctx_a") is None and values.get("ctx_b") is None:
        return None
    for name in ("ctx_a", "ctx_b"):
        if not isinstance(values.get(name), str):
            raise InputError(f"{where}: {name} is {values.get(name)!r}, expected a text")
    return values["ctx_a"], values["ctx_b"]


def _endings(endings: Any, where: str) -> tuple[str, ...]:
    if not isinstance(endings, list) or len(endings) < FEWEST_ENDINGS:
        raise InputError(f"{where}: endings is {endings!r}, expected a list of at least {FEWEST_ENDINGS}")
    for number, ending in enumerate(endings):
        if not isinstance(ending, str) or not ending.strip():
            raise InputError(f"{where}: ending {number} is {ending!r}, expected a text that is not blank")
    return tuple(endings)


def _label(label: Any, endings: int, where: str) -> int:
    # the hub's copy has digits; its test split has none, as those answers are kept back
    number = int(label) if isinstance(label, str) and label.isascii() and label.isdecimal() else label
    if type(number) is not int or not 0 <= number < endings:
        raise InputError(f"{where}: label is {label!r}, expected 0 to {endings - 1}")
    return number


def _is_wikihow(values: Mapping[str, Any]) -> bool | None:
    source = values.get("source") or values.get("source_id")
    return source.startswith("wikihow") if isinstance(source, str) else None
