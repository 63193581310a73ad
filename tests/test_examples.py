"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(source).with_suffix("").parts)
    for source in [*ROOT.glob("packages/*/src"), *ROOT.glob("shared/*/src")]
    for path in source.rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    module = pytest.importorskip(name)
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
