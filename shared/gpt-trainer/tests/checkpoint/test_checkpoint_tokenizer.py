"""What ``transformers`` makes of a step's tokenizer: the ids that the model was trained on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bpe_scratch
import pytest
from gpt_trainer.checkpoint import CheckpointState, save_checkpoint
from gpt_trainer.model_config import ModelConfig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

END = "<|endoftext|>"
# what each pattern was seen to cut otherwise, and much that they treat alike
TEXT = "(x\n(x\n(x a.b a.b a.b don't DON'T  12345 12345\r\n\r\n\tx  \n naïve naïve 日本 日本 /a/b\u3000."
PATTERNS = ["gpt2", "cl100k", "o200k", "none", r"\p{L}+|\p{N}+|[^\p{L}\p{N}]+", r"[aeiou]|\d+"]
# unassigned characters get their classes with the version of Unicode that each library knows
letters = st.characters(exclude_categories=("Cs", "Cn")) | st.sampled_from(TEXT)
texts = st.lists(st.text(letters, max_size=8) | st.sampled_from([*TEXT.split(" "), END]), max_size=8).map(
    "".join
)

# transformers and torch are not part of this package's own environment; importing them takes seconds
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def ours(tokenizer: bpe_scratch.Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, allowed_special={END})


@pytest.mark.parametrize("pattern", PATTERNS)
def test_transformers_reads_the_ids_that_the_model_was_trained_on(
    pattern: str, tmp_path: Path, make_state: Callable[..., CheckpointState]
) -> None:
    transformers: Any = pytest.importorskip("transformers")
    torch: Any = pytest.importorskip("torch")
    tokenizer = bpe_scratch.train([TEXT] * 3, 300, pattern=pattern)
    model = ModelConfig(n_layer=1, n_head=1, d_model=8, context=32, vocab_size=tokenizer.vocab_size)
    state = make_state(1, model)._replace(tokenizer_json=tokenizer.to_json().encode())
    folder = save_checkpoint(tmp_path, state)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.all_special_ids == [tokenizer.end_of_text] == [theirs.eos_token_id]
    assert theirs.bos_token_id == theirs.pad_token_id == theirs.eos_token_id

    @settings(max_examples=150, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(texts)
    def agree(text: str) -> None:
        ids = ours(tokenizer, text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text

    agree()
    rows = theirs(["a", TEXT], padding=True, return_tensors="pt")
    short, long = ours(tokenizer, "a"), ours(tokenizer, TEXT)
    fill = len(long) - len(short)
    assert rows["input_ids"].tolist() == [short + [tokenizer.end_of_text] * fill, long]
    assert rows["attention_mask"].tolist() == [[1] * len(short) + [0] * fill, [1] * len(long)]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = loaded.generate(torch.tensor([short]), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert ids.shape == (1, len(short) + 4)
    assert loaded.generation_config.eos_token_id == tokenizer.end_of_text


def test_a_tokenizer_without_an_end_of_text_and_with_other_special_tokens(
    tmp_path: Path, make_state: Callable[..., CheckpointState]
) -> None:
    transformers: Any = pytest.importorskip("transformers")
    for number, special in enumerate([(), ("<a>",), ("<a>", END), (END, "<a>", "<b c>")]):
        tokenizer = bpe_scratch.train([TEXT] * 3, 290, pattern="cl100k", special_tokens=special)
        model = ModelConfig(n_layer=1, n_head=1, d_model=8, context=32, vocab_size=tokenizer.vocab_size)
        state = make_state(number, model)._replace(tokenizer_json=tokenizer.to_json().encode())
        theirs = transformers.AutoTokenizer.from_pretrained(save_checkpoint(tmp_path, state))
        assert theirs.eos_token_id == tokenizer.end_of_text
        for parts in itertools.permutations(["(x", "<a>", END, "<b c>", " "], 4):
            text = "".join(parts)
            assert theirs(text)["input_ids"] == tokenizer.encode(text, allowed_special=set(special))
