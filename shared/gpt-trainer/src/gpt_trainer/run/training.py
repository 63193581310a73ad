"""The way from a command's arguments into the loop, and from its end to what is said last."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from gpt_data.stopping import StopFlag

from gpt_trainer.errors import STOPPED
from gpt_trainer.report.plot import plot_losses
from gpt_trainer.report.reporter import Reporter
from gpt_trainer.run.loop import Loop, Pace
from gpt_trainer.run.start import Fresh
from gpt_trainer.run.task import Request, TaskSpec
from gpt_trainer.settings.command_line import read_command

PROMISE = "the step under way is finished and saved; a second signal ends at once"


def run_command(spec: TaskSpec, argv: Sequence[str]) -> int:
    """Train as the arguments say; the exit status is 0, or 75 for a run that was asked to stop.

    Raises:
        CommandError: With one line for the user, as its subclasses say.
    """
    with ExitStack() as locks:
        start, request = read_command(spec, argv, locks)
        if getattr(request.actions, "eval_only", False):
            # only GPT-2's command knows this flag
            from gpt_trainer.evaluate.command import evaluate_only

            return evaluate_only(spec, request, start)
        return train(spec, request, start)


def train(spec: TaskSpec, request: Request, start: Fresh) -> int:
    """Train; the exit status.

    Raises:
        CommandError: As ``run_command``.
    """
    config, stop = request.config, StopFlag()
    with start.folder(request) as run, spec.open(request, start, stop) as task:
        reporter = Reporter(run, config)
        record = start.settle(run, request, task)
        pace = Pace(
            config.schedule,
            config.reports.save_every,
            partial(spec.rate, config),
            request.actions.profile,
        )
        loop = Loop(task, run, pace, record, start.state, start.saved_step, reporter, stop)
        reporter.begin(task, start)
        with stop.installed(PROMISE), reporter:
            finished = loop.run()
            shows = task.conclude(run, reporter.say) if finished else None
        return _end(spec, request, run, loop, shows)


def _end(spec: TaskSpec, request: Request, run: Path, loop: Loop, shows: str | None) -> int:
    """Draw the losses, say what to type next, and give the exit status."""
    say, step, resume = loop.reporter.say, loop.state.step, f"{spec.name}-train --resume {run}"
    length = request.config.schedule
    if shows is None:
        received = loop.stop.received
        say(f"stopped by {received.name if received else 'request'} after step {step}; go on with: {resume}")
        return STOPPED
    picture = plot_losses(run)
    if picture is not None:
        say(f"losses drawn in {picture}")
    say(f"next: {shows}   or train on: {resume} {length.flag(2)}{spec.stay(request.config, step)}")
    return 0
