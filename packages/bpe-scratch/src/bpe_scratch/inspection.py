"""Looking at a tokenizer: its merges, its longest tokens, and a text in colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bpe_scratch.corpus import read_parts
from bpe_scratch.tokenizer import Tokenizer

_COLOURS = ("black on cyan", "black on yellow", "black on green", "black on magenta", "white on blue")


def inspect(tokenizer: Tokenizer, text: str | None, files: Sequence[Path], rows: int) -> None:
    """Print what a tokenizer knows; a text in colours; bytes per token of files."""
    console = Console()
    known = tokenizer.vocabulary
    console.print(
        f"{tokenizer.vocab_size} ids, {len(known.merges)} merges, pattern {tokenizer.pattern}", markup=False
    )
    console.print(f"special tokens {tokenizer.special_tokens}, sha256 {tokenizer.sha256}", markup=False)
    merges = Table("merge", "left", "right", "id", title="First merges")
    for rank, (left, right, merged) in enumerate(known.merges[:rows]):
        merges.add_row(str(rank), *(Text(_shown(known.tokens[i])) for i in (left, right)), str(merged))
    console.print(merges)
    longest = Table("id", "bytes", "token", title="Longest tokens")
    by_length = sorted(known.id_of_token.items(), key=lambda item: (-len(item[0]), item[1]))
    for token, index in by_length[:rows]:
        longest.add_row(str(index), str(len(token)), Text(_shown(token)))
    console.print(longest)
    if files:
        size = tokens = 0
        for part in read_parts(files, pattern=tokenizer.pattern):
            size += len(part.text.encode())
            tokens += len(tokenizer.encode_to_numpy([part.text])[0])
        console.print(f"{size} bytes, {tokens} tokens, {size / max(tokens, 1):.3f} bytes per token")
    if text is not None:
        console.print(coloured(tokenizer, text))


def coloured(tokenizer: Tokenizer, text: str) -> Text:
    """A text with a colour for each token and a bar where a piece begins."""
    shown, number = Text(), 0
    for piece in tokenizer.pieces(text):
        shown.append("|", style="dim")
        for index in tokenizer.encode(piece):
            shown.append(_shown(tokenizer.decode_bytes([index])), style=_COLOURS[number % len(_COLOURS)])
            number += 1
    return shown


def _shown(token: bytes | None) -> str:
    if token is None:
        return "-"
    text = token.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
