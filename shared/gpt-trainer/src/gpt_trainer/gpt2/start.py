"""A run that starts from a model: its weights, its sizes and its tokenizer, a fresh optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt_data.flags import flag

from gpt_trainer.errors import InputError
from gpt_trainer.origin import open_model
from gpt_trainer.run.record import RunState
from gpt_trainer.run.start import Fresh
from gpt_trainer.run.task import TaskSpec

SIZES = ("n_layer", "n_head", "d_model")


class FromModel(Fresh):
    """A new run from the weights of a run, a step or a Hugging Face folder.

    Raises:
        InputError: If it is none of these, or damaged.
    """

    def __init__(self, spec: TaskSpec, path: Path) -> None:
        super().__init__(spec)
        self.state = RunState()
        self._origin = open_model(path)
        self.saved, self.init_from, self.where = self._origin.saved, str(path), "--init-from"

    def base(self, early: Any, file: Mapping[str, Any], *, gpu: bool) -> tuple[str, Any]:
        """The preset with the model's sizes, its tokenizer, and rows that it can hold."""
        name, base = super().base(early, file, gpu=gpu)
        model, origin = self.saved.model, self._origin
        sizes = {size: getattr(model, size) for size in SIZES}
        section = replace(base.model, **sizes, context=min(base.model.context, model.context))
        data = base.data
        if origin.tokenizer is not None:
            data = replace(data, tokenizer=origin.tokenizer, tokenizer_files=origin.tokenizer_files)
        return name, replace(base, model=section, data=data)

    def check(self, config: Any, base: Any) -> None:
        """Refuse other sizes than the model's."""
        for name in SIZES:
            given, own = getattr(config.model, name), getattr(base.model, name)
            if given != own:
                raise InputError(
                    f"{flag(name)} {given} does not fit the model of --init-from, which has {own}"
                )
        longest = self.saved.model.context
        if config.model.context > longest:
            raise InputError(
                f"--context {config.model.context} is longer than the model's: --init-from has "
                f"{longest} positions"
            )
