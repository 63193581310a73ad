"""The flags that only this backend has, and its registration; the framework is imported when it is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from gpt_trainer.registry import BackendSpec, imported
from gpt_trainer.settings.values import check_choices

Kernels = Literal["auto", "triton", "reference"]
KeepChoice = Literal["all", "most", "less"]


@dataclass(frozen=True)
class Options:
    """Flags that only this backend has.

    Attributes:
        kernels: ``"triton"``; ``"reference"``, plain torch; ``"auto"``: Triton on a GPU.
        cuda_graph: On a GPU, record each step's launches once and replay them.
        keep: What the forward keeps for the backward: ``"all"`` that the backward reads (fastest);
            ``"most"``: without the outputs of the norms before attention; ``"less"``: about half the memory,
            and the MLP's hidden values are computed twice too.

    Raises:
        ValueError: If a value is not one of the choices.
    """

    kernels: Kernels = field(
        default="auto",
        metadata={"help": "Triton's kernels, or their reference in plain torch (auto: Triton on a GPU)."},
    )
    cuda_graph: bool = field(
        default=True, metadata={"help": "On a GPU, record a step's launches once and replay them."}
    )
    keep: KeepChoice = field(
        default="all",
        metadata={
            "help": "Keep all that the backward reads, most, or less: half of the memory, the MLP done twice."
        },
    )

    def __post_init__(self) -> None:
        check_choices(self)


SPEC = BackendSpec(
    name="gpt-triton",
    options=Options,
    create=imported("gpt_triton.backend:TritonBackend"),
    has_gpu=imported("gpt_trainer.torch_device:has_gpu"),
    join=imported("gpt_trainer.ranks.torchrun:join"),
    launch=partial(imported("gpt_trainer.ranks.torchrun:launch"), "gpt_triton.train"),
)
