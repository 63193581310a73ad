"""The tokenizer: text to ids and back."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from bpe_scratch import dropout
from bpe_scratch.decoders import Decoder, TokenStream
from bpe_scratch.encoders import IdArray
from bpe_scratch.errors import TokenizerError
from bpe_scratch.layers import Layer, make_encoder, resolve_layer
from bpe_scratch.patterns import splitter, to_utf8
from bpe_scratch.special import END_OF_TEXT, all_token_bytes, refuse_special_text, split_special
from bpe_scratch.stored import StoredTokenizer
from bpe_scratch.vocabulary import Vocabulary


class Tokenizer(StoredTokenizer):
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
        resolve_layer(layer, pattern)
        super().__init__(vocabulary, pattern=pattern, special_tokens=special_tokens)
        self._token_bytes = all_token_bytes(vocabulary, self.special_tokens)
        self._layer = layer
        self._clones: list[Any] = []

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
    def _encoder(self) -> Any:
        return make_encoder(self.vocabulary, self.pattern, self._layer)

    @cached_property
    def _integers(self) -> npt.NDArray[np.object_]:
        return np.arange(self.vocab_size).astype(object)

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self._token_bytes, compiled=resolve_layer(self._layer, "none") == "compiled")

    def encode(
        self, text: str, *, allowed_special: Collection[str] = frozenset(), refuse_special: bool = False
    ) -> list[int]:
        """The ids of a text.

        Args:
            text: Any text; lone surrogates are refused.
            allowed_special: Special tokens to recognise; the others are ordinary text.
            refuse_special: Raise when the text holds a special token that is not allowed.

        Raises:
            TextError: If the text has no UTF-8 form, or holds a refused special token.
        """
        if refuse_special:
            refuse_special_text(text, self.special_tokens, allowed_special)
        if not allowed_special:
            return self._encoder.encode(text)
        ids: list[int] = []
        for part, index in split_special(text, self.special_tokens, allowed_special):
            ids.extend(self._encoder.encode(part) if index is None else [index])
        return ids

    def encode_batch(
        self, texts: Iterable[str], *, allowed_special: Collection[str] = frozenset(), threads: int = 1
    ) -> list[list[int]]:
        """The ids of each text.

        Args:
            texts: Texts, each encoded by itself.
            allowed_special: As in :meth:`encode`.
            threads: Threads that share the texts; only the compiled layer gains by more than one.
        """
        if allowed_special:
            return [self.encode(text, allowed_special=allowed_special) for text in texts]
        ids, offsets = self.encode_to_numpy(list(texts), threads=threads)
        # lists that share one object per id: faster than an object for each, and a quarter of the memory
        return [self._integers[ids[start:end]].tolist() for start, end in pairwise(offsets.tolist())]

    def encode_to_numpy(
        self, texts: Sequence[str], *, threads: int = 1
    ) -> tuple[IdArray, npt.NDArray[np.int64]]:
        """All ids of many texts in one array.

        Args:
            texts: Texts, each encoded by itself; special tokens are ordinary text.
            threads: As in :meth:`encode_batch`.

        Returns:
            ``(ids, offsets)``: ids as uint16 if every id fits, else uint32; text ``i`` is
            ``ids[offsets[i]:offsets[i + 1]]``, offsets as int64.
        """
        lengths = np.zeros(len(texts), dtype=np.int64)
        parts = self._encode_parts(texts, lengths, threads)
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        if len(parts) == 1:
            return parts[0], offsets
        return (np.concatenate(parts) if parts else np.zeros(0, dtype=self.dtype)), offsets

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and for each the characters that it touches.

        Args:
            text: Any text; special tokens are ordinary text.

        Returns:
            ``(ids, spans)``: token ``i`` touches ``text[start:end]`` with ``start, end = spans[i]``. Tokens
            that share a character's bytes both touch it.
        """
        ids = self._encoder.encode_array(text)
        raw = np.frombuffer(to_utf8(text), dtype=np.uint8)
        character = np.cumsum((raw & 0xC0) != 0x80) - 1
        ends = np.cumsum([len(self._token_bytes[index] or b"") for index in ids], dtype=np.int64)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64) if ids.size else ends
        spans = zip(character[starts].tolist(), (character[ends - 1] + 1).tolist(), strict=True)
        return ids.tolist(), list(spans)

    def encode_dropout(self, text: str, rate: float, *, seed: int) -> list[int]:
        """The ids of a text under BPE-dropout; they always decode to the text.

        Args:
            text: Any text; special tokens are ordinary text.
            rate: Probability of leaving a merge out at a step, from 0 (the usual ids) to 1 (bytes).
            seed: The same seed gives the same ids.
        """
        if not 0 <= rate <= 1:
            raise TokenizerError(f"rate={rate} must be from 0 to 1")
        random, known = np.random.default_rng(seed), self.vocabulary
        pieces = [to_utf8(piece) for piece in splitter(self.pattern)(text)]
        parts = [dropout.encode_piece(piece, known.byte_ids, known.pairs, rate, random) for piece in pieces]
        return list(chain.from_iterable(parts))

    def pieces(self, text: str) -> list[str]:
        """The pieces that a text is cut into before BPE.

        Args:
            text: Any text.
        """
        return splitter(self.pattern)(text)

    def token_bytes(self, index: int) -> bytes:
        """The bytes of one id.

        Args:
            index: An id of the vocabulary.
        """
        return self.decode_bytes([index])

    def count(self, text: str) -> int:
        """The number of ids of a text, without a Python object for each.

        Args:
            text: Any text; special tokens are ordinary text.
        """
        return len(self._encoder.encode_array(text))

    def _encode_parts(
        self, texts: Sequence[str], lengths: npt.NDArray[np.int64], threads: int
    ) -> list[np.ndarray]:
        if threads < 1:
            raise TokenizerError(f"threads={threads} must be at least 1")
        if threads == 1 or len(texts) < 2:
            return list(self._encoder.encode_arrays(texts, lengths, self.dtype))
        while len(self._clones) < threads:
            self._clones.append(self._encoder.clone())
        sizes = np.cumsum([len(text) for text in texts])
        bounds = [
            0,
            *np.searchsorted(sizes, sizes[-1] * np.arange(1, threads) / threads).tolist(),
            len(texts),
        ]

        def work(share: int) -> list[np.ndarray]:
            mine = slice(bounds[share], bounds[share + 1])
            return list(self._clones[share].encode_arrays(texts[mine], lengths[mine], self.dtype))

        with ThreadPoolExecutor(threads) as pool:
            return list(chain.from_iterable(pool.map(work, range(threads))))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for.

        Args:
            ids: Ids, special ones included.

        Raises:
            TokenIdError: Naming the first id outside the vocabulary and its position.
        """
        return self._decoder.decode_bytes(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: Ids, special ones included.
        """
        return self._decoder.decode_text(ids)

    def decode_batch(self, batch: Iterable[Iterable[int]]) -> list[str]:
        """Decode many.

        Args:
            batch: Ids of each text.
        """
        return [self.decode(ids) for ids in batch]

    def stream(self) -> TokenStream:
        """A decoder that takes ids one by one and emits only whole characters."""
        return TokenStream(self._decoder)
