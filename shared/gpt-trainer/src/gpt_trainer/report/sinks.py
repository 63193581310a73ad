"""Where metrics go besides ``metrics.jsonl``: TensorBoard, trackio, Weights & Biases, each an extra."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from gpt_data.errors import InputError, first_line
from gpt_data.terminal import warn

from gpt_trainer.settings.sections import ReportSection

Log = Callable[[Mapping[str, float], int], None]


class Sink:
    """One place that metrics are sent to; when it fails, it is left out and training goes on."""

    def __init__(self, name: str, log: Log, close: Callable[[], Any]) -> None:
        self.name = name
        self._log: Log | None = log
        self._close = close

    def write(self, values: Mapping[str, Any]) -> None:
        """Send one line of metrics."""
        if self._log is None:
            return
        numbers = {name: float(value) for name, value in values.items() if name != "step"}
        try:
            self._log(numbers, int(values["step"]))
        except Exception as error:  # noqa: BLE001 - whatever a service throws, training matters more
            self._fail(error)

    def close(self) -> None:
        """Send what is left."""
        if self._log is None:
            return
        try:
            self._close()
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._log = None
        warn(f"{self.name} failed and is left out from here on: {first_line(error)}")


def _load(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise InputError(
            f"--{extra} needs the extra gpt-trainer[{extra}]: {module} is not installed"
        ) from None


def _tensorboard(run: Path, config: Mapping[str, Any]) -> Sink:
    del config
    writer = _load("tensorboardX", "tensorboard").SummaryWriter(str(run / "tensorboard"))

    def log(numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return Sink("tensorboard", log, writer.close)


def _tracker(name: str) -> Callable[[Path, Mapping[str, Any]], Sink]:
    """Trackio has the interface of wandb."""

    def make(run: Path, config: Mapping[str, Any]) -> Sink:
        module = _load(name, name)
        # what wandb calls a run is started by name, so that a resumed run goes on in the same place
        module.init(project="gpt-trainer", name=run.name, config=dict(config))
        return Sink(name, lambda numbers, step: module.log(dict(numbers), step=step), module.finish)

    return make


MAKERS = {"tensorboard": _tensorboard, "trackio": _tracker("trackio"), "wandb": _tracker("wandb")}


def open_sinks(reports: ReportSection, run: Path, config: Mapping[str, Any]) -> list[Sink]:
    """The sinks that were asked for.

    Raises:
        InputError: If the extra of one is not installed, or it does not start.
    """
    sinks = []
    for name, make in MAKERS.items():
        if getattr(reports, name):
            try:
                sinks.append(make(run, config))
            except InputError:
                raise
            except Exception as error:
                raise InputError(f"--{name} does not start: {first_line(error)}") from error
    return sinks
