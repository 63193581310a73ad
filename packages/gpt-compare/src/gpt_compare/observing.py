"""What only the competitor's own process sees: how long its compilers work, and how fast it generates.

Written as ``observed.json`` into the run's folder. Shapes: B sequences.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gpt_trainer.backend import Backend
from gpt_trainer.registry import BackendSpec

from gpt_compare.breakdown import covered

OBSERVED_NAME = "observed.json"
PREFILL, NEW = 512, 64
"""Tokens that a text begins with, and tokens that it is continued by; half of a shorter context, and less."""
SEED = 0


class CompileClock:
    """Seconds in which a compiler worked, each counted once if several worked side by side."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self.told = False

    def ended(self, seconds: float) -> None:
        """A compilation of so many seconds ends now."""
        now = time.perf_counter()
        self._spans.append((now - seconds, now))

    def seconds(self) -> float | None:
        """The union of all spans so far; None if nobody tells."""
        return covered(self._spans) if self.told else None


@contextmanager
def listening(name: str, clock: CompileClock) -> Iterator[None]:
    """Within, the compilers of a backend's framework tell the clock; another framework tells nothing.

    Args:
        name: The backend, which decides what is imported; it would be imported anyway.
    """
    makers = {"gpt-jax": _listen_to_xla, "gpt-triton": _listen_to_triton}
    torches = ("gpt-torchfunc", "plain", "transformers")
    makers |= dict.fromkeys(torches, _listen_to_dynamo)
    if name in makers:
        # where a framework tells it differs from version to version
        with contextlib.suppress(ImportError, AttributeError):
            makers[name](clock)
            clock.told = True
    yield


def _listen_to_xla(clock: CompileClock) -> None:
    from jax import monitoring

    def heard(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            clock.ended(duration_secs)

    monitoring.register_event_duration_secs_listener(heard)


def _listen_to_triton(clock: CompileClock) -> None:
    from triton import knobs

    def heard(*, times: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            clock.ended(1e-6 * times.total)

    knobs.compilation.listener = heard


def _listen_to_dynamo(clock: CompileClock) -> None:
    from torch._dynamo import callback

    begun: list[float] = []
    callback.on_compile_start(lambda _: begun.append(time.perf_counter()))
    callback.on_compile_end(lambda _: clock.ended(time.perf_counter() - begun.pop()) if begun else None)


class Speed(NamedTuple):
    """How fast so many texts are continued at once.

    Attributes:
        rows: Texts at once.
        prefill: Tokens of their beginnings that are read a second.
        decode: Tokens that are added to all of them a second, at the median of a token's time.
    """

    rows: int
    prefill: float
    decode: float


def measure_generation(backend: Backend, rows: int) -> Speed:
    """Continue ``rows`` random texts by the likeliest tokens; the first time compiles and does not count.

    The logits come to the host for each token, as they do for the trainers' samples.
    """
    config = backend.config
    prefill = min(PREFILL, config.context // 2)
    new = min(NEW, config.context - prefill)
    prompt = np.random.default_rng(SEED).integers(0, config.vocab_size, (rows, prefill)).astype(np.int32)
    for _ in range(2):
        decoder = backend.decoder(rows)
        laps, logits, began = [], decoder.feed(prompt), 0.0
        for _ in range(new):
            began = time.perf_counter()
            logits = decoder.feed(logits.argmax(1)[:, None].astype(np.int32))
            laps.append(time.perf_counter() - began)
    began = time.perf_counter()
    backend.decoder(rows).feed(prompt)
    whole = time.perf_counter() - began
    return Speed(rows, rows * prefill / whole, rows / statistics.median(laps))


class Observer:
    """Goes with a competitor through its run.

    Args:
        generate: Texts at once, a number or several.
    """

    def __init__(self, name: str, generate: Sequence[int]) -> None:
        self._name, self._generate = name, generate
        self._clock = CompileClock()
        self._backend: Backend | None = None

    def run(self, spec: BackendSpec, train: Callable[[BackendSpec], int], run: Path | None) -> int:
        """Train, and write down what was seen; the exit status is the trainer's.

        Args:
            run: Its folder; nothing is written if None.
        """
        with listening(self._name, self._clock):
            status = train(replace(spec, create=lambda *given: self._remember(spec.create(*given))))
            values: dict[str, Any] = {"compile_seconds": self._clock.seconds()}
            if status == 0 and self._backend is not None:
                values["generation"] = self._speeds(self._backend)
        if run is not None and run.is_dir():
            (run / OBSERVED_NAME).write_text(json.dumps(values) + "\n", "utf-8")
        return status

    def _remember(self, backend: Backend) -> Backend:
        self._backend = backend
        return backend

    def _speeds(self, backend: Backend) -> list[Speed]:
        """For each number of texts; one that fails ends the list, and says so."""
        found: list[Speed] = []
        for rows in self._generate:
            try:
                found.append(measure_generation(backend, rows))
            except Exception as error:  # noqa: BLE001 - the training, which is what was asked for, is done
                print(f"generating {rows} texts failed: {error}", file=sys.stderr)
                break
        return found
