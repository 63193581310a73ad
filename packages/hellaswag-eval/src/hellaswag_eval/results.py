"""From log-probabilities to accuracies, each with its standard error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bpe_scratch.files import replacing
from gpt_trainer.errors import WriteError

from hellaswag_eval.protocols import Example, Protocol
from hellaswag_eval.scoring import Scores

METRICS = ("acc", "acc_norm", "acc_bytes")


class Figure(NamedTuple):
    """A share of right answers.

    Attributes:
        value: The share.
        stderr: Its standard error, the sample's standard deviation over the root of n; None if n is 1.
        n: Number of items.
    """

    value: float
    stderr: float | None
    n: int


class Answer(NamedTuple):
    """What a model gave for one item.

    Attributes:
        row: The item's place in the data.
        label: The true ending.
        log_probs: Summed log-probability of each ending, in nats.
        tokens: Number of tokens of each.
        predictions: By metric the ending that it chooses: ``acc`` the most likely, ``acc_norm`` the most
            likely per unit of the protocol, ``acc_bytes`` per byte. Of equal ones the first.
        truncated: Whether the context was cut.
    """

    row: int
    label: int
    log_probs: tuple[float, ...]
    tokens: tuple[int, ...]
    predictions: dict[str, int]
    truncated: bool


class Evaluation(NamedTuple):
    """The result of one protocol.

    Attributes:
        protocol: Its name, without which the figures mean nothing.
        answers: One for each item, in the data's order.
        shapes: Shapes (rows, width) that the model was given.
        seconds: Time it took, compilation included.
    """

    protocol: Protocol
    answers: list[Answer]
    shapes: list[tuple[int, int]]
    seconds: float

    @property
    def figures(self) -> dict[str, Figure]:
        """``acc``, ``acc_norm`` and ``acc_bytes``."""
        return {name: _figure([a.predictions[name] == a.label for a in self.answers]) for name in METRICS}

    @property
    def truncated(self) -> int:
        """Items whose context was longer than the model's."""
        return sum(answer.truncated for answer in self.answers)

    def as_json(self) -> dict[str, Any]:
        """All but the answers, as JSON values."""
        return {
            "protocol": self.protocol,
            "items": len(self.answers),
            **{name: {"value": f.value, "stderr": f.stderr, "n": f.n} for name, f in self.figures.items()},
            "truncated": self.truncated,
            "shapes": len(self.shapes),
            "seconds": self.seconds,
        }


def judge(examples: Sequence[Example], scores: Scores, protocol: Protocol) -> list[Answer]:
    """What each example's log-probabilities choose.

    Args:
        protocol: Decides the unit of ``acc_norm``: tokens or characters.
    """
    return [
        _answer(example, log_probs, protocol, truncated=truncated)
        for example, log_probs, truncated in zip(examples, scores.log_probs, scores.truncated, strict=True)
    ]


def _answer(example: Example, log_probs: np.ndarray, protocol: Protocol, *, truncated: bool) -> Answer:
    tokens = tuple(len(ending) for ending in example.endings)
    units = {
        "acc": np.ones(len(tokens)),
        "acc_norm": np.array(tokens if protocol == "completion" else example.characters, float),
        "acc_bytes": np.array(example.utf8_bytes, float),
    }
    # argmax takes the first of equal ones, as NumPy's does in the harness
    predictions = {name: int(np.argmax(log_probs / unit)) for name, unit in units.items()}
    return Answer(example.row, example.label, tuple(log_probs.tolist()), tokens, predictions, truncated)


def _figure(right: Sequence[bool]) -> Figure:
    n, value = len(right), sum(right) / len(right)
    return Figure(value, math.sqrt(value * (1.0 - value) / (n - 1)) if n > 1 else None, n)


def describe(evaluation: Evaluation) -> str:
    """The figures in one line, as percentages."""
    parts = []
    for name, figure in evaluation.figures.items():
        error = "" if figure.stderr is None else f" ± {100 * figure.stderr:.2f}"
        parts.append(f"{name} {100 * figure.value:.2f}{error} %")
    cut = f", {evaluation.truncated:,} contexts cut" if evaluation.truncated else ""
    return f"{evaluation.protocol}: {', '.join(parts)} ({len(evaluation.answers):,} items{cut})"


def write_answers(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """One JSON object per item and protocol, whole or not at all.

    Raises:
        WriteError: If it cannot be written; a file that was there is as it was.
    """
    try:
        with replacing(path) as file:
            file.writelines(f"{line}\n".encode() for e in evaluations for line in _lines(e))
    except OSError as error:
        raise WriteError(f"--out: {error}") from None


def _lines(evaluation: Evaluation) -> Iterator[str]:
    for answer in evaluation.answers:
        yield json.dumps({"protocol": evaluation.protocol, **answer._asdict()})
