"""What can be asked of a command that trains GPT-2 with one of the backends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gpt_data.errors import shown
from gpt_data.mixture import PREFIX

from gpt_trainer.checkpoint import load_checkpoint, step_bytes
from gpt_trainer.evaluate.extra import installed_evaluations
from gpt_trainer.gpt2.cut import cut_rows
from gpt_trainer.gpt2.data import likely_vocab
from gpt_trainer.gpt2.presets import CPU_PRESET, GPU_PRESET, PRESETS
from gpt_trainer.gpt2.settings import TrainConfig, rate_at
from gpt_trainer.gpt2.start import FromModel
from gpt_trainer.gpt2.task import open_task
from gpt_trainer.parameters import parameter_count
from gpt_trainer.registry import BackendSpec
from gpt_trainer.run.record import is_count, is_size
from gpt_trainer.run.task import Actions, TaskSpec
from gpt_trainer.schedules import ends
from gpt_trainer.settings.sections import LENGTHS

HARMLESS = LENGTHS.union(("schedule_steps", "device", "data", "tokenizer", "tokenizer_files", "data_cache"))
"""May change on resume, like all that only reports; data and tokenizer if the tokens stay the same."""
READY_TOKENS = frozenset(("shards", "nanogpt"))
LATER = frozenset(("schedule_steps", "train_tokens", "minutes", "shard", "optimizer", "muon_lr_factor"))
"""That the first records do not have."""
LAST_BITS = frozenset(("precision", "micro_batch", "deterministic", "shard"))


@dataclass(frozen=True)
class GPT2Actions(Actions):
    """What to do.

    Attributes:
        preset: cpu-demo, gpt2-124m, gpt2-350m, gpt2-774m or gpt2-1.5b (if not given, gpt2-124m on a GPU,
            cpu-demo without one).
        init_from: Start from the weights of a run, a step or a Hugging Face GPT-2 folder.
        eval_only: Print the validation loss of --resume or --init-from and end.
        json: With --eval-only, print one JSON object.
    """

    preset: str | None = None
    init_from: Path | None = None
    eval_only: bool = False
    json: bool = False


def gpt2_spec(backend: BackendSpec) -> TaskSpec:
    """The command of a backend."""
    evaluations = {name: known.options for name, known in installed_evaluations().items()}
    return TaskSpec(
        name=backend.name,
        title=f"a GPT-2 with {backend.name}",
        format=1,
        actions=GPT2Actions,
        presets=PRESETS,
        fitting=_fitting,
        has_gpu=backend.has_gpu,
        room=_room,
        open=partial(open_task, backend),
        load=load_checkpoint,
        rate=rate_at,
        suit=_suit,
        stay=_stay,
        from_model=FromModel,
        options={**evaluations, "backend": backend.options},
        harmless=HARMLESS,
        last_bits=LAST_BITS,
        later=LATER,
        gone=frozenset(("workers",)),
        check_state=_spike_faults,
        join=backend.join,
        launch=backend.launch,
        divide=cut_rows,
    )


def _fitting(given: Mapping[str, Any], gpu: bool) -> str:
    device = given.get("device", "auto")
    return GPU_PRESET if device == "gpu" or (device == "auto" and gpu) else CPU_PRESET


def _suit(base: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
    """Tokens that are ready know their tokenizer; the preset's is for text."""
    if str(given.get("data")).removeprefix(PREFIX).partition(":")[0] not in READY_TOKENS:
        return base
    return replace(base, data=replace(base.data, tokenizer=None))


def _room(config: TrainConfig) -> int:
    """Two checkpoints, the one that is kept and the one that is written."""
    return 2 * step_bytes(parameter_count(config.model_config(likely_vocab(config))))


def _stay(config: TrainConfig, end: int) -> str:
    schedule = config.schedule
    return f" --schedule-steps {schedule.schedule_steps or end}" if ends(schedule.schedule) else ""


def _spike_faults(values: Mapping[str, Any], step: int) -> list[str]:
    """What is wrong with the running mean of norms."""
    spikes = values.get("spikes")
    if not isinstance(spikes, dict):
        return [f"spikes is {shown(spikes)}"]
    least = {"step": -1, "seen": 0, "earlier_seen": 0}
    wrong = [name for name, first in least.items() if not is_count(spikes.get(name), first, step)]
    wrong += [name for name in ("mean", "earlier_mean") if not is_size(spikes.get(name))]
    return [f"{name} is {shown(spikes.get(name))}" for name in wrong]
