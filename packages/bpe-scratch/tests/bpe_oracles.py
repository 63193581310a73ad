"""Outside implementations, as the tests see them."""

from __future__ import annotations

import json
import lzma
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiktoken
from bpe_scratch import Tokenizer, Vocabulary
from bpe_scratch.byte_alphabet import to_printable
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFace
from tokenizers import models, pre_tokenizers, trainers

DATA = Path(__file__).parents[3].parent / "shared" / "data"
_needs_numba = pytest.mark.skipif(not find_spec("numba"), reason="Numba is not installed")
LAYERS = ["reference", pytest.param("auto", id="compiled", marks=_needs_numba)]

GPT2_EXPRESSION = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def as_tiktoken(tokenizer: Tokenizer) -> tiktoken.Encoding:
    ranks = {token: index for index, token in enumerate(tokenizer.vocabulary.tokens) if token is not None}
    return tiktoken.Encoding(
        "test", pat_str=GPT2_EXPRESSION, mergeable_ranks=ranks, special_tokens=tokenizer.special_tokens
    )


def as_hugging_face(tokenizer: Tokenizer) -> HuggingFace:
    return HuggingFace.from_str(tokenizer.to_json())


def hugging_face_merges(
    documents: list[str], merges: int, min_frequency: int = 2
) -> list[tuple[bytes, bytes]]:
    """Merges learned by Hugging Face, parts as printable text."""
    model = HuggingFace(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merges,
        min_frequency=min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(documents, trainer)
    return [tuple(m) for m in json.loads(model.to_str())["model"]["merges"]]


def our_merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    tokens = tokenizer.vocabulary.tokens
    return [(to_printable(tokens[a]), to_printable(tokens[b])) for a, b, _ in tokenizer.vocabulary.merges]


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Merges over three letters, in any order: a token may be made in several ways, or before its parts."""
    pairs: list[tuple[int, int]] = []
    built = Vocabulary.from_merges(pairs)
    known = [built.byte_ids[byte] for byte in b"abc"]
    for _ in range(draw(st.integers(0, 12))):
        pair = draw(st.sampled_from(known)), draw(st.sampled_from(known))
        if pair not in pairs:
            pairs.append(pair)
            built = Vocabulary.from_merges(pairs)
            known.append(built.merges[-1][2])
    # as trained; in any order; as in tiktoken's files, where merges of one rank make the same token
    shuffled, by_token = draw(st.permutations(range(len(pairs)))), [new for _, _, new in built.merges]
    ranks = draw(st.sampled_from([None, shuffled, by_token]))
    return Vocabulary(built.tokens, built.merges, ranks=ranks)


def read_wiki(split: str) -> list[str]:
    path = DATA / "text" / "enwiki2015" / f"{split}.jsonl.xz"
    if not path.exists():
        pytest.skip("enwiki2015 is not beside the repository")
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]
