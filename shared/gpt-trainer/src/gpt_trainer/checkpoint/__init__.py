"""Checkpoints: one folder per step, written whole or not at all, verified before anything is used.

The files in reading order: ``state`` (what is saved), ``tensors`` (safetensors), ``model_json``
(``config.json``), ``tokenizer_config``, ``manifest``, ``discovery``, ``load``, ``save``, ``retention``,
``preflight``, ``huggingface``. What they read and write with is ``gpt_data.store``.
"""

from __future__ import annotations

from gpt_trainer.checkpoint.discovery import find_steps, resolve
from gpt_trainer.checkpoint.huggingface import load_huggingface
from gpt_trainer.checkpoint.load import load_checkpoint, load_model, step_or_newest, verify
from gpt_trainer.checkpoint.manifest import ForeignError, NewerFormatError
from gpt_trainer.checkpoint.preflight import check_writable, step_bytes
from gpt_trainer.checkpoint.retention import prune
from gpt_trainer.checkpoint.save import save_checkpoint
from gpt_trainer.checkpoint.state import CheckpointState, SavedModel

__all__ = [
    "CheckpointState",
    "ForeignError",
    "NewerFormatError",
    "SavedModel",
    "check_writable",
    "find_steps",
    "load_checkpoint",
    "load_huggingface",
    "load_model",
    "prune",
    "resolve",
    "save_checkpoint",
    "step_bytes",
    "step_or_newest",
    "verify",
]
