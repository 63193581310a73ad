"""The end of a run: average the last checkpoints, translate the test pairs, score, show some."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from gpt_data.store.writing import write_atomic
from gpt_trainer.errors import InputError

from aiayn_jax.averaging import average
from aiayn_jax.checkpoints import Named, load_model, scheduled_steps
from aiayn_jax.data.pairs import TextPairs
from aiayn_jax.data.sources import Corpus
from aiayn_jax.scoring import Result, score
from aiayn_jax.settings import RunConfig
from aiayn_jax.translation import Decoding

SCORE_NAME, TRANSLATIONS_NAME = "score.json", "test-translations.txt"
SAMPLES = 5

Translate = Callable[[Named, Sequence[str], Decoding], list[str] | None]


class Averaged(NamedTuple):
    """Mean weights, and the steps that they are the mean of."""

    parameters: Named
    steps: list[int]


def average_last(run: Path, config: RunConfig) -> Averaged:
    """The mean of a run's last scheduled checkpoints, as many as it says, or as there are.

    Raises:
        InputError: If there is none, or one is damaged.
    """
    last = config.schedule.last
    found = scheduled_steps(run, config.reports.save_every, last)[-config.reports.average :]
    if not found:
        raise InputError(f"{run} holds no checkpoint to score")
    models = [load_model(folder) for _, folder in found]
    return Averaged(average([model.parameters for model in models]), [step for step, _ in found])


def score_test(
    run: Path, config: RunConfig, corpus: Corpus, translate: Translate, say: Callable[[str], None]
) -> Result | None:
    """Translate the test pairs with the averaged weights, and write down the score and the text.

    Args:
        translate: Translations by other weights than those in training; None if asked to stop.

    Returns:
        The score, or None if asked to stop meanwhile.

    Raises:
        InputError: If a checkpoint is damaged.
        WriteError: If the results cannot be written.
    """
    reports, test = config.reports, corpus.test
    averaged = average_last(run, config)
    decoding = Decoding(beam=reports.beam, length_penalty=reports.length_penalty)
    found = translate(averaged.parameters, test.source, decoding)
    if found is None:
        return None
    result = score(corpus.score, found, test.target)
    values = {
        **result._asdict(),
        "beam": reports.beam,
        "length_penalty": reports.length_penalty,
        "averaged_steps": averaged.steps,
    }
    write_atomic(run / SCORE_NAME, json.dumps(values, indent=2).encode() + b"\n")
    write_atomic(run / TRANSLATIONS_NAME, "".join(f"{line}\n" for line in found).encode())
    for line in _samples(test, found):
        say(line)
    steps = f"{len(averaged.steps)} checkpoints" if len(averaged.steps) > 1 else "one checkpoint"
    say(f"test: {result}, beam {reports.beam}, average of {steps}")
    return result


def _samples(test: TextPairs, found: list[str]) -> list[str]:
    """A few test sentences from the whole range, with what became of them."""
    count = min(SAMPLES, len(found))
    places = [(2 * place + 1) * len(found) // (2 * count) for place in range(count)]
    lines = []
    for place in places:
        right = "" if found[place] == test.target[place] else f"   (reference: {test.target[place]})"
        lines.append(f"  {test.source[place]}  ->  {found[place]}{right}")
    return lines
