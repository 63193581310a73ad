"""What the user asked for: the trainers' own flags and file, shortened, and what is compared.

The command line is read as a trainer's is, by ``gpt_trainer``; what differs stands here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from gpt_data.flags import EarlyParser
from gpt_trainer.errors import InputError
from gpt_trainer.gpt2.settings import GPTReportSection, TrainConfig
from gpt_trainer.gpt2.spec import gpt2_spec
from gpt_trainer.gpt2.start import FromModel
from gpt_trainer.registry import BackendSpec
from gpt_trainer.run.start import Fresh
from gpt_trainer.run.task import TaskSpec
from gpt_trainer.settings import command_line
from gpt_trainer.settings.values import as_json, flat, overlay

from gpt_compare.competitor import Competitor, default_competitors, find_spec, read_competitors
from gpt_compare.reference import Reference, read_reference
from gpt_compare.sweep import MAX, Point

NAME = "gpt-compare"
TITLE = (
    "the same GPT-2 with every backend and with plain PyTorch, and report what each costs; several values of "
    "--batch-size, --context or --preset are a comparison each. 'gpt-compare report DIR' draws a report "
    "again, 'gpt-compare diff A B' says what got slower"
)
STEPS, WARMUP = 200, 40
"""Enough for steady speed and for the curves to part, if they do. With a warm-up of 12 steps cpu-demo's large
learning rate makes of roundings half a percent of loss, with 40 a thousandth of that."""
ENDS = 1 << 30
"""More steps than a run has: what comes so rarely comes at its ends alone."""


@dataclass(frozen=True)
class Options:
    """What to compare.

    Attributes:
        runs: Backends to train, plain or transformers; each with flags of its own in quotes:
            "gpt-jax --layers unroll".
        preset: cpu-demo, gpt2-124m, gpt2-350m, gpt2-774m or gpt2-1.5b (if not given, gpt2-124m on a GPU,
            cpu-demo without one).
        config: TOML file with any of the settings that all have in common.
        out: Folder of the report (comparisons/PRESET-N if not given).
        init_from: Start all from the weights of a run, a step or a Hugging Face GPT-2 folder.
        profile: Record this many steps of each with its framework's profiler, and say where their time goes.
        batch_size: Rows of a step, which is then one micro-batch: a number, several (a comparison each, as
            with several of --context or --preset), or max for the largest that fits.
        repeat: Turns of each competitor, forth and back: A B C C B A.
        generate: Sequences that are continued at once: a number or several; each backend says how fast.
        reference: CSV file of a published curve, tokens and loss, to be drawn beside; its first line is a
            name.
        price_per_hour: Dollars for an hour of this machine; the report then says what a billion tokens cost.
        keep_checkpoints: Leave the trained weights of each run.
    """

    runs: tuple[str, ...] = ()
    preset: str | None = None
    config: Path | None = None
    out: Path | None = None
    init_from: Path | None = None
    profile: int = 0
    batch_size: tuple[str, ...] = ()
    repeat: int = 1
    generate: tuple[int, ...] = ()
    reference: Path | None = None
    price_per_hour: float | None = None
    keep_checkpoints: bool = False

    def __post_init__(self) -> None:
        if self.profile < 0:
            raise ValueError(f"profile={self.profile} must not be negative")
        if self.repeat < 1:
            raise ValueError(f"repeat={self.repeat} must be at least 1")
        if any(rows < 1 for rows in self.generate):
            raise ValueError(f"generate={self.generate} must be positive numbers")
        if self.price_per_hour is not None and not 0.0 < self.price_per_hour < math.inf:
            raise ValueError(f"price_per_hour={self.price_per_hour} must be a positive number of dollars")


@dataclass(frozen=True)
class Request:
    """What the user asked for, complete.

    Attributes:
        options: What to compare.
        competitors: The runs.
        preset: The preset's name.
        config: The settings that all have in common.
        evaluations: The flags of evaluations that other packages bring, by name.
        largest: Whether each competitor takes the largest batch that fits it.
        reference: A published curve to be drawn beside.
    """

    options: Options
    competitors: list[Competitor]
    preset: str
    config: TrainConfig
    evaluations: Mapping[str, Any] = field(default_factory=dict)
    largest: bool = False
    reference: Reference | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What all have in common, by name: every flag's value, also of evaluations that are made."""
        values = flat(self.config)
        if self.largest:
            values |= {"tokens_per_step": None, "micro_batch": None}
        for name, flags in self.evaluations.items():
            given = as_json(flags)
            values |= given if given[f"eval_{name}_every"] else {}
        return values


@dataclass(frozen=True)
class Nothing:
    """No flags: each competitor has its own."""


class _Brief:
    """Few steps of one micro-batch each, and nothing between them, unless flags or a file say otherwise."""

    def base(self, early: Any, file: Mapping[str, Any], *, gpu: bool) -> tuple[str, TrainConfig]:
        """The preset's name, and its settings as a comparison begins with them."""
        name, config = super().base(early, file, gpu=gpu)  # type: ignore[misc]
        rows = config.reports.eval_rows
        short = {
            "tokens_per_step": config.batch.micro_batch * config.model.context,
            "steps": STEPS,
            "warmup": WARMUP,
        }
        reports = GPTReportSection(eval_every=0, eval_rows=rows, save_every=0, keep_last=1, sample_every=0)
        return name, replace(overlay(config, short, name), reports=reports)


class BriefRun(_Brief, Fresh):
    """From the seed."""


class BriefRunFromModel(_Brief, FromModel):
    """From a model's weights."""


def point_request(point: Point) -> Request:
    """The request of one place of a sweep: so many rows are one micro-batch; ``max`` is for each alone.

    Raises:
        InputError: If a name is unknown or values do not fit; for ``max`` on a CPU.
    """
    argv = [*point.argv]
    if point.batch_size not in (None, MAX):
        context = point.context or read_request(argv).config.model.context
        rows = int(str(point.batch_size))
        argv += [f"--micro-batch={rows}", f"--tokens-per-step={rows * context}"]
    request = replace(read_request(argv), largest=point.batch_size == MAX)
    if request.largest and request.config.runtime.device == "cpu":
        raise InputError(f"--batch-size {MAX} is for a GPU: on a CPU nothing tells what fits")
    return request


def read_request(argv: Sequence[str]) -> Request:
    """The complete request; preset and precision depend on whether a competitor finds a GPU.

    Raises:
        InputError: If a name is unknown or values do not fit.
    """
    runs = _early_runs(argv)
    competitors = read_competitors(runs)
    spec = _spec(runs, competitors)
    early = command_line.read_early(argv)
    start = BriefRun(spec) if early.init_from is None else BriefRunFromModel(spec, early.init_from)
    read = command_line.read_request(spec, argv, early, start)
    settings = [*flat(read.config), *(item.name for given in read.options.values() for item in fields(given))]
    for competitor in competitors:
        competitor.refuse_typos(settings)
    # one competitor on a GPU and one on a CPU would compare nothing
    runtime = replace(read.config.runtime, device="gpu" if read.gpu else "cpu")
    config = undisturbed(replace(read.config, runtime=runtime))
    given = read.actions.reference
    reference = None if given is None else read_reference(given)
    return Request(read.actions, competitors, read.preset, config, read.options, reference=reference)


def _spec(runs: tuple[str, ...], competitors: Sequence[Competitor]) -> TaskSpec:
    """What can be asked of this command, as of a trainer."""
    names = {competitor.name for competitor in competitors}
    nobody: Any = None
    backend = BackendSpec(NAME, Nothing, nobody, lambda: any(map(_has_gpu, names)))
    spec = gpt2_spec(backend)
    return replace(
        spec,
        suffix="",
        title=TITLE,
        actions=partial(Options, runs),  # type: ignore[arg-type]
        options={name: given for name, given in spec.options.items() if name != "backend"},
    )


def _has_gpu(name: str) -> bool:
    try:
        return find_spec(name).has_gpu()
    except (InputError, ImportError):
        # its own process will say why
        return False


def _early_runs(argv: Sequence[str]) -> tuple[str, ...]:
    """The competitors, on which the other flags' defaults depend."""
    parser = EarlyParser()
    parser.add_argument("--runs", nargs="*")
    found: list[str] | None = parser.parse_known_args(list(argv))[0].runs
    return default_competitors() if found is None else tuple(found)


def undisturbed(config: TrainConfig) -> TrainConfig:
    """The same run in plain lines, evaluated before the first step and after the last if nothing is said.

    Args:
        config: Where no evaluations or checkpoints are asked for, there are those at its ends.
    """
    reports = replace(config.reports, plain=True, eval_every=config.reports.eval_every or ENDS)
    return replace(config, reports=reports)
