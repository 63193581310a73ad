"""One HellaSwag question as text: a context, its possible endings, and which of them is the true one.

References:
    Zellers et al. 2019, "HellaSwag: Can a Machine Really Finish Your Sentence?"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gpt_data.errors import shown
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
    context = _text("ctx", values.get("ctx", " ".join(parts or ()).strip()), where)
    if not context.strip():
        raise InputError(f"{where}: ctx is {shown(context)}, expected a text that is not blank")
    activity = values.get("activity_label")
    if activity is not None:
        _text("activity_label", activity, where)
    endings = _endings(values.get("endings"), where)
    label = _label(values.get("label"), len(endings), where)
    return Item(row, context, endings, label, activity, parts, _is_wikihow(values))


def _parts(values: Mapping[str, Any], where: str) -> tuple[str, str] | None:
    if values.get("ctx_a") is None and values.get("ctx_b") is None:
        return None
    return _text("ctx_a", values.get("ctx_a"), where), _text("ctx_b", values.get("ctx_b"), where)


def _text(name: str, value: Any, where: str) -> str:
    """A field that must be a text; one with half a surrogate pair, which JSON can write, is none."""
    if not isinstance(value, str) or not _is_utf8(value):
        raise InputError(f"{where}: {name} is {shown(value)}, expected a text")
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _endings(endings: Any, where: str) -> tuple[str, ...]:
    if not isinstance(endings, list) or len(endings) < FEWEST_ENDINGS:
        raise InputError(
            f"{where}: endings is {shown(endings)}, expected a list of at least {FEWEST_ENDINGS}"
        )
    for number, ending in enumerate(endings):
        if not _text(f"ending {number}", ending, where).strip():
            raise InputError(
                f"{where}: ending {number} is {shown(ending)}, expected a text that is not blank"
            )
    return tuple(endings)


def _label(label: Any, endings: int, where: str) -> int:
    # the hub's copy has digits; its test split has none, as those answers are kept back
    digits = isinstance(label, str) and label.isascii() and label.isdecimal() and len(label) < 10
    number = int(label) if digits else label
    if type(number) is not int or not 0 <= number < endings:
        raise InputError(f"{where}: label is {shown(label)}, expected 0 to {endings - 1}")
    return number


def _is_wikihow(values: Mapping[str, Any]) -> bool | None:
    source = values.get("source") or values.get("source_id")
    return source.startswith("wikihow") if isinstance(source, str) else None
