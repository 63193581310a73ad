"""GPT-2 in pure JAX: functions over a named tree, one jitted step, own loss and own AdamW."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_trainer.library import Model, generate, train_step

__all__ = ["Model", "generate", "load", "train_step"]


def load(folder: str | os.PathLike[str], **choices: Any) -> Model:
    """The model of a run, a step or a Hugging Face folder; see ``gpt_trainer.library.load_model``.

    Args:
        folder: Where it lies.
        **choices: ``device``, ``precision``, ``seed``, ``optimizer``, and this backend's own options.

    Raises:
        ValueError: If it holds no model, or a choice is not to be had.
    """
    from gpt_trainer.library import load_model

    from gpt_jax.options import SPEC

    return load_model(SPEC, folder, **choices)


def __getattr__(name: str) -> Any:
    # imported when it is first asked for: a command answers Ctrl-C before its libraries are there
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("gpt_trainer.library"), name)
