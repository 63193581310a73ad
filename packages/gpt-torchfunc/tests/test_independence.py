"""What the package imports: torch, NumPy and the shared packages, and nothing of another backend."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import gpt_torchfunc
import pytest

SOURCES = sorted(Path(gpt_torchfunc.__file__).parent.glob("*.py"))
# cudnn is the module of the extra of that name
ALLOWED = {"cudnn", "gpt_data", "gpt_torchfunc", "gpt_trainer", "jaxtyping", "numpy", "torch"}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_sources_import_only_what_is_declared(source):
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    assert found - set(sys.stdlib_module_names) - ALLOWED == set()


def test_nothing_foreign_is_loaded():
    program = (
        "import sys, gpt_torchfunc.backend\n"
        "print(sorted({'jax', 'flax', 'gpt_jax', 'gpt_triton', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("word", ["nn.Module", "torch.optim", ".backward("])
def test_the_model_is_functions(word):
    assert not [path.name for path in SOURCES if word in path.read_text()]
