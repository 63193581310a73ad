r"""What an own expression may hold: what ``regex`` and Hugging Face's ``tokenizers`` read alike.

An expression is written into ``tokenizer.json``, and ``tokenizers`` reads it there by Oniguruma (Ruby's
syntax), where ``{1,3}+`` repeats, ``\h`` is a hexadecimal digit, and ``\w`` holds other characters.  So an
expression is parsed here: constructs that mean the same are let through, all others refused by name.  ``$``
stands at each line's end in Ruby, and is compiled so.
"""

from __future__ import annotations

import re

import regex

from bpe_scratch.errors import TokenizerError

_CATEGORIES = "L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp Cc Cf"
_SCRIPTS = "Han Hiragana Katakana Hangul Latin Greek Cyrillic Arabic Hebrew Thai Devanagari"
PROPERTIES = frozenset(f"{_CATEGORIES} {_SCRIPTS}".split())
"""Known to both; ``C`` and ``Cn`` change with every version of Unicode."""
_GROUPS = ("(?:", "(?>", "(?=", "(?!", "(?<=", "(?<!", "(?i:")
_AROUND, _BEHIND = ("(?=", "(?!", "(?<=", "(?<!"), ("(?<=", "(?<!")
_QUANTIFIER = re.compile(r"(?:[*?]|(?P<one>\+)|\{(?P<least>\d+)(?P<to>,\d*)?\})(?P<kind>[+?]?)")
_PROPERTY = re.compile(r"[pP]\{(\w+)\}")
_CODE = re.compile(r"x([0-7][0-9A-Fa-f])|u([0-9A-Fa-f]{4})")
_THIRD_CASE = {"s": "\u017f", "k": "\u212a"}
# characters that are one in another case: U+00DF is "ss" where case does not matter, for Oniguruma alone
_LIGATURES = frozenset(("ss", "ff", "fi", "fl", "st"))


def compile_expression(expression: str) -> regex.Pattern[str]:
    """An expression that both libraries read alike, compiled.

    Args:
        expression: A regular expression that matches at least one character.

    Raises:
        TokenizerError: Naming the construct that is read differently, or what is not valid.
    """
    parser = _Parser(expression)
    try:
        regex.compile(expression)
        width, compiled = parser.alternatives(), regex.compile(parser.unfolded(), regex.MULTILINE)
    except (regex.error, RecursionError, OverflowError) as error:
        raise TokenizerError(f"pattern {expression[:80]!r} is not valid: {error}") from None
    if not width:
        raise TokenizerError(f"pattern {expression[:80]!r} can match the empty text, so it cannot cut")
    return compiled


class _Parser:
    """Each method reads one thing, and returns the fewest characters that it matches."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.folding = self.behind = False
        self.parts: list[str] = []
        self.copied = 0

    def unfolded(self) -> str:
        """The expression with ``[sS]`` for ``(?i:s)``, which ``regex`` lets leak into other classes."""
        return "".join([*self.parts, self.text[self.copied :]])

    def replace(self, length: int, text: str) -> None:
        """Write ``text`` in place of the last characters that were taken."""
        self.parts += self.text[self.copied : self.at - length], text
        self.copied = self.at

    def fold(self, char: str, form: str) -> None:
        if not char.isascii():
            raise self.refuse(f"{char!r} in (?i:)")
        if char.isalpha():
            self.replace(1, form.format(char.lower() + char.upper() + _THIRD_CASE.get(char.lower(), "")))

    def refuse(self, what: str) -> TokenizerError:
        return TokenizerError(
            f"pattern {self.text[:80]!r}: {what} before character {self.at} is not what it is in Hugging "
            "Face's tokenizers, or is not known to be"
        )

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self) -> str:
        self.at += 1
        return self.text[self.at - 1]

    def alternatives(self) -> int:
        widths = [self.sequence()]
        while self.peek() == "|":
            self.take()
            if self.behind:
                raise self.refuse("a choice behind (?<")
            widths.append(self.sequence())
        return min(widths)

    def sequence(self) -> int:
        width, before = 0, ""
        while self.peek() not in ("", "|", ")"):
            start = self.at
            width += self.quantified()
            now = self.text[start : self.at]
            if self.folding and (before + now).lower() in _LIGATURES:
                raise self.refuse(f"{before + now!r} in (?i:)")
            before = now
        return width

    def quantified(self) -> int:
        width = self.atom()
        found = _QUANTIFIER.match(self.text, self.at)
        if found is None:
            return width
        self.at = found.end()
        interval = found["least"] is not None
        if interval and (found["kind"] == "+" or (found["kind"] and not found["to"])):
            raise self.refuse(f"the quantifier {found.group()}")
        if not width or self.behind or (self.peek() and self.peek() in "*+?{"):
            raise self.refuse(f"the quantifier {found.group()} of this")
        return width * (int(found["least"]) if interval else bool(found["one"]))

    def atom(self) -> int:
        char = self.take()
        if char == "(":
            return self.group()
        if char == "[":
            return self.bracket()
        if char == "\\":
            self.escape()
        elif char in "^*+?{}]":
            raise self.refuse(f"{char!r}")
        elif self.folding:
            self.fold(char, "[{}]")
        return int(char != "$")

    def group(self) -> int:
        start = self.at - 1
        opening = next((known for known in _GROUPS if self.text.startswith(known, start)), "(")
        self.at = start + len(opening)
        if opening == "(?i:":
            self.replace(len(opening), "(?:")
        if self.peek() in ("?", "*") or self.behind:
            raise self.refuse(f"the group {self.text[start : start + 4]!r}")
        outer = self.folding, self.behind
        self.folding, self.behind = self.folding or opening == "(?i:", opening in _BEHIND
        width = self.alternatives()
        self.folding, self.behind = outer
        self.take()
        return 0 if opening in _AROUND else width

    def bracket(self) -> int:
        start = self.at - 1
        negated = self.peek() == "^"
        self.at += negated
        if negated and self.folding:
            raise self.refuse("[^ in (?i:)")
        first = True
        while self.peek() != "]" or first:
            char = self.take()
            if char in "[]" or (char in "&|~-" and self.peek() == char):
                raise self.refuse(f"{char!r} in a class")
            if char == "-" and not first and self.peek() != "]":
                raise self.refuse("'-' in the middle of a class")
            if self.folding:
                self.fold(char, "{}")
            single = char != "\\" or self.escape()
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] != "]":
                self.take()
                if self.folding or not single or (self.take() == "\\" and not self.escape()):
                    raise self.refuse("a range of classes")
            first = False
        self.take()
        inside = set(re.findall(r"\\.(?:\{\w+\})?", self.text[start : self.at], re.DOTALL))
        # nothing, which regex takes for something
        if negated and any("\\" + known[1].swapcase() + known[2:] in inside for known in inside):
            raise self.refuse("an empty class")
        return 1

    def escape(self) -> bool:
        """What follows a backslash; whether it stands for a single character."""
        for known in (_PROPERTY, _CODE):
            if found := known.match(self.text, self.at):
                self.at = found.end()
                fine = (
                    found[1] in PROPERTIES
                    if known is _PROPERTY
                    else not "D8" <= (found[2] or "")[:2].upper() < "E0"
                )
                if not fine or self.folding:
                    raise self.refuse(f"\\{found.group()}")
                return known is _CODE
        char = self.take()
        if char not in "dDsSrntfva" and (char.isalnum() or not char.isascii()):
            raise self.refuse(f"\\{char}")
        if self.folding and char in "dDsS":
            raise self.refuse(f"\\{char} in (?i:)")
        return char not in "dDsS"
