"""The flags that only this backend has, and its registration; the framework is imported when it is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gpt_trainer.registry import BackendSpec, imported
from gpt_trainer.settings.values import check_choices


@dataclass(frozen=True)
class Options:
    """Flags that only this backend has.

    Attributes:
        attention: ``"written"`` out; ``"cudnn"``, the fused kernel behind ``jax.nn``; ``"auto"``: fused on
            a GPU in bfloat16. cuDNN has no float32 kernel and draws its own random numbers: float32 uses the
            written form, and training with dropout kernels of ours where they take the shape.
        layers: ``"scan"`` compiles one block and loops over it; ``"unroll"`` compiles each for itself, which
            takes longer to start and less time and memory to run; ``"auto"``: unrolled on a GPU.
        preallocate: ``"on"`` takes most of a GPU's memory at the start, as JAX does by default.

    Raises:
        ValueError: If a value is not one of the choices.
    """

    attention: Literal["auto", "written", "cudnn"] = field(
        default="auto",
        metadata={"help": "Attention written out, or cuDNN's kernel (auto: cuDNN on a GPU in bfloat16)."},
    )
    layers: Literal["auto", "scan", "unroll"] = field(
        default="auto",
        metadata={
            "help": "Loop over blocks, or compile each: slower to start, faster to run (auto: on a GPU)."
        },
    )
    preallocate: Literal["off", "on"] = field(
        default="off", metadata={"help": "Take most of the GPU's memory at the start."}
    )

    def __post_init__(self) -> None:
        check_choices(self)


SPEC = BackendSpec(
    name="gpt-jax",
    options=Options,
    create=imported("gpt_jax.backend:JaxBackend"),
    has_gpu=imported("gpt_jax.device:has_gpu"),
    join=imported("gpt_jax.processes:join"),
)
