"""The way from a command's arguments into the loop, and from its end to what is said last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from gpt_data.terminal import typed

from gpt_trainer.errors import STOPPED
from gpt_trainer.ranks.peers import Peers
from gpt_trainer.ranks.place import ALONE, Place
from gpt_trainer.report.plot import plot_losses
from gpt_trainer.report.reporter import Reporter, Silence
from gpt_trainer.run.loop import Loop
from gpt_trainer.run.pace import Pace
from gpt_trainer.run.record import make_record
from gpt_trainer.run.start import Fresh
from gpt_trainer.run.task import Request, Task, TaskSpec
from gpt_trainer.settings.command_line import read_command, read_early

PROMISE = "the step under way is finished and saved; a second signal ends at once"
OF_A_HOST = ("processors", "omp_num_threads")
"""What hosts of one run may differ in."""


def run_command(spec: TaskSpec, argv: Sequence[str]) -> int:
    """Train as the arguments say; the exit status is 0, or 75 for a run that was asked to stop.

    Raises:
        CommandError: With one line for the user, as its subclasses say.
    """
    early = read_early(argv)
    if early.devices > 1 and spec.launch is not None:
        if early.resume is None and early.init_from is None:
            # what every process would refuse is said once
            _, request = read_command(spec, argv, early, ALONE, ExitStack())
            spec.divide(request.config, Place(world=early.devices))
        return spec.launch(early.devices, argv)
    with spec.join(early.devices) as peers, ExitStack() as locks:
        start, request = read_command(spec, argv, early, peers.place, locks)
        peers.patience = request.actions.patience
        if getattr(request.actions, "eval_only", False):
            # only GPT-2's command knows this flag
            from gpt_trainer.evaluate.command import evaluate_only

            return evaluate_only(spec, request, start, peers)
        return train(spec, request, start, peers)


def train(spec: TaskSpec, request: Request, start: Fresh, peers: Peers) -> int:
    """Train; the exit status.

    Raises:
        CommandError: As ``run_command``.
    """
    config = request.config
    with _folder(request, start, peers) as run, spec.open(request, start, peers) as task:
        reporter = Silence() if peers.place.rank else Reporter(run, config, task, start)
        record = _settle(run, spec, request, task, start, peers)
        pace = Pace(
            config.schedule,
            config.reports.save_every,
            partial(spec.rate, config),
            request.actions.profile,
        )
        loop = Loop(task, run, pace, record, start.state, start.saved_step, reporter, peers)
        with peers.stop.installed(PROMISE), reporter:
            if loop.state.step >= loop.end:
                reporter.say(f"step {loop.state.step}: nothing is left to train")
            finished = loop.run()
            shows = task.conclude(run, reporter.say) if finished else None
            reporter.doing("done" if finished else "stopped", loop.state.step, loop.end)
        return _end(spec, request, run, loop, shows)


@contextmanager
def _folder(request: Request, start: Fresh, peers: Peers) -> Iterator[Path]:
    """The run's folder, the same for all processes; rank 0 makes and locks it."""
    if peers.place.rank:
        yield Path(peers.first("", "the run's folder"))
        return
    with start.folder(request) as run:
        peers.first(str(run), "the run's folder")
        yield run


def _settle(
    run: Path, spec: TaskSpec, request: Request, task: Task, start: Fresh, peers: Peers
) -> dict[str, Any]:
    """The run's record: the processes are compared, then what it was before; rank 0 writes it."""
    record = make_record(spec, request, task, start.init_from)
    values = record.as_json()
    for part in ("config", "data", "options", "evaluations"):
        peers.refuse_difference(values[part], part)
    made_by = {name: value for name, value in values["made_by"].items() if name not in OF_A_HOST}
    peers.refuse_difference({**made_by, "first step": start.state.step}, "what it runs on")
    return values if peers.place.rank else start.settle(run, record)


def _end(spec: TaskSpec, request: Request, run: Path, loop: Loop, shows: str | None) -> int:
    """Draw the losses, say what to type next, and give the exit status."""
    say, step = loop.reporter.say, loop.state.step
    resume = typed(f"{spec.name}-train", "--resume", str(run))
    length = request.config.schedule
    if shows is None:
        received = loop.peers.stop.received
        say(f"stopped by {received.name if received else 'request'} after step {step}; go on with: {resume}")
        return STOPPED
    if not shows:
        return 0
    picture = plot_losses(run) if loop.writes else None
    if picture is not None:
        say(f"losses drawn in {picture}")
    say(f"next: {shows}   or train on: {resume} {length.flag(2)}{spec.stay(request.config, step)}")
    return 0
