"""The flags that only this backend has, and its registration; the framework is imported when it is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from gpt_trainer.registry import BackendSpec, imported
from gpt_trainer.settings.values import check_choices


@dataclass(frozen=True)
class Options:
    """Flags that only this backend has.

    Attributes:
        attention: ``"written"`` out; ``"sdpa"``, torch's fused kernel; ``"cudnn"``, the same but for the
            derivative, cuDNN's that repeats its bits; ``"auto"``: fused on a GPU, by cuDNN where it can be.
            In training with dropout cuDNN's takes whole rows; else the written form is used, since torch's
            kernel has its own random numbers.
        compile: Compile the step with ``torch.compile``; ``"auto"``: on a GPU, as on a CPU a compilation
            takes a minute and saves a quarter of each step.

    Raises:
        ValueError: If a value is not one of the choices.
    """

    attention: Literal["auto", "written", "sdpa", "cudnn"] = field(
        default="auto",
        metadata={
            "help": "Attention written out, torch's fused kernel, or cuDNN's own (auto: fused on a GPU)."
        },
    )
    compile: Literal["auto", "on", "off"] = field(
        default="auto", metadata={"help": "Compile the step with torch.compile (auto: on a GPU)."}
    )

    def __post_init__(self) -> None:
        check_choices(self)


SPEC = BackendSpec(
    name="gpt-torchfunc",
    options=Options,
    create=imported("gpt_torchfunc.backend:TorchFuncBackend"),
    has_gpu=imported("gpt_trainer.torch_device:has_gpu"),
    join=imported("gpt_trainer.ranks.torchrun:join"),
    launch=partial(imported("gpt_trainer.ranks.torchrun:launch"), "gpt_torchfunc.train"),
)
