"""What the tests share: the text and GPT-2's files beside the repository, where they are there."""

from __future__ import annotations

import json
import lzma
from importlib.util import find_spec
from pathlib import Path

import pytest
from bpe_scratch import Tokenizer

DATA = Path(__file__).parents[3].parent / "shared" / "data"
LAYERS = [
    "arrays",
    pytest.param("compiled", marks=pytest.mark.skipif(not find_spec("numba"), reason="no Numba")),
]


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def gpt2_files() -> tuple[Path, Path]:
    folder = DATA / "gpt2-tokenizer"
    if not folder.exists():
        pytest.skip("GPT-2's tokenizer files are not beside the repository")
    return folder / "encoder.json", folder / "vocab.bpe"


@pytest.fixture(scope="session")
def gpt2(gpt2_files: tuple[Path, Path]) -> Tokenizer:
    return Tokenizer.from_gpt2(*gpt2_files)


@pytest.fixture(scope="session")
def shakespeare() -> str:
    path = DATA / "text" / "tinyshakespeare" / "input.txt"
    if not path.exists():
        pytest.skip("tinyshakespeare is not beside the repository")
    return path.read_text("utf-8")


@pytest.fixture(scope="session")
def wiki() -> list[str]:
    return read_wiki("val")


def read_wiki(split: str) -> list[str]:
    path = DATA / "text" / "enwiki2015" / f"{split}.jsonl.xz"
    if not path.exists():
        pytest.skip("enwiki2015 is not beside the repository")
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]
