"""Reading and writing tokenizer files: everything of a tokenizer but its work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from bpe_scratch.files import Parts, format_gpt2, read_gpt2, read_text, write_text
from bpe_scratch.patterns import resolve_pattern
from bpe_scratch.special import END_OF_TEXT, check_special
from bpe_scratch.tiktoken_file import read_tiktoken, write_tiktoken
from bpe_scratch.tokenizer_json import format_tokenizer_json, parse_tokenizer_json
from bpe_scratch.vocabulary import Vocabulary


class StoredTokenizer:
    """A vocabulary, a pattern and special tokens, and the files that hold them.

    Attributes:
        vocabulary: Tokens and merges.
        pattern: Name of the pattern, or its expression if it has none.
        special_tokens: Id of each special token's text.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        pattern: str = "gpt2",
        special_tokens: Mapping[str, int] | None = None,
    ) -> None:
        name, expression = resolve_pattern(pattern)
        self.vocabulary = vocabulary
        self.pattern: str = name or expression or "none"
        self.special_tokens = check_special(special_tokens or {}, vocabulary)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a ``tokenizer.json``.

        Args:
            path: The file.

        Raises:
            FileFormatError: If it is not a byte-level BPE that this package can reproduce.
        """
        path = Path(path)
        return cls._from_parts(parse_tokenizer_json(read_text(path), str(path)))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the text of a ``tokenizer.json``.

        Args:
            text: The JSON text.
        """
        return cls._from_parts(parse_tokenizer_json(text, "tokenizer.json"))

    @classmethod
    def from_gpt2(cls, vocab_path: Path | str, merges_path: Path | str, *, pattern: str = "gpt2") -> Self:
        """Read GPT-2's two files: ``vocab.json`` (or ``encoder.json``) and ``merges.txt`` (or ``vocab.bpe``).

        Args:
            vocab_path: JSON object from token to id.
            merges_path: One pair a line, the strongest first.
            pattern: Pattern that the files were trained with; they do not say.
        """
        vocabulary, special = read_gpt2(Path(vocab_path), Path(merges_path))
        return cls(vocabulary, pattern=pattern, special_tokens=special)

    @classmethod
    def from_tiktoken(
        cls, path: Path | str, *, pattern: str, special_tokens: Mapping[str, int] | None = None
    ) -> Self:
        """Read tiktoken's rank file.

        Args:
            path: The file.
            pattern: Pattern that the file was trained with; it does not say.
            special_tokens: Special tokens; the file has none.
        """
        return cls(read_tiktoken(Path(path)), pattern=pattern, special_tokens=special_tokens)

    @classmethod
    def from_bytes(cls) -> Self:
        """256 bytes and the end of text: 257 ids, no merges."""
        return cls(Vocabulary.from_merges([]), pattern="none", special_tokens={END_OF_TEXT: 256})

    @classmethod
    def _from_parts(cls, parts: Parts) -> Self:
        return cls(parts.vocabulary, pattern=parts.pattern, special_tokens=parts.special_tokens)

    def to_json(self) -> str:
        """The text of a ``tokenizer.json`` that Hugging Face ``tokenizers`` loads too."""
        return format_tokenizer_json(self._parts())

    def save(self, path: Path | str) -> None:
        """Write ``tokenizer.json``.

        Args:
            path: The file; replaced if it exists.
        """
        write_text(Path(path), self.to_json())

    def save_gpt2(self, vocab_path: Path | str, merges_path: Path | str) -> None:
        """Write GPT-2's two files.

        Args:
            vocab_path: ``vocab.json``; replaced if it exists.
            merges_path: ``merges.txt``; replaced if it exists.
        """
        vocab, merges = format_gpt2(self._parts())
        write_text(Path(vocab_path), vocab)
        write_text(Path(merges_path), merges)

    def save_tiktoken(self, path: Path | str) -> None:
        """Write tiktoken's rank file; pattern and special tokens are not part of it.

        Args:
            path: The file; replaced if it exists.
        """
        write_tiktoken(self.vocabulary, Path(path))

    def _parts(self) -> Parts:
        return Parts(self.vocabulary, self.pattern, self.special_tokens)
