"""Which layer does the work: the compiled one where Numba is installed, else the reference."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, get_args

from bpe_scratch.errors import TokenizerError
from bpe_scratch.patterns import PATTERNS, resolve_pattern
from bpe_scratch.vocabulary import Vocabulary

Layer = Literal["auto", "reference"]


def is_compiled(layer: str, pattern: str) -> bool:
    """Whether kernels will do the work; they have automata for the patterns with names."""
    if layer not in get_args(Layer):
        raise TokenizerError(f"layer={layer!r} is not one of {', '.join(get_args(Layer))}")
    return layer == "auto" and resolve_pattern(pattern) in PATTERNS and has_numba()


@cache
def has_numba() -> bool:
    """Whether Numba is installed; where it is not, standard error is told once."""
    found = find_spec("numba") is not None
    if not found:
        say("bpe-scratch: Numba is not installed, so the reference does the work: right, and slow")
    return found


def make_encoder(vocabulary: Vocabulary, pattern: str, layer: str) -> Any:
    """An encoder of the layer, for a name or an expression."""
    if is_compiled(layer, pattern):
        from bpe_scratch.compiled.encoder import CompiledEncoder

        tell_before_compiling()
        return CompiledEncoder(vocabulary, resolve_pattern(pattern))
    from bpe_scratch.encoders import PlainEncoder

    return PlainEncoder(vocabulary, pattern)


@cache
def tell_before_compiling() -> None:
    """Say on standard error, once, that kernels are about to be compiled, if they are not on disk yet."""
    from bpe_scratch.compiled.encoding import encode_documents
    from bpe_scratch.compiled.kernel import is_cached

    if not is_cached(encode_documents):
        say("bpe-scratch: compiling kernels for this machine, once; takes some seconds")


def say(line: str, end: str = "\n") -> None:
    """Write to standard error; one that takes nothing ends no work."""
    with suppress(OSError):
        print(line, end=end, file=sys.stderr, flush=True)
