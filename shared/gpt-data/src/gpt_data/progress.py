"""What a preparation tells about itself while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """How far a preparation has come.

    Attributes:
        stage: ``"tokenizer"`` (it is being trained), ``"tokens"``, or ``"notice"``.
        message: For a notice, one line.
        documents: Documents of the source done.
        tokens: Tokens of the training split, or of the only one that is prepared.
        max_tokens: Tokens at which it ends, if that was asked for.
        text_bytes: Text encoded by this process, in characters.
        total_bytes: Text in all, if the source knows it.
    """

    stage: str
    message: str = ""
    documents: int = 0
    tokens: int = 0
    max_tokens: int | None = None
    text_bytes: int = 0
    total_bytes: int | None = None


OnProgress = Callable[[Progress], None]
