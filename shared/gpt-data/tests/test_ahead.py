from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count

import pytest
from gpt_data import ahead
from gpt_data.ahead import read_ahead


def test_items_come_in_order_and_then_the_end() -> None:
    with read_ahead(iter(range(100)), 3) as items:
        assert list(items) == list(range(100))
        assert list(items) == []


@pytest.mark.parametrize(
    "error", [ValueError("broken"), KeyboardInterrupt()], ids=lambda error: type(error).__name__
)
def test_an_error_comes_where_its_item_would_have(error: BaseException) -> None:
    def broken() -> Iterator[int]:
        yield from (1, 2)
        raise error

    with read_ahead(broken(), 5) as items:
        assert (next(items), next(items)) == (1, 2)
        with pytest.raises(type(error)) as caught:
            next(items)
        assert caught.value is error


def test_no_more_is_read_than_may_wait() -> None:
    made: list[int] = []
    with read_ahead((made.append(number) or number for number in count()), 2) as items:
        assert next(items) == 0
        time.sleep(0.2)
        # two wait, one is in the thread's hand
        assert len(made) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name == "gpt-data-ahead"]


def test_a_thread_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "END_SECONDS", 0.05)
    hung = threading.Event()

    def hang() -> Iterator[int]:
        yield 1
        hung.wait()

    with read_ahead(hang(), 2) as items:
        assert next(items) == 1
    hung.set()
