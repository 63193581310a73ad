"""The end of a run: average the last checkpoints, translate the test pairs, score, show some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from gpt_data.store.writing import write_atomic
from gpt_trainer.errors import InputError

from aiayn_jax.averaging import average
from aiayn_jax.runs.checkpoints import Named, load_model, scheduled_steps
from aiayn_jax.runs.loop import RunParts
from aiayn_jax.scoring import Result, score
from aiayn_jax.settings import RunConfig
from aiayn_jax.translation import Decoding

SCORE_NAME, TRANSLATIONS_NAME = "score.json", "test-translations.txt"
SAMPLES = 5


class Averaged(NamedTuple):
    """Mean weights, and the steps that they are the mean of."""

    parameters: Named
    steps: list[int]


def average_last(run: Path, config: RunConfig) -> Averaged:
    """The mean of a run's last scheduled checkpoints, as many as it says, or as there are.

    Raises:
        InputError: If there is none, or one is damaged.
    """
    last = config.schedule.steps
    found = scheduled_steps(run, config.reports.save_every, last)[-config.reports.average :]
    if not found:
        raise InputError(f"{run} holds no checkpoint to score")
    models = [load_model(folder) for _, folder in found]
    return Averaged(average([model.parameters for model in models]), [step for step, _ in found])


def score_test(parts: RunParts) -> Result | None:
    """Translate the test pairs with the averaged weights, and write down the score and the text.

    Returns:
        The score, or None if asked to stop meanwhile.

    Raises:
        InputError: If a checkpoint is damaged.
        WriteError: If the results cannot be written.
    """
    reports, test = parts.record.config.reports, parts.prepared.corpus.test
    averaged = average_last(parts.run, parts.record.config)
    decoding = Decoding(beam=reports.beam, length_penalty=reports.length_penalty)
    found = parts.translate(parts.engine.send(averaged.parameters), test.source, decoding)
    if found is None:
        return None
    result = score(parts.prepared.corpus.score, found, test.target)
    values = {
        **result._asdict(),
        "beam": reports.beam,
        "length_penalty": reports.length_penalty,
        "averaged_steps": averaged.steps,
    }
    write_atomic(parts.run / SCORE_NAME, json.dumps(values, indent=2).encode() + b"\n")
    write_atomic(parts.run / TRANSLATIONS_NAME, "".join(f"{line}\n" for line in found).encode())
    for line in _samples(parts, found):
        parts.display.say(line)
    steps = f"{len(averaged.steps)} checkpoints" if len(averaged.steps) > 1 else "one checkpoint"
    parts.display.say(f"test: {result}, beam {reports.beam}, average of {steps}")
    return result


def _samples(parts: RunParts, found: list[str]) -> list[str]:
    """A few test sentences from the whole range, with what became of them."""
    test = parts.prepared.corpus.test
    count = min(SAMPLES, len(found))
    places = [(2 * place + 1) * len(found) // (2 * count) for place in range(count)]
    lines = []
    for place in places:
        right = "" if found[place] == test.target[place] else f"   (reference: {test.target[place]})"
        lines.append(f"  {test.source[place]}  ->  {found[place]}{right}")
    return lines


def read_score(run: Path) -> dict[str, Any] | None:
    """What ``score_test`` wrote, or None."""
    path = run / SCORE_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
