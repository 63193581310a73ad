"""What the tests share: the text and GPT-2's files beside the repository, where they are there."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from bpe_scratch import Tokenizer

# the helpers of these tests are a module beside them
sys.path.insert(0, str(Path(__file__).parent))

from bpe_oracles import DATA, LAYERS, read_wiki

# a shell's background job is deaf to Ctrl-C, and so would be every process that these tests start
signal.signal(signal.SIGINT, signal.default_int_handler)


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
