"""``gpt-*-train --eval-only``: the validation loss of a model that exists."""

from __future__ import annotations

import json

from gpt_data.display import waiting
from gpt_data.stopping import SOON
from gpt_data.terminal import emit, warn

from gpt_trainer.errors import STOPPED, InputError
from gpt_trainer.ranks.peers import Peers
from gpt_trainer.run.record import make_record
from gpt_trainer.run.start import Fresh
from gpt_trainer.run.task import Request, TaskSpec


def evaluate_only(spec: TaskSpec, request: Request, start: Fresh, peers: Peers) -> int:
    """Print the validation loss; the exit status is 0, or 75 if asked to stop meanwhile.

    Args:
        peers: The processes that share the rows; the first prints.

    Raises:
        InputError: If there is no model or no text to evaluate on, or the data cannot be had.
    """
    section = request.config.data
    if start.saved is None:
        raise InputError(f"{start.where} has no checkpoint yet: there is nothing to evaluate")
    tokenizer = "" if section.tokenizer is None else f", tokenizer {section.tokenizer}"
    warn(f"scored on the held-out text of --data {section.data}{tokenizer}")
    with spec.open(request, start, peers) as task:
        start.check_data(make_record(spec, request, task, start.init_from))
        if task.validation is None:
            raise InputError(f"--data {section.data} has no validation text to evaluate on")
        quiet = request.config.reports.plain or peers.place.rank > 0
        with peers.stop.installed(SOON, after=1.0), waiting("evaluating", plain=quiet):
            found = task.evaluate()  # type: ignore[attr-defined]
    if found is None:
        return STOPPED
    values = {"step": start.state.step, "val_loss": found.loss}
    values |= {"perplexity": found.perplexity, "val_bits_per_byte": found.bits_per_byte}
    values |= {"val_targets": found.targets}
    if peers.place.rank:
        return 0
    emit(json.dumps(values) if request.actions.json else f"{found}, {found.targets:,} tokens")
    return 0
