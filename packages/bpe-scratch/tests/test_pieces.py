"""The automata cut where the regular expressions cut, on all of Unicode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import regex
from bpe_scratch import unicode_classes
from bpe_scratch.patterns import PATTERNS, splitter
from hypothesis import given, settings
from hypothesis import strategies as st

NAMED = [name for name in PATTERNS if name != "none"]
# one of each class, each special byte, and every width in UTF-8
PROBES = [*"aZǅʰªתּ9Ⅷ٣ \t\n\r\v\x85\u2003\u3000'sS\u017ftTmMdDlLvVrReE/!.́😀中\0", "'ll", "'Ve", "  ", "\r\n"]
text = st.lists(
    st.one_of(st.sampled_from(PROBES), st.characters(exclude_categories=["Cs"])), max_size=40
).map("".join)


def classes_of_regex() -> np.ndarray:
    """The class of every code point, as the installed ``regex`` library sees it; surrogates are OTHER."""
    classes = np.zeros(unicode_classes.CODE_POINTS, dtype=np.uint8)
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, unicode_classes.CODE_POINTS)]))
    expressions = [r"[\p{Lu}\p{Lt}]", r"\p{Ll}", r"[\p{Lm}\p{Lo}]", r"\p{M}", r"\p{N}", r"\s"]
    for value, expression in enumerate(expressions, start=unicode_classes.UPPER):
        classes[[ord(char) for char in regex.findall(expression, text)]] = value
    return classes


def format_runs(classes: np.ndarray) -> str:
    """The text of ``unicode_classes.txt``."""
    starts = np.flatnonzero(np.diff(classes, prepend=255))
    return "".join(f"{start:04X} {classes[start]}\n" for start in starts.tolist())


def cut(pattern: str, document: str) -> list[str]:
    return pytest.importorskip("compiled_pieces").cut(pattern, document)


def test_class_table_agrees_with_the_regex_library() -> None:
    table, codes = unicode_classes.class_table(), np.arange(unicode_classes.CODE_POINTS)
    got, want = table.classes[table.blocks[codes >> 7] + (codes & 127)], classes_of_regex()
    differing = np.flatnonzero(got != want)
    assert differing.size == 0, (
        f"regenerate unicode_classes.txt by format_runs: {differing.size} differ, first U+{differing[0]:04X}"
    )
    text = Path(unicode_classes.__file__).with_suffix(".txt").read_text("ascii")
    assert format_runs(got) == text


@pytest.mark.parametrize("pattern", NAMED)
@pytest.mark.parametrize(
    "context", ["a{}b", " {}", "{} ", "1{}2", "!{}!", "'{}", "\n{}\n", "  {}", "{}'s", "A{}a", "{}{}"]
)
def test_every_code_point_in_context(pattern: str, context: str) -> None:
    # one representative of each run of equal class would do; all of them guards the decoding of UTF-8 as well
    step = 1 if context == "a{}b" else 31
    chars = [chr(c) for c in range(0, 0x110000, step) if not 0xD800 <= c < 0xE000]
    document = "\x00".join(context.replace("{}", char) for char in chars)
    assert cut(pattern, document) == splitter(pattern)(document)


@pytest.mark.parametrize("pattern", NAMED)
@settings(max_examples=500, deadline=None)
@given(document=text)
def test_pieces_equal_those_of_the_expression(pattern: str, document: str) -> None:
    assert cut(pattern, document) == splitter(pattern)(document)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", NAMED)
@settings(max_examples=100_000, deadline=None)
@given(document=text)
def test_pieces_equal_those_of_the_expression_at_length(pattern: str, document: str) -> None:
    assert cut(pattern, document) == splitter(pattern)(document)


@pytest.mark.parametrize("pattern", [*PATTERNS, "a+|b", r"\d"])
@settings(max_examples=200, deadline=None)
@given(document=text)
def test_pieces_put_together_are_the_text(pattern: str, document: str) -> None:
    assert "".join(splitter(pattern)(document)) == document


# 56 bytes are decided at once, from 4 bytes before: every place of a piece in a window
@pytest.mark.parametrize("before", range(60))
def test_windows_join_wherever_they_meet(before: int) -> None:
    document = "a" * before + "'ll 's  \u3000\u2003x'ves \u3000 9é9 'sé''s 中's  \n z" * 3
    assert cut("gpt2", document) == splitter("gpt2")(document)


def test_expressions_equal_tiktokens() -> None:
    public = pytest.importorskip("tiktoken_ext.openai_public")
    theirs = {"gpt2": public.r50k_pat_str}
    alphabet = PROBES * 3
    rng = np.random.default_rng(0)
    for name, expression in theirs.items():
        for _ in range(3000):
            document = "".join(rng.choice(alphabet, size=12))
            assert splitter(name)(document) == regex.findall(expression, document), repr(document)
