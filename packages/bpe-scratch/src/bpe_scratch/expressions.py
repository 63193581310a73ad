r"""What an own expression may hold: what ``regex`` and Hugging Face's ``tokenizers`` read alike.

An expression is written into ``tokenizer.json``, and ``tokenizers`` reads it there by Oniguruma (Ruby's
syntax), where ``{1,3}+`` repeats, ``\h`` is a hexadecimal digit, and ``\w`` holds other characters.  So what
means the same in both stands here as a grammar, itself an expression, and all else is refused.  ``$`` stands
at each line's end in Ruby, and is compiled so.
"""

from __future__ import annotations

import regex

from bpe_scratch.errors import TokenizerError

_CATEGORIES = "L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp Cc Cf"
_SCRIPTS = "Han Hiragana Katakana Hangul Latin Greek Cyrillic Arabic Hebrew Thai Devanagari"
PROPERTIES = f"{_CATEGORIES} {_SCRIPTS}".split()
"""Known to both; ``C`` and ``Cn`` change with every version of Unicode."""

# What may match nothing is not repeated, and no choice of its own, but in (?=...): Oniguruma goes on
# otherwise behind it.  A class that holds nothing is something for regex.  Where case does not matter,
# U+00DF is "ss" for Oniguruma alone, as are others for ff, fi, fl and st.
_GRAMMAR = rf"""(?(DEFINE)
    (?<escape> \\ (?: [rntfva] | (?![A-Za-z0-9])[\x00-\x7F] | x[0-7][0-9A-Fa-f]
                    | u(?![dD][89A-Fa-f])[0-9A-Fa-f]{{4}} ) )
    (?<holds> \\[ds] | \\p\{{(?:{"|".join(PROPERTIES)})\}} )
    (?<lacks> \\[DS] | \\P\{{(?:{"|".join(PROPERTIES)})\}} )
    (?<one> (?&escape) | (?!&&|\|\||~~)[^\\\[\]\-] )
    (?<some> (?&one)(?:-(?&one))? )
    (?<class> \[ (?: (?!\^) -?(?:(?&some)|(?&holds)|(?&lacks))+ | \^-?(?:(?&some)|(?&holds))+
                   | \^-?(?&some)*(?&lacks)(?&some)* | \^?(?=-\]) ) -?\] )
    (?<character> (?&escape) | (?&holds) | (?&lacks) | (?&class) | [^\\^$|?*+(){{}}\[\]] )
    (?<cased> (?!(?i:ss|ff|fi|fl|st))[A-Za-z0-9'" ,:;!@%=<>/_-] )
    (?<folded> (?: (?&cased) | \[[A-Za-z0-9'\ ]+\] )+ )
    (?<item> (?> (?&character) | \((?:\?:|\?>)?(?&choice)\) | \(\?i:(?&folded)(?:\|(?&folded))*\) ) )
    (?<optional> [*?][?+]? | \{{0+(?:,\d*\??)?\}} )
    (?<quantifier> (?&optional) | \+[?+]? | \{{\d+(?:,\d*\}}\??|\}}) )
    (?<place> \$ | \(\?[=!](?&part)+(?:\|(?&part)+)*\) | \(\?<[=!](?&character)+\) )
    (?<part> (?&item)(?&quantifier)? | (?&place) )
    (?<sequence> (?: (?&item)(?&optional) | (?&place) )* (?&item)(?!(?&optional))(?&quantifier)? (?&part)* )
    (?<choice> (?&sequence)(?:\|(?&sequence))* )
)"""
_FLAGS = regex.VERBOSE | regex.DOTALL
_READ_ALIKE = regex.compile(_GRAMMAR + "(?&choice)", _FLAGS)
_CASELESS = regex.compile(_GRAMMAR + r"(?&class) | \\. | \(\?i: (?<inside>[^)]*) \)", _FLAGS)
_SECONDS = 2.0
"""Groups in groups in groups are read again and again."""


def compile_expression(expression: str) -> regex.Pattern[str]:
    """An expression that both libraries read alike, compiled.

    Raises:
        TokenizerError: Naming where a construct stands that is read differently, or what is not valid.
    """
    shown = f"pattern {expression[:80]!r}"
    try:
        regex.compile(expression)
        found = _READ_ALIKE.match(expression, timeout=_SECONDS)
        end = found.end() if found else 0
        if end < len(expression) or not expression:
            raise TokenizerError(
                f"{shown}: {expression[end : end + 12]!r} at character {end} can match the empty text, or is "
                "not known to be what it is in Hugging Face's tokenizers"
            )
        return regex.compile(_CASELESS.sub(_with_cases, expression), regex.MULTILINE)
    except (regex.error, RecursionError, OverflowError, TimeoutError) as error:
        raise TokenizerError(f"{shown} is not valid: {error}") from None


def _with_cases(found: regex.Match[str]) -> str:
    """``(?:[sSſ])`` for ``(?i:s)``, which ``regex`` lets leak into other classes."""
    if found["inside"] is None:
        return found.group()
    written, in_class = [], False
    for char in found["inside"]:
        in_class = char == "[" or (in_class and char != "]")
        cases = char.lower() + char.upper() + {"s": "\u017f", "k": "\u212a"}.get(char.lower(), "")
        written.append(char if not char.isalpha() else cases if in_class else f"[{cases}]")
    return f"(?:{''.join(written)})"
