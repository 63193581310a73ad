"""What can be asked of ``aiayn-jax-train``, without JAX: settings, presets, and what opens the rest."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from gpt_data.errors import InputError
from gpt_trainer.checkpoint import step_bytes
from gpt_trainer.ranks.peers import Peers
from gpt_trainer.run import task
from gpt_trainer.run.start import Fresh

from aiayn_jax import TRAIN
from aiayn_jax.checkpoints import load
from aiayn_jax.config import parameter_count
from aiayn_jax.settings import PRESET_OF, RUN_PRESETS, DataSection, RunConfig


@dataclass(frozen=True)
class Actions(task.Actions):
    """What to do.

    Attributes:
        preset: demo, small, base or big (if not given, the one that suits the data).
        config: TOML file with any of these settings.
        out: Folder of the new run (runs/aiayn-PRESET-N if not given).
        resume: Go on with a run, or from one of its steps.
        profile: Record this many steps with JAX's profiler.
    """


def _fitting(given: Mapping[str, Any], gpu: bool) -> str:
    """The preset that suits the data, whatever the machine."""
    del gpu
    data = str(given.get("data", DataSection().data))
    return PRESET_OF.get(data.partition(":")[0], "small")


def _has_gpu() -> bool:
    from gpt_jax.device import has_gpu

    return has_gpu()


def _room(config: RunConfig) -> int:
    """Weights and two moments, of the steps that are kept and of the one being written."""
    return (config.reports.average + 1) * step_bytes(parameter_count(config.model_config(config.data.vocab)))


def _open(request: task.Request, start: Fresh, peers: Peers) -> AbstractContextManager[task.Task]:
    if request.config.runtime.shard != "none":
        raise InputError("--shard: each device of this command holds the whole state; leave it out")
    from aiayn_jax.task import open_task

    return open_task(request, start, peers)


SPEC = task.TaskSpec(
    name=TRAIN.removesuffix("-train"),
    title="the Transformer of 'Attention Is All You Need'",
    format="aiayn run",
    actions=Actions,
    presets=RUN_PRESETS,
    fitting=_fitting,
    has_gpu=_has_gpu,
    room=_room,
    open=_open,
    load=load,
    rate=RunConfig.learning_rate,
    harmless=frozenset({"steps", "train_tokens", "minutes", "device", "data", "val", "test"}),
    last_bits=frozenset({"precision", "unroll", "wide_logits", "attention", "shard"}),
    later=frozenset({"tensorboard", "trackio", "wandb", "train_tokens", "minutes", "shard"}),
    prefix="aiayn-",
)
