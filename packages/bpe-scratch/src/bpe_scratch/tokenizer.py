"""The tokenizer: text to ids and back, and the files that hold it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bpe_scratch.decoders import Decoder, TokenStream
from bpe_scratch.encoders import IdArray
from bpe_scratch.files import by_id, read_gpt2, read_text, replacing
from bpe_scratch.layers import Layer, is_compiled, make_encoder
from bpe_scratch.patterns import refuse_lone_text, resolve_pattern, to_utf8
from bpe_scratch.special import END_OF_TEXT, check_allowed, check_special, split_special
from bpe_scratch.tiktoken_file import read_tiktoken
from bpe_scratch.tokenizer_json import format_tokenizer_json, parse_tokenizer_json
from bpe_scratch.vocabulary import Vocabulary


class Tokenizer:
    """A vocabulary, a pattern that cuts text into pieces, and special tokens.

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
        layer: Layer = "auto",
    ) -> None:
        is_compiled(layer, pattern)
        self.vocabulary = vocabulary
        self.pattern = resolve_pattern(pattern)
        self.special_tokens = check_special(special_tokens or {}, vocabulary)
        special = {to_utf8(text): index for text, index in self.special_tokens.items()}
        self._token_bytes = by_id(vocabulary.id_of_token | special)
        self._layer = layer

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read the ``tokenizer.json`` at a path.

        Raises:
            FileFormatError: If it is not a byte-level BPE that this package can reproduce.
        """
        return cls.from_json(read_text(Path(path)), str(path))

    @classmethod
    def from_json(cls, text: str, name: str = "tokenizer.json") -> Self:
        """Read the text of a ``tokenizer.json``; ``name`` is the file's, for messages."""
        vocabulary, pattern, special = parse_tokenizer_json(text, name)
        return cls(vocabulary, pattern=pattern, special_tokens=special)

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

    def to_json(self) -> str:
        """The text of a ``tokenizer.json`` that Hugging Face ``tokenizers`` loads too."""
        return self._json

    def save(self, path: Path | str) -> None:
        """Write ``tokenizer.json``, in place of a file that is there.

        Raises:
            WriteError: If it cannot be written.
        """
        with replacing(Path(path)) as file:
            file.write(self.to_json().encode())

    @property
    def sha256(self) -> str:
        """Hash of :meth:`to_json`: equal hashes, equal ids."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones and gaps included: one more than the largest id."""
        return len(self._token_bytes)

    @property
    def end_of_text(self) -> int | None:
        """Id of ``<|endoftext|>``, or ``None`` if there is none."""
        return self.special_tokens.get(END_OF_TEXT)

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The smallest unsigned type that holds every id."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    @cached_property
    def _json(self) -> str:
        return format_tokenizer_json(self.vocabulary, self.pattern, self.special_tokens)

    @cached_property
    def _encoder(self) -> Any:
        return make_encoder(self.vocabulary, self.pattern, self._layer)

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self._token_bytes)

    def encode(self, text: str, *, allowed_special: Collection[str] = frozenset()) -> list[int]:
        """The ids of a text.

        Args:
            text: Any text; lone surrogates are refused.
            allowed_special: Special tokens to recognise, or ``"all"``; the others are ordinary text.

        Raises:
            TextError: If the text has no UTF-8 form.
            TokenizerError: If what is allowed is no special token.
            TypeError: If one text is allowed instead of a collection of texts.
        """
        allowed = check_allowed(allowed_special, self.special_tokens)
        if not allowed:
            return self._encoder.encode(text)
        to_utf8(text)  # which names a place in the whole text
        ids: list[int] = []
        for part, index in split_special(text, self.special_tokens, allowed):
            ids.extend(self._encoder.encode(part) if index is None else [index])
        return ids

    def encode_to_numpy(self, texts: Sequence[str]) -> tuple[IdArray, npt.NDArray[np.int64]]:
        """All ids of many texts in one array.

        Args:
            texts: Texts, each encoded by itself; special tokens are ordinary text.

        Returns:
            ``(ids, offsets)``: ids as uint16 if every id fits, else uint32; text ``i`` is
            ``ids[offsets[i]:offsets[i + 1]]``, offsets as int64.
        """
        refuse_lone_text(texts)
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        ids = self._encoder.encode_array(texts, offsets[1:], self.dtype)
        return ids, np.cumsum(offsets)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for, special ones included.

        Raises:
            TokenIdError: Naming the first id outside the vocabulary and its position.
        """
        return self._decoder.decode_bytes(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for, as in :meth:`decode_bytes`; bytes that are not UTF-8 become U+FFFD."""
        return str(self._decoder.decode_bytes(ids), "utf-8", "replace")

    def stream(self) -> TokenStream:
        """A decoder that takes ids one by one and emits only whole characters."""
        return TokenStream(self._decoder)
