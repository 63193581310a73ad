"""How the rows of a step are cut: a share for each device of the run, in micro-batches of its own."""

from __future__ import annotations

from typing import NamedTuple

from gpt_trainer.errors import InputError
from gpt_trainer.gpt2.settings import TrainConfig
from gpt_trainer.ranks.place import Place


class Cut(NamedTuple):
    """A process's rows of a step.

    Attributes:
        rows: How many there are: those of all its devices.
        size: Rows of one of its micro-batches, ``micro_batch`` for each of its devices.
    """

    rows: int
    size: int


def cut_rows(config: TrainConfig, place: Place) -> Cut:
    """The rows of a process; a device whose share is smaller than ``micro_batch`` takes it at once.

    Raises:
        InputError: If the devices do not divide the rows, or a micro-batch a device's share.
    """
    rows, shares, context = config.rows, place.shares, config.model.context
    if rows % shares:
        nearest = max(1, round(rows / shares)) * shares
        raise InputError(
            f"--tokens-per-step {config.batch.tokens_per_step} makes {rows} rows, which {shares} devices "
            f"do not divide; the nearest that they do is {nearest} rows: "
            f"--tokens-per-step {nearest * context}"
        )
    share = rows // shares
    size = min(config.batch.micro_batch, share)
    if share % size:
        divisors = [count for count in range(1, share + 1) if share % count == 0]
        nearest = min(divisors, key=lambda count: abs(count - size))
        raise InputError(
            f"each of {shares} devices has {share} rows of a step, which --micro-batch {size} does not "
            f"divide; the nearest that does is --micro-batch {nearest}"
        )
    return Cut(share * place.devices, size * place.devices)
