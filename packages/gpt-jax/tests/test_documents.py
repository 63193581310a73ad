"""What the fused kernel is told of documents."""

from __future__ import annotations

import numpy as np
import pytest
from gpt_jax.documents import MULTIPLE, first_positions


def test_a_row_of_two_and_a_row_of_three() -> None:
    found = first_positions(np.array([[0, 0, 2, 2], [0, 1, 1, 3]], np.int32))
    assert found.dtype == np.int32
    assert found.tolist() == [[0, 2] + [-1] * (MULTIPLE - 1), [0, 1, 3] + [-1] * (MULTIPLE - 2)]


# around one multiple: a place stays free behind the last document
@pytest.mark.parametrize(
    ("documents", "size"), [(MULTIPLE, MULTIPLE + 1), (MULTIPLE + 1, 2 * MULTIPLE + 1)], ids=str
)
def test_a_place_stays_free_whatever_the_number(documents: int, size: int) -> None:
    (found,) = first_positions(np.arange(documents, dtype=np.int32)[None])
    assert found.tolist() == [*range(documents), *[-1] * (size - documents)]
