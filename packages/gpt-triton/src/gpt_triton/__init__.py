"""GPT-2 as Triton kernels: forward and backward, every derivative written by hand, no autograd."""

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
    from gpt_triton.backend import SPEC

    return load_model(SPEC, folder, **choices)
