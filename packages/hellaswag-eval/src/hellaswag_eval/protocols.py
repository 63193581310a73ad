"""The two published ways to put a HellaSwag item before a model; a score means nothing without its name.

``completion``: the context as it is, and a blank with the ending, encoded apart. Normalised by tokens. The
way of OpenAI's evaluations and of llm.c, which publishes acc 28.59 and acc_norm 29.55 % for OpenAI's GPT-2
124M (``dev/data/hellaswag.py``).

``harness``: the title, a colon, and the context with WikiHow's markers cleaned away and the last sentence's
beginning capitalised; context and ending are encoded together and cut where the context alone ends.
Normalised by characters of the ending. The way of lm-evaluation-harness (``tasks/hellaswag``, version 1.0,
and ``api/model.py`` of 0.4.13); llm.c quotes 28.92 and 31.14 % of it for the same model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

import numpy as np
from gpt_data.errors import naming
from gpt_trainer.errors import InputError
from jaxtyping import Int32

from hellaswag_eval.items import Item

Protocol = Literal["completion", "harness"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
Ids = Int32[np.ndarray, "_"]
Encode = Callable[[Sequence[str]], list[Ids]]
"""Token ids of each text, nothing added in front or behind."""

MARKER = re.compile(r"\[.*?\]")


class Example(NamedTuple):
    """A context and its endings as token ids.

    Attributes:
        context: What every ending follows; at least one token.
        endings: At least one token each.
        label: Index of the true ending.
        characters: Length of each ending's text, the blank before it not counted.
        utf8_bytes: The same in bytes.
        row: The item's place in the data.
    """

    context: Ids
    endings: tuple[Ids, ...]
    label: int = 0
    characters: tuple[int, ...] = ()
    utf8_bytes: tuple[int, ...] = ()
    row: int = 0


def allowed_protocols(
    asked: Protocol | Literal["both"], items: Sequence[Item], say: Callable[[str], None]
) -> tuple[Protocol, ...]:
    """The protocols to score by; of both, those that the items have the fields for.

    Args:
        asked: One of them, or both.
        items: Questions.
        say: Called with a line if one of both is left out.

    Raises:
        InputError: If an item lacks what the one that is asked for needs.
    """
    chosen = PROTOCOLS if asked == "both" else (asked,)
    if "harness" not in chosen:
        return chosen
    if asked == "both" and any(item.activity is None for item in items):
        missing = next(item.row for item in items if item.activity is None)
        say(f"item {missing} has no activity_label, which the protocol harness needs: completion alone")
        return ("completion",)
    for item in items:
        harness_texts(item)
    return chosen


def encode_items(items: Sequence[Item], encode: Encode, protocol: Protocol) -> list[Example]:
    """The items as a protocol asks for them.

    Args:
        items: Questions.
        encode: The model's tokenizer.
        protocol: ``completion`` or ``harness``.

    Raises:
        InputError: If an item lacks what the protocol needs, or cannot be encoded.
    """
    texts = [(completion_texts if protocol == "completion" else harness_texts)(item) for item in items]
    if protocol == "completion":
        contexts = _encoded(encode, [context for context, _ in texts])
        tails = _encoded(encode, [f" {ending}" for _, endings in texts for ending in endings])
    else:
        pairs = [(context, f" {ending}") for context, endings in texts for ending in endings]
        heads, tails = encode_together(encode, pairs)
        firsts = [0, *accumulate(len(item.endings) for item in items)][:-1]
        contexts = [heads[first] for first in firsts]
    return list(_examples(items, texts, contexts, tails))


def encode_together(encode: Encode, pairs: Sequence[tuple[str, str]]) -> tuple[list[Ids], list[Ids]]:
    """Contexts and endings, encoded together and cut where the context alone, without blanks, ends.

    Args:
        encode: The model's tokenizer.
        pairs: Context and what follows it.

    Raises:
        InputError: If one cannot be encoded.
    """
    heads = _encoded(encode, [context.rstrip() for context, _ in pairs])
    wholes = _encoded(encode, [context + ending for context, ending in pairs])
    return heads, [whole[len(head) :] for whole, head in zip(wholes, heads, strict=True)]


def completion_texts(item: Item) -> tuple[str, tuple[str, ...]]:
    """Context and endings, untouched.

    Args:
        item: A question.
    """
    return item.context, item.endings


def harness_texts(item: Item) -> tuple[str, tuple[str, ...]]:
    """Context and endings as lm-evaluation-harness words them.

    Args:
        item: A question with a title.

    Raises:
        InputError: If it has no title, or an ending is nothing but markers.
    """
    if item.activity is None:
        raise InputError(
            f"item {item.row} has no activity_label, which the protocol harness needs; "
            "completion does without it"
        )
    first, second = item.parts if item.parts is not None else split_context(item)
    endings = tuple(clean(ending) for ending in item.endings)
    if not all(endings):
        raise InputError(f"item {item.row}: ending {endings.index('')} is empty without its markers")
    return clean(f"{item.activity}: {first} {second.capitalize()}"), endings


def clean(text: str) -> str:
    """Text without WikiHow's markers, by the harness's four steps.

    >>> clean("[header] How to sew [title] Take a needle.  [step] Go on.")
    ' How to sew. Take a needle.  Go on.'
    """
    text = text.strip().replace(" [title]", ". ")
    return MARKER.sub("", text).replace("  ", " ")


def split_context(item: Item) -> tuple[str, str]:
    """A context's two parts where the data has only the whole.

    In ActivityNet's items the second part is what follows the last full stop, and it begins in lower case;
    WikiHow's items have none, and are told by their markers or the data's word.

    Args:
        item: A question.

    >>> split_context(Item(0, "A man is on a roof. he", ("a", "b"), 0))
    ('A man is on a roof.', 'he')
    """
    head, stop, tail = item.context.rpartition(". ")
    wikihow = item.wikihow if item.wikihow is not None else bool(MARKER.search(item.context))
    if wikihow or not stop or not tail[:1].islower():
        return item.context, ""
    return f"{head}.", tail


def _encoded(encode: Encode, texts: list[str]) -> list[Ids]:
    with naming("the tokenizer cannot encode the data"):
        return encode(texts)


def _examples(
    items: Sequence[Item],
    texts: Sequence[tuple[str, tuple[str, ...]]],
    contexts: Sequence[Ids],
    tails: Iterable[Ids],
) -> Iterable[Example]:
    rest = iter(tails)
    for item, (_, endings), context in zip(items, texts, contexts, strict=True):
        ids = tuple(next(rest) for _ in endings)
        for number, tokens in enumerate((context, *ids)):
            if len(tokens) == 0:
                what = f"ending {number - 1}" if number else "the context"
                raise InputError(f"item {item.row}: {what} makes no token of its own")
        characters = tuple(len(ending) for ending in endings)
        utf8_bytes = tuple(len(ending.encode()) for ending in endings)
        yield Example(context, ids, item.label, characters, utf8_bytes, item.row)
