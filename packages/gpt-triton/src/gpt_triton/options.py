"""The flags that only this backend has, and its registration; the framework is imported when it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_trainer.backend import BackendSpec, imported

Kernels = Literal["auto", "triton", "reference"]
KeepChoice = Literal["all", "less"]


@dataclass(frozen=True)
class TritonOptions:
    """Flags that only this backend has.

    Attributes:
        kernels: triton, reference (plain torch), or auto: Triton on a GPU and the reference on a CPU.
        cuda_graph: On a GPU, record each step's launches once and replay them.
        keep: What the forward keeps for the backward: all that the backward reads (fastest), or less, which
            takes about half the memory and computes the MLP's hidden values twice.
    """

    kernels: Kernels = "auto"
    cuda_graph: bool = True
    keep: KeepChoice = "all"


SPEC = BackendSpec(
    name="gpt-triton",
    options=TritonOptions,
    create=imported("gpt_triton.backend:TritonBackend"),
    has_gpu=imported("gpt_triton.device:has_gpu"),
)
