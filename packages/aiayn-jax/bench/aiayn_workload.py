"""What every program of the benchmark is given: sizes, sentence pairs, and how it is timed.

Shapes: B rows, S source positions, T target positions, V vocabulary, D width, F feed-forward width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from aiayn_jax.config import TransformerConfig, preset
from aiayn_jax.parameters import PairBatch
from gpt_data.batch import IGNORE
from gpt_trainer.schedules import noam

BLOCK = 10
"""Steps between two looks at the clock."""


@dataclass(frozen=True)
class Case:
    """One program to time.

    Attributes:
        name: For the table.
        framework: ``"jax"``, this package; ``"torch"``, the baseline.
        preset: Sizes by name.
        vocab_size: Token ids.
        rows: Sentence pairs of a batch.
        length: Positions of source and target; sentences have this many tokens or up to seven less.
        seconds: How long to time, at least.
        device: ``"gpu"`` or ``"cpu"``.
        dropout: Its rate.
        attention: Of this package.
        unroll: Of this package: every layer compiled for itself.
        deterministic: Of this package.
        wide_logits: Of this package: logits in float32.
        chunk: Of this package: largest number of logits at a time; 0 means as it chooses.
        mode: Of ``torch.compile``.
        xla_flags: Of this package: for the environment.
    """

    name: str
    framework: str = "jax"
    preset: str = "base"
    vocab_size: int = 37000
    rows: int = 560
    length: int = 48
    seconds: float = 6.0
    device: str = "gpu"
    dropout: float = 0.1
    attention: str = "written"
    unroll: bool = False
    deterministic: bool = True
    wide_logits: bool = True
    chunk: int = 0
    mode: str = "default"
    xla_flags: str = ""

    @property
    def config(self) -> TransformerConfig:
        """The model's sizes."""
        return preset(self.preset, self.vocab_size, dropout=self.dropout, longest=max(self.length, 64))

    @property
    def precision(self) -> str:
        """bfloat16 where the hardware has it."""
        return "bfloat16" if self.device == "gpu" else "float32"


def learning_rate(config: TransformerConfig, step: int) -> float:
    """The paper's, for any width."""
    return noam(step, peak=(config.d_model * 4000) ** -0.5, warmup=4000)


def make_batches(case: Case, count: int = 4) -> list[PairBatch]:
    """Random sentences whose words are as unevenly frequent as those of a language: 1 / rank.

    Args:
        case: Sizes.
        count: Number of batches, used in turn.
    """
    rng = np.random.default_rng(0)
    chance = 1.0 / np.arange(1, case.vocab_size + 1)
    chance /= chance.sum()

    def sentences() -> tuple[np.ndarray, np.ndarray]:
        lengths = rng.integers(max(1, case.length - 7), case.length + 1, case.rows).astype(np.int32)
        ids = rng.choice(case.vocab_size, (case.rows, case.length), p=chance).astype(np.int32)
        return ids, lengths

    def batch() -> PairBatch:
        (source, source_lengths), (target, target_lengths) = sentences(), sentences()
        column = np.arange(case.length)[None]
        source = np.where(column < source_lengths[:, None], source, 0).astype(np.int32)
        target_in = np.roll(target, 1, axis=1)
        target_in[:, 0] = 0
        target_out = np.where(column < target_lengths[:, None], target, IGNORE).astype(np.int32)
        return PairBatch(source, source_lengths, target_in, target_out)

    return [batch() for _ in range(count)]


def batch_tokens(batch: PairBatch) -> tuple[int, int]:
    """Source and target tokens that are no filling."""
    return int(batch.source_lengths.sum()), int((batch.target_out != IGNORE).sum())


def batch_flops(batch: PairBatch, config: TransformerConfig) -> float:
    """Floating-point operations of a training step, filling not counted.

    Six for each weight of a matrix and token that meets it (two forward, four backward), the head and the
    cross-attention's keys and values with it; and 12 D for each query and key that meet, of which
    the causal attention has half.
    """
    d, f, layers = config.d_model, config.d_ff, config.n_layer
    source, target = batch_tokens(batch)
    s = batch.source_lengths.astype(np.float64)
    t = (batch.target_out != IGNORE).sum(axis=1).astype(np.float64)
    encoder = layers * (4 * d * d + 2 * d * f)
    decoder = layers * (6 * d * d + 2 * d * f) + config.vocab_size * d
    cross_keys = layers * 2 * d * d
    products = 6.0 * ((encoder + cross_keys) * source + decoder * target)
    return products + 12.0 * d * layers * float((s * s + t * t / 2 + s * t).sum())


def time_steps(run: Callable[[int], object], wait: Callable[[], object], seconds: float) -> dict[str, float]:
    """Run steps for at least ``seconds`` after a warm-up of a block; milliseconds for each step.

    Args:
        run: Starts step number so and so.
        wait: Returns once all started steps are done.
        seconds: Least time to measure.
    """
    number = 0

    def block() -> float:
        nonlocal number
        start = time.perf_counter()
        for _ in range(BLOCK):
            run(number)
            number += 1
        wait()
        return (time.perf_counter() - start) / BLOCK * 1e3

    block()
    blocks, start = [], time.perf_counter()
    while time.perf_counter() - start < seconds or len(blocks) < 5:
        blocks.append(block())
    fifths = statistics.quantiles(blocks, n=5)
    return {
        "ms": statistics.mean(blocks),
        "p20": fifths[0],
        "p50": statistics.median(blocks),
        "p80": fifths[3],
    }
