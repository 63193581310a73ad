"""Which layer does the work: the compiled one where Numba is installed, else Python and NumPy."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any, Literal

from bpe_scratch.errors import TokenizerError
from bpe_scratch.patterns import PATTERNS, resolve_pattern
from bpe_scratch.vocabulary import Vocabulary

Layer = Literal["auto", "compiled", "arrays"]
_told = False


def resolve_layer(layer: str, pattern: str) -> str:
    """The layer that will work: ``compiled`` or ``arrays``.

    Args:
        layer: ``auto`` takes ``compiled`` where it can.
        pattern: Expressions of the caller's need the ``regex`` library, so the compiled layer has only names.

    Raises:
        TokenizerError: If ``compiled`` is asked for and cannot work.
    """
    named = resolve_pattern(pattern)[0] in PATTERNS
    if layer == "auto":
        return "compiled" if named and find_spec("numba") is not None else "arrays"
    if layer == "compiled" and not named:
        raise TokenizerError(f"layer='compiled' has no automaton for the expression {pattern[:60]!r}")
    if layer == "compiled" and find_spec("numba") is None:
        raise TokenizerError("layer='compiled' needs Numba: install bpe-scratch[compiled]")
    if layer not in ("compiled", "arrays"):
        raise TokenizerError(f"layer={layer!r} is not one of auto, compiled, arrays")
    return layer


def make_encoder(vocabulary: Vocabulary, pattern: str, layer: str) -> Any:
    """An encoder of the layer.

    Args:
        vocabulary: Tokens and merges.
        pattern: Name or expression.
        layer: ``auto``, ``compiled`` or ``arrays``.
    """
    if resolve_layer(layer, pattern) == "compiled":
        from bpe_scratch.compiled.encoder import CompiledEncoder

        tell_before_compiling("encoding", "encode_documents")
        return CompiledEncoder(vocabulary, resolve_pattern(pattern)[0] or "none")
    if resolve_pattern(pattern)[0] == "gpt2":
        from bpe_scratch.array_encoder import ArrayEncoder

        return ArrayEncoder(vocabulary)
    from bpe_scratch.encoders import PlainEncoder

    return PlainEncoder(vocabulary, pattern)


def tell_before_compiling(module: str, name: str) -> None:
    """Say on standard error, once, that kernels are about to be compiled, if they are not on disk yet.

    Args:
        module: Module of the layer that holds the largest kernel.
        name: That kernel.
    """
    global _told
    from bpe_scratch.compiled.kernel import is_cached

    if not _told and not is_cached(module, name):
        _told = True
        print(
            "bpe-scratch: compiling kernels for this machine, once; takes some seconds",
            file=sys.stderr,
            flush=True,
        )
