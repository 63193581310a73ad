"""What the fused kernel is told of documents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpt_torchfunc.documents import MULTIPLE, boundaries
from gpt_torchfunc.model import Plan
from gpt_torchfunc.plan import tells_documents


def test_documents_end_where_the_next_begins_and_the_last_at_the_end():
    found = boundaries(np.array([[0, 0, 2], [0, 1, 1]], np.int32))
    assert found.dtype == np.int32
    assert found.tolist() == [0, 2, 3, 4] + [6] * (MULTIPLE - 4)


# around one multiple: the end needs a place of its own
@pytest.mark.parametrize(
    ("documents", "size"), [(MULTIPLE - 1, MULTIPLE), (MULTIPLE, 2 * MULTIPLE)], ids=lambda n: str(n)
)
def test_the_end_is_there_whatever_the_number(documents, size):
    found = boundaries(np.arange(documents, dtype=np.int32)[None])
    assert len(found) == size
    assert found[:documents].tolist() == list(range(documents))
    assert set(found[documents:].tolist()) == {documents}


def test_only_flash_attention_is_told():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    fused = Plan(1, 8, torch.bfloat16, "sdpa")
    assert tells_documents(fused, gpu)
    assert not tells_documents(fused, cpu)
    assert not tells_documents(Plan(1, 8, torch.float32, "sdpa"), gpu)
    assert not tells_documents(Plan(1, 8, torch.bfloat16, "written"), gpu)
