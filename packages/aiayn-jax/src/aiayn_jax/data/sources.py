"""Where sentence pairs come from: ``numbers``, ``wmt14``, ``multi30k:DIR`` or ``pairs:SRC,TGT``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bpe_scratch.unpacking import COMPRESSIONS
from gpt_data.errors import InputError

from aiayn_jax.data.numbers import DIGIT_PATTERN, number_pairs, number_parts
from aiayn_jax.data.packed_text import PackedText
from aiayn_jax.data.pairs import TextPairs, read_pairs
from aiayn_jax.data.wmt14 import stream_pairs
from aiayn_jax.settings import DataSection

KINDS = ("numbers", "wmt14", "multi30k:DIR", "pairs:SRC,TGT")
MULTI30K_TEST = "test_2016_flickr"
HELD_OUT_EVERY, HELD_OUT_MOST = 50, 1000
Score = Literal["exact_match", "bleu"]


@dataclass(frozen=True)
class Corpus:
    """The pairs of all parts.

    Attributes:
        train: To learn from.
        val: For the validation loss, and the score in training.
        test: For the score at the end.
        score: What counts: ``exact_match``, or ``bleu``.
        pattern: How the tokenizer cuts text into pieces.
        pin: What a later process needs to read the same version.
        notes: What the user should know about the parts, one line each.
    """

    train: TextPairs
    val: TextPairs
    test: TextPairs
    score: Score = "bleu"
    pattern: str = "gpt2"
    pin: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_corpus(
    section: DataSection,
    *,
    pin: Mapping[str, str] | None = None,
    on_notice: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Corpus:
    """Read all parts.

    Raises:
        InputError: If the source is unknown, or something in it is unusable.
    """
    kind, _, rest = section.data.partition(":")
    languages = parse_direction(section.direction)
    for name in ("val", "test"):
        if kind != "pairs" and getattr(section, name) is not None:
            raise InputError(f"--{name} goes with --data pairs:SRC,TGT, not with --data {section.data}")
    if section.data == "numbers":
        corpus = _numbers()
    elif section.data == "wmt14":
        corpus = _wmt14(section, languages, pin, on_notice, should_stop)
    elif kind == "multi30k" and rest:
        corpus = _multi30k(Path(rest), languages)
    elif kind == "pairs" and rest:
        corpus = _files(rest, section)
    else:
        raise InputError(f"--data {section.data} is none of {', '.join(KINDS)}")
    train = corpus.train if section.max_pairs is None else corpus.train.first(section.max_pairs)
    parts = {"training": train, "validation": corpus.val, "test": corpus.test}
    counts = ", ".join(f"{len(pairs):,} {name}" for name, pairs in parts.items())
    notes = [note for pairs in parts.values() for note in pairs.notes]
    lines = tuple(dict.fromkeys([f"pairs: {counts}", *corpus.notes, *notes]))
    return Corpus(train, corpus.val, corpus.test, corpus.score, corpus.pattern, corpus.pin, lines)


def parse_direction(text: str) -> tuple[str, str]:
    """Source and target language: ``parse_direction("en-de")`` is ``("en", "de")``.

    Raises:
        InputError: If it is not two names with a hyphen.
    """
    source, _, target = text.partition("-")
    if not source.isalpha() or not target.isalpha() or source == target:
        raise InputError(f"--direction {text} is not like en-de")
    return source, target


def _numbers() -> Corpus:
    parts = number_parts()
    train, val, test = (number_pairs(parts[part]) for part in ("train", "val", "test"))
    return Corpus(train, val, test, score="exact_match", pattern=DIGIT_PATTERN)


def _wmt14(
    section: DataSection,
    languages: tuple[str, str],
    pin: Mapping[str, str] | None,
    on_notice: Callable[[str], None] | None,
    should_stop: Callable[[], bool] | None,
) -> Corpus:
    if set(languages) != {"de", "en"}:
        raise InputError(f"--direction {section.direction}: wmt14 here is de-en or en-de")
    parts: dict[str, TextPairs] = {}
    for part in ("test", "val", "train"):
        limit = section.max_pairs if part == "train" else None
        parts[part], pin = stream_pairs(
            part, languages, max_pairs=limit, pin=pin, on_notice=on_notice, should_stop=should_stop
        )
    return Corpus(parts["train"], parts["val"], parts["test"], pin=pin or {})


def _multi30k(folder: Path, languages: tuple[str, str]) -> Corpus:
    if not folder.is_dir():
        raise InputError(f"--data multi30k:{folder}: there is no such folder")
    source, target = languages
    train, val, test = (
        read_pairs(_side(folder, name, source), _side(folder, name, target))
        for name in ("train", "val", MULTI30K_TEST)
    )
    return Corpus(train, val, test)


def _side(folder: Path, name: str, language: str) -> Path:
    """The file of one part in one language, compressed or not."""
    names = [f"{name}.{language}{suffix}" for suffix in ("", *COMPRESSIONS)]
    found = [folder / one for one in names if (folder / one).is_file()]
    if not found:
        raise InputError(f"{folder} holds no {names[0]}, nor that with {', '.join(COMPRESSIONS)}")
    if len(found) > 1:
        raise InputError(f"{folder} holds {' and '.join(path.name for path in found)}: leave one of them")
    return found[0]


def _files(rest: str, section: DataSection) -> Corpus:
    train = read_pairs(*_two_paths(rest, "--data pairs:"))
    notes: list[str] = []
    if section.val is None:
        train, val = hold_out(train)
        notes.append(f"no --val: pair 1 of every {HELD_OUT_EVERY} is held out, {len(val):,} in all")
    else:
        val = read_pairs(*_two_paths(section.val, "--val "))
    if section.test is None:
        test = val
        notes.append("no --test: the score at the end is that of the validation pairs")
    else:
        test = read_pairs(*_two_paths(section.test, "--test "))
    return Corpus(train, val, test, notes=tuple(notes))


def _two_paths(text: str, where: str) -> tuple[Path, Path]:
    paths = text.split(",")
    if len(paths) != 2 or not all(paths):
        raise InputError(f"{where}{text} is not two files with a comma, SRC,TGT")
    return Path(paths[0]), Path(paths[1])


def hold_out(pairs: TextPairs) -> tuple[TextPairs, TextPairs]:
    """Training pairs, and the first of every ``HELD_OUT_EVERY`` for validation, as far as its limit.

    Raises:
        InputError: If nothing is left to train on.
    """
    held = list(range(0, len(pairs), HELD_OUT_EVERY))[:HELD_OUT_MOST]
    chosen = set(held)
    rest = [index for index in range(len(pairs)) if index not in chosen]
    if not rest:
        raise InputError("a single pair cannot be both trained on and held out; give --val SRC,TGT")
    return _choose(pairs, rest, pairs.notes), _choose(pairs, held, ())


def _choose(pairs: TextPairs, chosen: list[int], notes: tuple[str, ...]) -> TextPairs:
    source, target = (PackedText(side[index] for index in chosen) for side in (pairs.source, pairs.target))
    return TextPairs(source, target, [pairs.numbers[index] for index in chosen], notes)
