"""GPT-2 as pure functions over a named parameter tree: ``torch.func`` gradients, one compiled step."""

from __future__ import annotations

import os
from typing import Any

from gpt_trainer.library import Model, generate, load_model, train_step

__all__ = ["Model", "generate", "load", "train_step"]


def load(folder: str | os.PathLike[str], **choices: Any) -> Model:
    """The model of a run, a step or a Hugging Face folder; see ``gpt_trainer.library.load_model``.

    Args:
        folder: Where it lies.
        **choices: ``device``, ``precision``, ``seed``, ``optimizer``, and this backend's own options.

    Raises:
        ValueError: If it holds no model, or a choice is not to be had.
    """
    # the framework is imported when it is first needed, not with the package's name
    from gpt_torchfunc.backend import SPEC

    return load_model(SPEC, folder, **choices)
