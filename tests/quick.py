"""For ``nox -s quick``: pytest runs for a given time and counts what it did not get to.

The files that name what changed run first, then the others; of each kind the ones first whose tests took
the least time when they last ran here.

    pytest packages/gpt-data/tests -p quick --seconds 30 --changed gpt_data.shards gpt_data.writer
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean

import pytest

STARTED = time.monotonic()
CACHE = "quick/seconds"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, required=True, help="no test starts after these")
    parser.addoption("--changed", nargs="*", default=[], help="modules whose tests run first")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    changed, known = config.getoption("--changed"), config.cache.get(CACHE, {})
    order: dict[Path, tuple[bool, float]] = {}
    for path in {item.path for item in items}:
        text = path.read_text()
        near = any(name in text or name == path.stem for name in changed)
        order[path] = not near, fmean(known.get(item.nodeid, 0.0) for item in items if item.path == path)
    items.sort(key=lambda item: order[item.path])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    seconds = item.config.getoption("--seconds")
    if time.monotonic() - STARTED > seconds:
        pytest.skip(f"not within {seconds:.0f} s: `nox -s tests` runs it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> object:
    began, over = time.monotonic(), time.monotonic() - STARTED > item.config.getoption("--seconds")
    result = yield
    if not over:
        known = item.config.cache.get(CACHE, {})
        item.config.cache.set(CACHE, known | {item.nodeid: time.monotonic() - began})
    return result
